"""The loss of the second stage: pseudo labels are wrong in places, image labels are not."""

import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from torch import Tensor

from datasets.record import IGNORE

# Of the symmetric cross-entropy: weight of the plain one, and minus the logarithm that stands for
# log 0 (Wang et al., ICCV 2019: alpha 0.1, beta 1, A = -4).
PLAIN_WEIGHT = 0.1
LOG_ZERO = 4.0
# Of the bootstrapped cross-entropy: share of the target in it (Reed et al., ICLR 2015, hard).
TARGET_SHARE = 0.8
EDGE_WINDOW = 7  # side in pixels of what counts as near a border


def dense_loss(
    logits: Tensor,
    masks: Tensor,
    labels: Tensor,
    *,
    kind: str,
    robustness: float,
    small_loss: float,
    edge_smoothing: float,
    dice_weight: float,
    absent_weight: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of a batch over the pixels that are not 255, in float32.

    A batch of ignored pixels alone gives zeros, but for the absent classes.

    Args:
        logits: (B, K + 1, H, W), background first.
        masks: (B, H, W) int64 mask values.
        labels: (B, K) multi-hot image labels.
        kind: of `pixel_loss`.
        robustness: of `pixel_loss`.
        small_loss: share in (0, 1] of the known pixels, those of lowest loss, that count; wrong
            labels are learnt last (Han et al., "Co-teaching", NeurIPS 2018).
        edge_smoothing: in [0, 1], see `edge_smoothed`; 0 leaves the labels as they are.
        dice_weight: of the Dice loss, the mean over all K + 1 mask classes; those absent from the
            batch count as 0.
        absent_weight: of the cross-entropy of no class being there that the image does not carry,
            the mean over all pixels; ignored ones count too.

    Returns:
        The sum, and the terms pixel, dice and absent unweighted (absent only with a weight); 0-d.
    """
    logits = logits.float()
    known = masks != IGNORE
    targets = masks.where(known, 0)
    of_pixels = pixel_loss(logits, targets, kind, robustness)
    if edge_smoothing:
        smoothed = edge_smoothed(logits, targets, known)
        of_pixels = of_pixels + edge_smoothing * (smoothed - of_pixels)
    of_known = of_pixels[known]
    if small_loss < 1 and len(of_known):
        kept = max(round(small_loss * len(of_known)), 1)
        of_known = of_known.topk(kept, largest=False, sorted=False).values
    terms = {"pixel": of_known.sum() / max(len(of_known), 1)}
    terms["dice"] = smp.losses.DiceLoss("multiclass", ignore_index=IGNORE)(logits, masks)
    total = terms["pixel"] + dice_weight * terms["dice"]
    if absent_weight:
        terms["absent"] = absent_loss(logits, labels)
        total = total + absent_weight * terms["absent"]
    return total, terms


def pixel_loss(logits: Tensor, masks: Tensor, kind: str, robustness: float) -> Tensor:
    """Return the loss of each pixel, (B, H, W).

    With p the probability of the pixel's target:

    - ce: the cross-entropy -log p;
    - generalised: (1 - p^q) / q, q = `robustness`; towards 0 it becomes the cross-entropy, 1 is
      the mean absolute error (Zhang and Sabuncu, NeurIPS 2018);
    - symmetric: 0.1 times the cross-entropy, plus the reverse one, 4 (1 - p) (Wang et al., ICCV
      2019);
    - bootstrapped: the cross-entropy with 0.8 of the target and 0.2 of the class that the network
      prefers (Reed et al., ICLR 2015).

    Args:
        logits: (B, K + 1, H, W) float32.
        masks: (B, H, W) int64 in 0..K.
        kind: ce, generalised, symmetric or bootstrapped.
        robustness: q in (0, 1].
    """
    plain = F.cross_entropy(logits, masks, reduction="none")
    if kind == "ce":
        return plain
    likelihood = torch.exp(-plain)
    if kind == "generalised":
        return (1 - likelihood.clamp(min=1e-6) ** robustness) / robustness
    if kind == "symmetric":
        return PLAIN_WEIGHT * plain + LOG_ZERO * (1 - likelihood)
    preferred = F.cross_entropy(logits, logits.argmax(dim=1), reduction="none")
    return TARGET_SHARE * plain + (1 - TARGET_SHARE) * preferred


def edge_smoothed(logits: Tensor, targets: Tensor, known: Tensor) -> Tensor:
    """Return the cross-entropy with the labels around each pixel, (B, H, W).

    Away from borders all labels are alike and this is the plain cross-entropy.

    Args:
        logits: (B, K + 1, H, W) float32.
        targets: (B, H, W) int64 in 0..K.
        known: (B, H, W) bool; other pixels' labels are not looked at.
    """
    one_hot = F.one_hot(targets, logits.shape[1]).permute(0, 3, 1, 2).float() * known[:, None]
    around = F.avg_pool2d(one_hot, EDGE_WINDOW, 1, EDGE_WINDOW // 2)
    around = around / around.sum(dim=1, keepdim=True).clamp(min=1e-6)
    return -(around * logits.log_softmax(dim=1)).sum(dim=1)


def corrected(masks: Tensor, logits: Tensor, labels: Tensor, confidence: float) -> Tensor:
    """Replace labels by what a teacher is sure of.

    Args:
        masks: (B, H, W) int64 mask values.
        logits: (B, K + 1, H, W) of the teacher.
        labels: (B, K) multi-hot; the teacher may only choose among an image's classes and
            background.
        confidence: least probability, among these, of what replaces a label.

    Returns:
        (B, H, W) int64 mask values; 255 too is replaced where the teacher is sure.
    """
    allowed = torch.cat([torch.ones_like(labels[:, :1]), labels], dim=1) > 0
    logits = logits.float().masked_fill(~allowed[:, :, None, None], -torch.inf)
    share, best = logits.softmax(dim=1).max(dim=1)
    return torch.where(share >= confidence, best, masks)


def absent_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean over pixels of -log(1 - probability of the classes an image lacks), 0-d."""
    shares = logits.softmax(dim=1)[:, 1:]
    absent = (shares * (1 - labels)[:, :, None, None]).sum(dim=1)  # (B, H, W)
    return -torch.log1p(-absent.clamp(max=1 - 1e-6)).mean()
