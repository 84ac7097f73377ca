"""Saliency guidance of the class activation maps (docs/method.md, B)."""

import torch
import torch.nn.functional as F

from losses.inputs import check_saliency
from models.device import full_precision


def saliency_loss(cams: torch.Tensor, saliency: torch.Tensor) -> torch.Tensor:
    """Mean squared difference between the classes' summed CAMs and the saliency map.

    Args:
        cams: (B, K, H, W) in [0, 1], min-max normalised, zero for absent classes.
        saliency: (B, 1, H, W) in [0, 1].

    Returns:
        0-d float32.

    Raises:
        ValueError: saliency has another shape.
    """
    check_saliency(cams, saliency)
    summed = full_precision(cams).sum(dim=1, keepdim=True)  # (B, 1, H, W)
    return F.mse_loss(summed, saliency.detach().to(summed.dtype))
