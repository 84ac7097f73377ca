"""Specks: regions so small that hardly anything of their class lies in regions of their size."""

from collections.abc import Iterable, Sequence

import cv2
import numpy as np

SMALL_SHARE = 0.01  # of a class' area in the pseudo labels lies in its small regions
SPECK = 0.5  # of the least area that is not small; above it a region is kept
CONNECTIVITY = 8  # pixels that touch at a corner are one region


def least_areas(masks: Iterable[np.ndarray], num_classes: int) -> list[float]:
    """Return the least area of a region of each class.

    Regions up to twice as large hold at most a hundredth of what the masks show of the class:
    what is predicted of a small one may be smaller still.

    Args:
        masks: (H, W) uint8 pseudo labels of training images.
        num_classes: K.

    Returns:
        K shares of an image; 0 of a class that no mask shows.
    """
    areas: list[list[float]] = [[] for _ in range(num_classes)]
    for mask in masks:
        for k, of_class in enumerate(areas):
            _, stats = _regions(mask == k + 1)
            of_class += (stats[:, cv2.CC_STAT_AREA] / mask.size).tolist()
    return [_least(np.sort(of_class)) for of_class in areas]


def _least(areas: np.ndarray) -> float:
    """Return the area below which a region is a speck, of ascending areas."""
    if not len(areas):
        return 0.0
    small = areas.cumsum() <= SMALL_SHARE * areas.sum()
    return SPECK * float(areas[small.sum()])


def without_specks(mask: np.ndarray, areas: Sequence[float]) -> np.ndarray:
    """Return a mask whose specks have become what most of their border touches.

    Args:
        mask: (H, W) uint8 mask values, background 0.
        areas: K shares of the image, of `least_areas`.
    """
    kept = mask.copy()
    for k, share in enumerate(areas):
        labels, stats = _regions(mask == k + 1)
        # A region of just this area is no speck, whatever the product is rounded to.
        is_speck = stats[:, cv2.CC_STAT_AREA] < share * mask.size * (1 - 1e-9)
        for region in np.flatnonzero(is_speck):
            x, y, width, height, _ = stats[region]
            box = slice(max(y - 1, 0), y + height + 1), slice(max(x - 1, 0), x + width + 1)
            inside = labels[box] == region + 1
            around = cv2.dilate(inside.astype(np.uint8), np.ones((3, 3), np.uint8)) > inside
            kept[box][inside] = np.bincount(kept[box][around]).argmax() if around.any() else 0
    return kept


def _regions(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the number of each pixel's region (H, W), 0 outside, and OpenCV's facts of each."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(
        pixels.astype(np.uint8), connectivity=CONNECTIVITY
    )
    return labels, stats[1:]
