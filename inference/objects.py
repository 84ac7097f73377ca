"""Masks as objects: connected regions with box, contours and score; and as COCO annotations."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from datasets.record import BACKGROUND

COCO_FORMATS = {"coco": "coco.json", "coco-polygons": "coco_polygons.json"}


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


def coco_annotation(
    one: dict[str, Any], size: tuple[int, int], form: str, class_names: Sequence[str]
) -> dict[str, Any]:
    """Return the COCO entry of an object, but for the ids; category k + 1 is class k.

    Args:
        one: of `objects_of`.
        size: (H, W) of its image.
        form: coco (compressed run lengths) or coco-polygons.
        class_names: K names.
    """
    x, y, width, height = one["box"]
    if form == "coco":
        pixels = np.zeros(size, np.uint8, order="F")
        pixels[y : y + height, x : x + width] = one["pixels"]
        segmentation = coco_mask.encode(pixels)
        segmentation["counts"] = segmentation["counts"].decode()
    else:
        segmentation = [_polygon(contour, one["box"]) for contour in one["contours"]]
    return {
        "category_id": list(class_names).index(one["class"]) + 1,
        "segmentation": segmentation,
        "area": one["area_px"],
        "bbox": one["box"],
        "score": one["score"],
        "iscrowd": 0,
    }


def coco_content(
    images: Sequence[dict[str, Any]],
    annotated: Sequence[Sequence[dict[str, Any]]],
    class_names: Sequence[str],
) -> dict[str, Any]:
    """Return what a COCO file of images holds.

    Args:
        images: file_name, height and width of each.
        annotated: of each, the entries of `coco_annotation`.
        class_names: K names.
    """
    entries = [
        {"image_id": number, **entry}
        for number, of_image in enumerate(annotated, start=1)
        for entry in of_image
    ]
    return {
        "images": [{"id": number, **image} for number, image in enumerate(images, start=1)],
        "annotations": [{"id": number, **entry} for number, entry in enumerate(entries, start=1)],
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(class_names)],
    }


def _polygon(contour: Sequence[Sequence[int]], box: Sequence[int]) -> list[float]:
    """Return x, y, ... through the centres of border pixels; the box of what has no inside."""
    if len(contour) >= 3 and min(box[2:]) >= 3:
        return [coordinate + 0.5 for point in contour for coordinate in point]
    x, y, width, height = box
    return [x, y, x + width, y, x + width, y + height, x, y + height]
