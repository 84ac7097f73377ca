"""What the online segmentation head learns: saliency, shared among the classes by their CAMs."""

import torch
import torch.nn.functional as F

from losses.inputs import check_saliency
from models.device import full_precision

SHARPNESS = 2  # the share of a class is its CAM to this power
LEAST_CAM = 1e-3  # so that a salient pixel is shared evenly where all CAMs are 0
DICE_FLOOR = 1e-3  # pixels, so that a class found nowhere and sought nowhere costs nothing


def pixel_loss(
    logits: torch.Tensor, cams: torch.Tensor, saliency: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy with soft targets (see `pixel_targets`) plus the Dice loss of present classes.

    Most pixels show no defect, so cross-entropy alone has little to say about narrow ones.

    Args:
        logits: (B, K + 1, h, w), background first.
        cams: (B, K, H, W) in [0, 1], zero for absent classes; taken as constants.
        saliency: (B, 1, H, W) in [0, 1].
        labels: (B, K) multi-hot.

    Returns:
        0-d float32, mean over pixels plus mean over the classes of all images.

    Raises:
        ValueError: saliency does not have the size of the CAMs.
    """
    with torch.no_grad():
        targets = pixel_targets(cams, saliency, labels, tuple(logits.shape[-2:]))
    logits = full_precision(logits)
    cross_entropy = -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
    return cross_entropy + dice_loss(logits.softmax(dim=1)[:, 1:], targets[:, 1:], labels)


def dice_loss(shares: torch.Tensor, targets: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """One minus the Dice coefficient with squared sums (V-Net), lowest where both maps are equal.

    A class counts the same in each image that shows it, however few pixels it covers.

    Args:
        shares: (B, K, h, w) in [0, 1], of each class in each pixel.
        targets: the same.
        labels: (B, K) multi-hot, the classes that count.

    Returns:
        0-d in [0, 1], mean over the present classes of all images; 0 where there are none.
    """
    common = (shares * targets).sum(dim=(-2, -1))
    total = (shares**2 + targets**2).sum(dim=(-2, -1))
    losses = 1 - (2 * common + DICE_FLOOR) / (total + DICE_FLOOR)
    return (losses * labels).sum() / labels.sum().clamp(min=1)


def pixel_targets(
    cams: torch.Tensor, saliency: torch.Tensor, labels: torch.Tensor, size: tuple[int, int]
) -> torch.Tensor:
    """Return how probable each mask class is in each pixel.

    The background has 1 - saliency. The rest belongs to the present classes, to each in proportion
    to the square of its CAM. Images without a class are background throughout.

    Args:
        cams: (B, K, H, W), as of `pixel_loss`.
        saliency: (B, 1, H, W).
        labels: (B, K).
        size: (h, w) of the result; pixels that fall into one are averaged.

    Returns:
        (B, K + 1, h, w) in [0, 1], of sum 1.
    """
    check_saliency(cams, saliency)
    cams, saliency, labels = (full_precision(x) for x in (cams, saliency, labels))
    claims = cams.clamp(min=LEAST_CAM) ** SHARPNESS * labels[..., None, None]
    total = claims.sum(dim=1, keepdim=True)  # 0 where an image has no class
    defects = claims / total.clamp(min=LEAST_CAM**SHARPNESS) * saliency
    targets = torch.cat([1 - defects.sum(dim=1, keepdim=True), defects], dim=1)
    return F.adaptive_avg_pool2d(targets, size)
