"""The loss of the second stage."""

import segmentation_models_pytorch as smp
import torch.nn.functional as F
from torch import Tensor

from datasets.record import IGNORE


def dense_loss(logits: Tensor, masks: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return cross-entropy plus Dice loss over the pixels that are not 255, in float32.

    Losses that bound what wrong pseudo labels do were measured and did not pay
    (docs/what_helped.md). A batch of ignored pixels alone gives zeros.

    Args:
        logits: (B, K + 1, H, W), background first.
        masks: (B, H, W) int64 mask values.

    Returns:
        The sum, and the terms pixel (mean over known pixels) and dice (mean over all K + 1 mask
        classes; those absent from the batch count as 0), detached; all 0-d.
    """
    logits = logits.float()
    known = masks != IGNORE
    of_known = F.cross_entropy(logits, masks.where(known, 0), reduction="none")[known]
    terms = {"pixel": of_known.sum() / max(len(of_known), 1)}
    terms["dice"] = smp.losses.DiceLoss("multiclass", ignore_index=IGNORE)(logits, masks)
    total = terms["pixel"] + terms["dice"]
    return total, {name: term.detach() for name, term in terms.items()}
