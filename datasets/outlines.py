"""Ground truth that annotation tools draw as outlines: LabelMe files and COCO files.

A LabelMe file holds the shapes of one image; a COCO file holds those of many, each image under a
path of which the last parts must be those of the picture's. Defects go by the names of the classes.
Where two overlap, the later one is on top. COCO's crowd regions are defects like all others, as
some tools mark every painted region so.
"""

import base64
import functools
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from datasets.record import BACKGROUND

CIRCLE_CORNERS = 64
SHAPE_TYPES = ("polygon", "rectangle", "circle", "mask")  # of LabelMe; lines have no area


@dataclass(frozen=True)
class CocoFile:
    """What a COCO file says of each image, found by file name."""

    images: dict[str, list[tuple[PurePosixPath, dict[str, Any]]]]  # file name -> path, image
    annotations: dict[int, list[dict[str, Any]]]  # by image id
    categories: dict[int, str]

    def image_of(self, picture: Path) -> dict[str, Any] | None:
        """Return the entry whose path ends the picture's, the longest if several do, or None."""
        parts = picture.parts
        ends = [
            (len(path.parts), i)
            for i, (path, _) in enumerate(self.images.get(picture.name, ()))
            if path.parts == parts[-len(path.parts) :]
        ]
        return self.images[picture.name][max(ends)[1]][1] if ends else None


def read_outlines(path: Path, picture: Path, class_names: Sequence[str]) -> np.ndarray:
    """Draw the outlines of one image as (H, W) uint8 mask values, H and W as the file has them.

    Args:
        path: LabelMe or COCO file.
        picture: the image, by which its shapes are found in a COCO file.
        class_names: mask value k + 1 goes by the name k.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, an image or a name that it does not know, or no area.
    """
    content = _read_json(path)
    try:
        if "shapes" in content:
            size = int(content["imageHeight"]), int(content["imageWidth"])
            areas = _labelme_areas(content["shapes"], size)
        else:
            coco = read_coco(path)
            image = coco.image_of(picture)
            if image is None:
                raise ValueError(f"an entry of {picture.name}, got none")
            size = int(image["height"]), int(image["width"])
            areas = _coco_areas(coco, image["id"], size)
        truth = np.full(size, BACKGROUND, np.uint8)
        for name, area in areas:
            if name not in class_names:
                raise ValueError(f"names of {', '.join(class_names)}, got {name!r}")
            truth[area] = class_names.index(name) + 1
    except (KeyError, TypeError, IndexError) as error:
        raise ValueError(f"{path}: expected {_expected(content)}, got: {error!r}.") from error
    except ValueError as error:
        raise ValueError(f"{path}: expected {error}. Correct the annotation.") from error
    return truth


def read_coco(path: Path) -> CocoFile:
    """Index a COCO file by image.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a COCO file.
    """
    return _index_coco(path, path.stat().st_mtime_ns if path.is_file() else 0)


@functools.lru_cache(maxsize=4)
def _index_coco(path: Path, changed: int) -> CocoFile:
    content = _read_json(path)
    try:
        images: dict[str, list] = {}
        for image in content["images"]:
            file = PurePosixPath(image["file_name"].replace("\\", "/"))
            file = PurePosixPath(*(part for part in file.parts if part != "."))
            images.setdefault(file.name, []).append((file, image))
        annotations: dict[int, list] = {}
        for annotation in content["annotations"]:
            annotations.setdefault(annotation["image_id"], []).append(annotation)
        categories = {category["id"]: category["name"] for category in content["categories"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: expected {_expected({})}, got: {error!r}.") from error
    return CocoFile(images, annotations, categories)


def _coco_areas(
    coco: CocoFile, image_id: int, size: tuple[int, int]
) -> Iterator[tuple[str, np.ndarray]]:
    for annotation in coco.annotations.get(image_id, ()):
        yield coco.categories[annotation["category_id"]], _area(annotation["segmentation"], size)


def _labelme_areas(
    shapes: Sequence[dict[str, Any]], size: tuple[int, int]
) -> Iterator[tuple[str, np.ndarray]]:
    for shape in shapes:
        kind, points = shape.get("shape_type", "polygon"), shape["points"]
        if kind not in SHAPE_TYPES:
            raise ValueError(f"shapes of {', '.join(SHAPE_TYPES)}, got {kind!r}")
        if kind == "mask":
            with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as picture:
                part = np.array(picture) > 0
            left, top = (round(coordinate) for coordinate in points[0])
            area = np.zeros(size, bool)
            inside = area[top : top + part.shape[0], left : left + part.shape[1]]
            inside |= part[: inside.shape[0], : inside.shape[1]]
        else:
            area = _area([_outline(kind, points)], size)
        yield shape["label"], area


def _outline(kind: str, points: Sequence[Sequence[float]]) -> list[float]:
    """Return x, y, x, y, ... of the corners of a LabelMe shape."""
    if kind == "polygon":
        corners = points
    elif kind == "rectangle":
        (left, top), (right, bottom) = points
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
    else:
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        turns = [2 * math.pi * i / CIRCLE_CORNERS for i in range(CIRCLE_CORNERS)]
        corners = [(x + radius * math.cos(t), y + radius * math.sin(t)) for t in turns]
    return [float(coordinate) for corner in corners for coordinate in corner]


def _area(segmentation: list[list[float]] | dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    """Return (H, W) bool of polygons, or of run lengths with or without compression."""
    height, width = size
    if isinstance(segmentation, dict):
        if tuple(segmentation["size"]) != size:
            raise ValueError(f"run lengths of size {size}, got {segmentation['size']}")
        packed = segmentation
        if isinstance(packed["counts"], list):
            packed = coco_mask.frPyObjects(packed, height, width)
        return coco_mask.decode(packed).astype(bool)
    short = [outline for outline in segmentation if len(outline) < 6 or len(outline) % 2]
    if short or not segmentation:
        raise ValueError(f"outlines of three or more points, got {(short or ['none'])[0]}")
    parts = coco_mask.frPyObjects(segmentation, height, width)
    return coco_mask.decode(coco_mask.merge(parts)).astype(bool)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: expected an annotation file, found none.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: expected JSON, got: {error}. Export it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected {_expected({})}, got a {type(content).__name__}.")
    return content


def _expected(content: dict[str, Any]) -> str:
    if "shapes" in content:
        return "a LabelMe file with imageHeight, imageWidth, and shapes with label and points"
    return "a LabelMe file (shapes) or a COCO file (images, annotations, categories)"
