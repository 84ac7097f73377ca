"""Image classification loss, of the class tokens as of the pooled patch map (docs/method.md, A)."""

import torch
import torch.nn.functional as F

from models.device import full_precision


def classification_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Multi-label soft margin loss; a defect-free image asks every class to stay silent.

    Args:
        logits: (B, K) class logits or patch logits.
        labels: (B, K) multi-hot.

    Returns:
        0-d float32, mean over images and classes.
    """
    logits = full_precision(logits)
    return F.multilabel_soft_margin_loss(logits, labels.detach().to(logits.dtype))
