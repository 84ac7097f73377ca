"""What the online segmentation head learns: saliency, shared among the classes by their CAMs."""

import torch
import torch.nn.functional as F

from losses.inputs import check_saliency, full_precision

SHARPNESS = 2  # the share of a class is its CAM to this power
LEAST_CAM = 1e-3  # so that a salient pixel is shared evenly where all CAMs are 0


def pixel_loss(
    logits: torch.Tensor, cams: torch.Tensor, saliency: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy of soft targets, see `pixel_targets`.

    Args:
        logits: (B, K + 1, h, w), background first.
        cams: (B, K, H, W) in [0, 1], zero for absent classes; taken as constants.
        saliency: (B, 1, H, W) in [0, 1].
        labels: (B, K) multi-hot.

    Returns:
        0-d float32, mean over pixels.

    Raises:
        ValueError: saliency does not have the size of the CAMs.
    """
    with torch.no_grad():
        targets = pixel_targets(cams, saliency, labels, tuple(logits.shape[-2:]))
    return -(targets * full_precision(logits).log_softmax(dim=1)).sum(dim=1).mean()


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
