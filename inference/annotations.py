"""Predictions as annotations that tools open: COCO (CVAT), Label Studio, LabelMe.

Outlines go along the edges of pixels, in whole numbers: pixel (row, column) covers x from column to
column + 1. So a polygon encloses exactly its object, however small or thin that is. A hole is
joined to the border by a cut without width, as most tools know no holes.
"""

import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import quote
from xml.sax.saxutils import quoteattr

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from datasets.files import write_json, write_text

FORMATS = ("coco", "coco-polygons", "label-studio", "labelme")
LABELME_VERSION = "5.5.0"  # whose files have these fields


class Annotated(NamedTuple):
    """A predicted image.

    Attributes:
        name: of its files.
        file: the picture.
        below: its path below the folder that was given.
        size: (H, W).
        entries: of its objects, by format, see `entry_of`.
    """

    name: str
    file: Path
    below: PurePosixPath
    size: tuple[int, int]
    entries: dict[str, list[dict[str, Any]]]


def entry_of(
    one: dict[str, Any], size: tuple[int, int], form: str, class_names: Sequence[str]
) -> dict[str, Any]:
    """Return what a format says of an object; `write_annotations` adds ids.

    Args:
        one: of `inference.objects.objects_of`.
        size: (H, W) of its image.
        form: of FORMATS.
        class_names: K names; category k + 1 of COCO is class k.
    """
    if form in ("coco", "coco-polygons"):
        return {
            "category_id": list(class_names).index(one["class"]) + 1,
            "segmentation": _run_lengths(one, size) if form == "coco" else [_flat(outline(one))],
            "area": one["area_px"],
            "bbox": one["box"],
            "score": one["score"],
            "iscrowd": 0,
        }
    corners = outline(one).tolist()
    if form == "labelme":
        facts = {"group_id": None, "description": f"score {one['score']}", "flags": {}}
        return {"label": one["class"], "points": corners, "shape_type": "polygon"} | facts
    height, width = size
    percent = [[100 * x / width, 100 * y / height] for x, y in corners]
    return {
        "from_name": "label",
        "to_name": "image",
        "type": "polygonlabels",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": one["score"],
        "value": {"points": percent, "polygonlabels": [one["class"]], "closed": True},
    }


def outline(one: dict[str, Any]) -> np.ndarray:
    """Return the corners of an object, (n, 2) int x and y along the edges of its pixels.

    The border goes round in one direction and the holes in the other, so that they are holes by
    either rule of filling.

    Args:
        one: of `inference.objects.objects_of`.
    """
    # With each pixel doubled, OpenCV's contours end in the halves next to the edges.
    doubled = one["pixels"].astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    found, tree = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    rings = [_corners((contour[:, 0] + 1) // 2) for contour in found]
    parents = tree[0, :, 3]
    border = rings[int(np.argmax(parents < 0))]  # touching pixels have a single one
    for hole in (ring for ring, parent in zip(rings, parents, strict=True) if parent >= 0):
        near = ((border - hole[0]) ** 2).sum(axis=1).argmin()
        border = np.concatenate([border[: near + 1], hole, hole[:1], border[near:]])
    return border + np.array(one["box"][:2], border.dtype)


def write_annotations(
    form: str, images: Sequence[Annotated], class_names: Sequence[str], to: Path, model: str
) -> Path:
    """Write what a format says of all images, and return the file, or the folder of LabelMe's.

    Args:
        form: of FORMATS.
        images: with entries of that format.
        class_names: K names.
        to: folder of the predictions.
        model: whose predictions they are, for Label Studio.
    """
    match form:
        case "labelme":
            for image in images:
                path = to / f"labelme/{image.name}.json"
                write_json(path, _labelme_page(image, path.parent))
            return to / "labelme"
        case "label-studio":
            path = to / "label_studio.json"
            write_text(to / "label_studio.xml", _label_studio_interface(class_names))
            write_json(path, [_label_studio_task(image, model) for image in images])
        case _:
            path = to / {"coco": "coco.json", "coco-polygons": "coco_polygons.json"}[form]
            write_json(path, coco_page(form, images, class_names))
    return path


def coco_page(form: str, images: Sequence[Annotated], class_names: Sequence[str]) -> dict[str, Any]:
    """Return the content of a COCO file; arguments as of `write_annotations`."""
    listed = [
        {"id": number, "file_name": str(i.below), "height": i.size[0], "width": i.size[1]}
        for number, i in enumerate(images, start=1)
    ]
    entries = [
        {"image_id": about["id"], **entry}
        for about, image in zip(listed, images, strict=True)
        for entry in image.entries[form]
    ]
    return {
        "images": listed,
        "annotations": [{"id": number, **entry} for number, entry in enumerate(entries, start=1)],
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(class_names)],
    }


def _label_studio_task(image: Annotated, model: str) -> dict[str, Any]:
    """Return a task; Label Studio serves folders within its document root, not the root itself."""
    folder = image.file.parents[len(image.below.parts) - 1].resolve().name
    regions = image.entries["label-studio"]
    prediction = {
        "model_version": model,
        "score": max((region["score"] for region in regions), default=0.0),
        "result": [{"id": f"{i}", **region} for i, region in enumerate(regions, start=1)],
    }
    url = f"/data/local-files/?d={quote(str(PurePosixPath(folder, image.below)))}"
    return {"data": {"image": url}, "predictions": [prediction]}


def _label_studio_interface(class_names: Sequence[str]) -> str:
    """Return the labelling interface that knows the names of `entry_of`."""
    labels = "".join(f"    <Label value={quoteattr(name)}/>\n" for name in class_names)
    return (
        '<View>\n  <Image name="image" value="$image" zoom="true"/>\n'
        f'  <PolygonLabels name="label" toName="image">\n{labels}  </PolygonLabels>\n'
        '  <BrushLabels name="brush" toName="image">\n'
        f"{labels}  </BrushLabels>\n</View>\n"
    )


def labelme_page(
    shapes: Sequence[dict[str, Any]], image_path: str, size: tuple[int, int]
) -> dict[str, Any]:
    """Return the content of a LabelMe file.

    Args:
        shapes: of the file.
        image_path: of the picture, as seen from the file.
        size: (H, W) of the picture.
    """
    return {
        "version": LABELME_VERSION,
        "flags": {},
        "shapes": list(shapes),
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": size[0],
        "imageWidth": size[1],
    }


def _labelme_page(image: Annotated, folder: Path) -> dict[str, Any]:
    """Return the file of an image, which lies in a folder."""
    return labelme_page(image.entries["labelme"], _from(folder, image.file), image.size)


def _from(folder: Path, file: Path) -> str:
    """Return how a file is called in a folder, whatever links lead to both."""
    return Path(os.path.relpath(file.parent.resolve() / file.name, folder.resolve())).as_posix()


def _run_lengths(one: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Return the compressed run lengths of an object, exact."""
    x, y, width, height = one["box"]
    pixels = np.zeros(size, np.uint8, order="F")
    pixels[y : y + height, x : x + width] = one["pixels"]
    packed = coco_mask.encode(pixels)
    return {**packed, "counts": packed["counts"].decode()}  # JSON holds no bytes


def _corners(ring: np.ndarray) -> np.ndarray:
    """Leave out repeated points of a ring, (n, 2), and those on a straight line."""
    ring = ring[(ring != np.roll(ring, 1, axis=0)).any(axis=1)]
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    return ring[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]


def _flat(corners: np.ndarray) -> list[float]:
    return corners.astype(float).reshape(-1).tolist()
