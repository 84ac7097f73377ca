"""Class activation maps as pure tensor functions (docs/method.md, A and B)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from models.device import full_precision
from models.stac import StacOutput

ROOT_FLOOR = 1e-12  # products up to it count as 0 in the fused CAM


def positive_part(patch_map: Tensor, revive: bool) -> Tensor:
    """Return ReLU(g) of (..., h, w) logits.

    Where a class is rare, its logits are soon negative everywhere. Its map would then be 0, and no
    gradient of the guidance could change that: on MTD, a class in one image of ten, the CAMs of
    200 training steps said nothing.

    Args:
        patch_map: g (..., h, w).
        revive: a map without any positive logit becomes g - min(g), which min-max normalisation
            takes as it takes any other.
    """
    positive = patch_map.relu()
    if not revive:
        return positive
    dead = patch_map.amax(dim=(-2, -1), keepdim=True) <= 0
    return torch.where(dead, patch_map - patch_map.amin(dim=(-2, -1), keepdim=True), positive)


def raw_cam(output: StacOutput, cam_type: str, revive: bool = True) -> Tensor:
    """Return the low-resolution CAM of a type, before normalisation.

    Args:
        output: of the localiser.
        cam_type: patchcam = ReLU(g), attention = M, fused = sqrt(M * ReLU(g)), or pixel, each class
            against the background by the online segmentation head.
        revive: see `positive_part`; False where maps are parts of an image, as a part may be
            without the class.

    Returns:
        (B, K, h, w), not negative; pixel (B, K, h', w').

    Raises:
        ValueError: another type, or pixel of a model without the head.
    """
    match cam_type:
        case "pixel":
            if output.pixel_logits is None:
                raise ValueError(
                    "cam.types: expected other types than pixel, as this localiser was trained "
                    "without the online segmentation head (train.pixel_block = 0)."
                )
            return (output.pixel_logits[:, 1:] - output.pixel_logits[:, :1]).sigmoid()
        case "patchcam":
            return positive_part(output.patch_map, revive)
        case "attention":
            return output.class_attention
        case "fused":
            product = output.class_attention * positive_part(output.patch_map, revive)
            floored = product.clamp_min(ROOT_FLOOR).sqrt()  # a root's slope at 0 is infinite
            return torch.where(product > ROOT_FLOOR, floored, 0.0)
    known = "patchcam, attention, fused or pixel"
    raise ValueError(f"CAM type: expected {known}, got {cam_type!r}.")


def min_max(maps: Tensor) -> Tensor:
    """Scale each (..., H, W) map to [0, 1]; a constant map becomes 0."""
    low = maps.amin(dim=(-2, -1), keepdim=True)
    span = maps.amax(dim=(-2, -1), keepdim=True) - low
    return torch.where(span > 0, (maps - low) / span.clamp_min(torch.finfo(maps.dtype).tiny), 0.0)


def guided_cams(output: StacOutput, labels: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the two maps U that saliency guides: M * ReLU(g) and the same of the features.

    Args:
        output: of the localiser.
        labels: (B, K) multi-hot.
        size: (H, W) of the result.

    Returns:
        cams1 and cams2 of the paper, (B, K, H, W) each: resized, min-max normalised, 0 for absent
        classes.
    """
    cams = []
    for logits in (output.patch_map, output.feature_map):
        maps = full_precision(output.class_attention) * positive_part(full_precision(logits), True)
        maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
        cams.append(min_max(maps) * labels[..., None, None])
    return cams[0], cams[1]


def resize_and_sum(maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Resize (K, h_i, w_i) maps of one image, made at several scales, to `size` and add them."""
    resized = [
        F.interpolate(full_precision(m[None]), size=size, mode="bilinear", align_corners=False)[0]
        for m in maps
    ]
    return torch.stack(resized).sum(0)
