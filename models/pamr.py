"""PAMR: pixel-adaptive refinement of maps by the image they lie on."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

DILATIONS = (1, 2, 4, 8)
# Of the local deviation: how far colours may differ before pixels stop sharing values.
SHARPNESS = 0.1
# Side of the parts in which larger images are refined: about 1 GiB, whatever their size.
BLOCK = 800
OFFSETS = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]


@torch.no_grad()
def pamr(
    image: Tensor, maps: Tensor, steps: int = 10, dilations: Sequence[int] = DILATIONS
) -> Tensor:
    """Average each pixel's map values with neighbours of like colour, again and again.

    The weight of a neighbour is softmax(-|difference| / (SHARPNESS * local deviation)), mean over
    the channels (Araslanov and Roth, "Single-Stage Semantic Segmentation from Image
    Labels", CVPR 2020, section 3.3).

    Args:
        image: (3, H, W) float, any range.
        maps: (M, H, W) float; M may be 0.
        steps: iterations; each widens the reach by the largest dilation; 0 changes nothing.
        dilations: distances of the 8 neighbours, in pixels.

    Returns:
        (M, H, W), within the range of `maps`.

    Raises:
        ValueError: image and maps differ in size.
    """
    if image.shape[1:] != maps.shape[1:]:
        raise ValueError(
            f"maps: expected the size of the image, {tuple(image.shape[1:])}, got "
            f"{tuple(maps.shape[1:])}."
        )
    if not len(maps) or not steps:
        return maps
    reach = steps * max(dilations)  # no pixel beyond it matters
    blocks = [
        (slice(y, y + BLOCK), slice(x, x + BLOCK))
        for y in range(0, maps.shape[1], BLOCK)
        for x in range(0, maps.shape[2], BLOCK)
    ]
    refined = torch.empty_like(maps)
    for rows, columns in blocks:
        top, left = max(rows.start - reach, 0), max(columns.start - reach, 0)
        seen = (..., slice(top, rows.stop + reach), slice(left, columns.stop + reach))
        part = _refine(image[seen], maps[seen], steps, dilations)
        kept = part[:, rows.start - top :, columns.start - left :][:, :BLOCK, :BLOCK]
        refined[:, rows, columns] = kept
    return refined


def _refine(image: Tensor, maps: Tensor, steps: int, dilations: Sequence[int]) -> Tensor:
    # One neighbour after the other: together they are too large for the cache. Differences to the
    # pixel itself, whose own is 0, keep the deviation exact where the image is flat.
    neighbours = _neighbours(image, dilations)  # n of (3, H, W)
    total, squares = torch.zeros_like(image), torch.zeros_like(image)
    for neighbour in neighbours:
        difference = neighbour - image
        total += difference
        squares.addcmul_(difference, difference)
    count = len(neighbours) + 1
    deviation = ((squares - total * total / count) / (count - 1)).clamp(min=0).sqrt()
    scale = 1 / (SHARPNESS * deviation + 1e-8)
    distance = [((n - image).abs() * scale).mean(dim=0) for n in neighbours]
    weights = torch.softmax(-torch.stack(distance), dim=0)  # (n, H, W)
    for _ in range(steps):
        refined = torch.zeros_like(maps)
        for weight, neighbour in zip(weights, _neighbours(maps, dilations), strict=True):
            refined.addcmul_(weight, neighbour)
        maps = refined
    return maps


def _neighbours(values: Tensor, dilations: Sequence[int]) -> list[Tensor]:
    """Return each pixel's 8 neighbours at each distance, 8 * len(dilations) views (C, H, W).

    Beyond the border the border's values go on.
    """
    height, width = values.shape[1:]
    reach = max(dilations)
    padded = F.pad(values[None], (reach,) * 4, mode="replicate")[0]
    shifted = []
    for dilation in dilations:
        for y, x in OFFSETS:
            top, left = reach + y * dilation, reach + x * dilation
            shifted.append(padded[:, top : top + height, left : left + width])
    return shifted
