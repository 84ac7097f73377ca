"""Corrected masks as LabelMe files: objects that were kept, and polygons that were drawn."""

import base64
import io
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from datasets.areas import Point, Size
from datasets.outlines import LabelMe
from datasets.record import BACKGROUND
from demonstration.views import MOST_OBJECTS, View
from inference.annotations import labelme_page
from inference.results import Result

MOST_POLYGONS, MOST_CORNERS = 1000, 10_000


class Polygon(BaseModel):
    """What the user drew: a class and its corners, x and y in pixels of the image."""

    model_config = ConfigDict(extra="forbid")

    label: str
    points: Annotated[list[Point], Field(min_length=3, max_length=MOST_CORNERS)]


class Correction(BaseModel):
    """What the user made of a result.

    Attributes:
        view: where the sliders stood.
        kept: class name by the number of the object; the others were removed.
        drawn: polygons, which lie on top of the objects.
        replace: a file that is there already is written anew.
    """

    model_config = ConfigDict(extra="forbid")

    view: View
    kept: dict[int, str]
    drawn: Annotated[list[Polygon], Field(max_length=MOST_POLYGONS)]
    replace: bool = False


def labelme_of(correction: Correction, result: Result) -> dict[str, Any]:
    """Return the content of a LabelMe file.

    Objects that were kept are shapes of pixels, exact and with their holes.

    Args:
        correction: of the result.
        result: with the objects of the correction's view.

    Raises:
        ValueError: an object or a class that is not there, or more objects than the page lists.
    """
    if len(result.objects) > MOST_OBJECTS:
        raise ValueError(
            f"correction: expected at most {MOST_OBJECTS} objects, got {len(result.objects)}. "
            "Move the least area up until fewer are left."
        )
    names = list(result.class_scores)
    labels = [*correction.kept.values(), *(polygon.label for polygon in correction.drawn)]
    if unknown := [label for label in labels if label not in names]:
        raise ValueError(f"class: expected one of {', '.join(names)}, got {unknown[0]!r:.100}.")
    if beyond := [i for i in correction.kept if not 0 <= i < len(result.objects)]:
        raise ValueError(
            f"object: expected a number below {len(result.objects)}, got {beyond[0]}. "
            "Open the image again."
        )
    kept = [_of_pixels(result.objects[i], label) for i, label in sorted(correction.kept.items())]
    drawn = [_shape(polygon.label, polygon.points, "polygon") for polygon in correction.drawn]
    return labelme_page([*kept, *drawn], result.record.image.name, result.mask.shape)


def mask_of(content: dict[str, Any], size: Size, class_names: Sequence[str]) -> np.ndarray:
    """Return the mask values (H, W) uint8 that a LabelMe file stands for, as it is read."""
    mask = np.full(size, BACKGROUND, np.uint8)
    for shape in LabelMe.model_validate(content).shapes:
        mask[shape.area(size)] = class_names.index(shape.label) + 1
    return mask


def _of_pixels(one: dict[str, Any], label: str) -> dict[str, Any]:
    """Return an object of `objects_of` as a shape: its box, ends included, and its pixels."""
    x, y, width, height = one["box"]
    picture = io.BytesIO()
    Image.fromarray(one["pixels"].astype(np.uint8)).save(picture, format="PNG")
    corners = [(x, y), (x + width - 1, y + height - 1)]
    shape = _shape(label, corners, "mask")
    return shape | {"mask": base64.b64encode(picture.getvalue()).decode()}


def _shape(label: str, points: Sequence[Sequence[float]], kind: str) -> dict[str, Any]:
    return {
        "label": label,
        "points": [[float(x), float(y)] for x, y in points],
        "group_id": None,
        "description": "",
        "shape_type": kind,
        "flags": {},
    }
