"""Class activation maps as pure tensor functions (METHOD A and B)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

REFERENCE_PATCHES = 196  # grid of the paper, 14 x 14, that the pooling decay is meant for
POOLING_DECAY = 0.996
ROOT_FLOOR = 1e-12  # products up to it count as 0 in the fused CAM


def full_precision(tensor: Tensor) -> Tensor:
    """Return the tensor in float32, or unchanged where it is float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def pool_patches(
    patch_map: Tensor, decay: float = POOLING_DECAY, scale_window: bool = True
) -> Tensor:
    """Pool each class' patch logits, the highest weighted most.

    The k-th highest of N values weighs decay ** k. At a larger grid that window would cover a
    smaller share of the image, so k counts in units of N / 196 patches.

    Args:
        patch_map: (B, K, h, w) logits.
        decay: weight ratio between neighbouring ranks on a 14 x 14 grid, in (0, 1].
        scale_window: False keeps the paper's weights whatever the grid.

    Returns:
        (B, K) patch logits.
    """
    ranked = full_precision(patch_map).flatten(2).sort(dim=-1, descending=True).values  # (B, K, N)
    num_patches = ranked.shape[-1]
    unit = REFERENCE_PATCHES / num_patches if scale_window else 1.0
    ranks = torch.arange(num_patches, device=ranked.device, dtype=ranked.dtype)
    weights = decay ** (ranks * unit)
    return (ranked * weights).sum(-1) / weights.sum()


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


def combine(
    cam_type: str,
    class_attention: Tensor,
    patch_map: Tensor,
    revive: bool = True,
    pixel_logits: Tensor | None = None,
) -> Tensor:
    """Return the low-resolution CAM of a type, before normalisation.

    Args:
        cam_type: patchcam = ReLU(g), attention = M, fused = sqrt(M * ReLU(g)), product =
            M * ReLU(g), which the paper trains with, or pixel, each class against the background
            by the online segmentation head.
        class_attention: M (B, K, h, w) in [0, 1].
        patch_map: g (B, K, h, w) logits.
        revive: see `positive_part`; False where maps are parts of an image, as a part may be
            without the class.
        pixel_logits: (B, K + 1, h', w'), background first; pixel needs them.

    Returns:
        (B, K, h, w), not negative; pixel (B, K, h', w').

    Raises:
        ValueError: another type, or pixel of a model without the head.
    """
    if cam_type == "pixel":
        if pixel_logits is None:
            raise ValueError(
                "cam.types: expected other types than pixel, as this localiser was trained "
                "without the online segmentation head (train.pixel_block = 0)."
            )
        return (pixel_logits[:, 1:] - pixel_logits[:, :1]).sigmoid()
    if cam_type == "patchcam":
        return positive_part(patch_map, revive)
    if cam_type == "attention":
        return class_attention
    product = class_attention * positive_part(patch_map, revive)
    if cam_type == "product":
        return product
    if cam_type == "fused":
        floored = product.clamp_min(ROOT_FLOOR).sqrt()  # a root's slope at 0 is infinite
        return torch.where(product > ROOT_FLOOR, floored, 0.0)
    known = "patchcam, attention, fused, product or pixel"
    raise ValueError(f"CAM type: expected {known}, got {cam_type!r}.")


def min_max(maps: Tensor) -> Tensor:
    """Scale each (..., H, W) map to [0, 1]; a constant map becomes 0."""
    low = maps.amin(dim=(-2, -1), keepdim=True)
    span = maps.amax(dim=(-2, -1), keepdim=True) - low
    return torch.where(span > 0, (maps - low) / span.clamp_min(torch.finfo(maps.dtype).tiny), 0.0)


def training_cam(
    class_attention: Tensor,
    logits: Tensor,
    labels: Tensor,
    size: tuple[int, int],
    cam_type: str = "product",
) -> Tensor:
    """Return the maps U that saliency guides (METHOD B: cams1, cams2).

    Args:
        class_attention: M (B, K, h, w) in [0, 1].
        logits: g or the map of the attention features, (B, K, h, w).
        labels: (B, K) multi-hot.
        size: (H, W) of the result.
        cam_type: see `combine`; the paper's is product, M * ReLU(logits).

    Returns:
        (B, K, H, W), resized, min-max normalised; 0 for absent classes.
    """
    maps = combine(cam_type, full_precision(class_attention), full_precision(logits))
    maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
    return min_max(maps) * labels[..., None, None]


def resize_and_sum(maps: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
    """Resize (K, h_i, w_i) maps of one image, made at several scales, to `size` and add them."""
    resized = [
        F.interpolate(full_precision(m[None]), size=size, mode="bilinear", align_corners=False)[0]
        for m in maps
    ]
    return torch.stack(resized).sum(0)
