"""Masks as objects: connected regions with box, contours and score."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from datasets.record import BACKGROUND


def objects_of(
    mask: np.ndarray, confidence: np.ndarray, class_names: Sequence[str], min_area: int
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Divide a mask into objects: pixels of a class that touch, at a side or a corner.

    Args:
        mask: (H, W) uint8 mask values.
        confidence: (H, W) in [0, 1]; its mean is the score of an object.
        class_names: K names.
        min_area: smaller objects, in pixels, become background.

    Returns:
        The mask without small objects, and the objects class by class, top left first: class,
        area_px, box [x, y, width, height], score, contours [[[x, y], ...], ...] in pixels, and
        pixels, the bool of the object within its box, for the caller only.
    """
    kept, objects = np.full_like(mask, BACKGROUND), []
    for k, name in enumerate(class_names):
        count, parts, stats, _ = cv2.connectedComponentsWithStats(
            (mask == k + 1).astype(np.uint8), connectivity=8
        )
        for part in range(1, count):
            x, y, width, height, area = stats[part].tolist()
            if area < min_area:
                continue
            inside = parts[y : y + height, x : x + width] == part
            kept[y : y + height, x : x + width][inside] = k + 1
            contours, _ = cv2.findContours(
                inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(x, y)
            )
            box = (slice(y, y + height), slice(x, x + width))
            objects.append(
                {
                    "class": name,
                    "area_px": area,
                    "box": [x, y, width, height],
                    "score": round(float(confidence[box][inside].mean()), 4),
                    "contours": [contour[:, 0].tolist() for contour in contours],
                    "pixels": inside,
                }
            )
    return kept, objects
