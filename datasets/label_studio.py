"""Ground truth that was drawn or corrected in Label Studio: its export of type JSON.

A file holds a task for each image, and a task the annotations of those who worked on it. The newest
one that was not cancelled counts; tasks with predictions alone are no ground truth. Coordinates are
percent of the image. What has no class, such as choices and texts, is passed over.
https://labelstud.io/guide/task_format.html
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from pydantic import AwareDatetime, BaseModel, Field, TypeAdapter, ValidationError

from datasets import areas
from datasets.annotations import PathEnds, Side, check_size, checked
from datasets.areas import Coordinate, Point, Size

ELLIPSE_CORNERS = 64
UPLOADED = re.compile(r"/data/upload/.*?([^/]*)$")
HASH = re.compile(r"^[0-9a-f]{8}-")  # before the names of files that were uploaded
BEGINNING = datetime.min.replace(tzinfo=UTC)

Byte = Annotated[int, Field(ge=0, le=255)]


class Polygon(BaseModel):
    """Corners, in percent."""

    points: list[Point]

    def area(self, size: Size) -> np.ndarray:
        """Return (H, W) bool of what it encloses; so do those of the other shapes."""
        return areas.of_polygons([_in_pixels(self.points, size)], size)


class Rectangle(BaseModel):
    """In percent, turned clockwise around its upper left corner by degrees."""

    x: Coordinate
    y: Coordinate
    width: Coordinate
    height: Coordinate
    rotation: Coordinate = 0

    def area(self, size: Size) -> np.ndarray:
        """Return (H, W) bool."""
        corners = [(0, 0), (self.width, 0), (self.width, self.height), (0, self.height)]
        return _turned(corners, (self.x, self.y), self.rotation, size)


class Ellipse(BaseModel):
    """In percent, turned clockwise around its centre by degrees."""

    x: Coordinate
    y: Coordinate
    radiusX: Coordinate  # noqa: N815
    radiusY: Coordinate  # noqa: N815
    rotation: Coordinate = 0

    def area(self, size: Size) -> np.ndarray:
        """Return (H, W) bool."""
        turns = [2 * math.pi * i / ELLIPSE_CORNERS for i in range(ELLIPSE_CORNERS)]
        corners = [(self.radiusX * math.cos(t), self.radiusY * math.sin(t)) for t in turns]
        return _turned(corners, (self.x, self.y), self.rotation, size)


class Brush(BaseModel):
    """Painted pixels."""

    format: Literal["rle"]
    rle: list[Byte]

    def area(self, size: Size) -> np.ndarray:
        """Return (H, W) bool."""
        return areas.of_packed_runs(bytes(self.rle), size)


# Told apart by what they hold: with the tag <Labels> all of them are of the type "labels".
SHAPES: Mapping[str, type[Polygon] | type[Ellipse] | type[Rectangle] | type[Brush]] = {
    "points": Polygon, "radiusX": Ellipse, "height": Rectangle, "rle": Brush,
}  # fmt: skip


class Region(BaseModel):
    """A region of an annotation."""

    type: str
    original_width: Side
    original_height: Side
    image_rotation: float = 0
    value: dict[str, Any]

    def drawn(self, size: Size) -> tuple[str, np.ndarray]:
        """Return the name of the class and (H, W) bool of what the region covers."""
        check_size((self.original_height, self.original_width), size)
        if self.image_rotation:
            raise ValueError(f"an image that is not turned, got {self.image_rotation} degrees")
        names = self.value.get(self.type)
        if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str):
            raise ValueError(f"one {self.type} for a region, got {names!r:.40}")
        shape = next((SHAPES[key] for key in SHAPES if key in self.value), None)
        if shape is None:
            raise ValueError(
                f"polygons, rectangles, ellipses and brushes, got a region of type {self.type}"
            )
        return names[0], checked(shape, self.value, self.type).area(size)


class Annotation(BaseModel):
    """What somebody drew; its regions are looked at when they are drawn."""

    result: list[Any]
    was_cancelled: bool = False
    created_at: AwareDatetime | None = None
    updated_at: AwareDatetime | None = None


class Task(BaseModel):
    """An image with its annotations."""

    data: dict[str, Any]
    annotations: list[Annotation]


@dataclass(frozen=True)
class LabelStudioFile:
    """The images of a file that somebody annotated, and the annotation of each that counts."""

    images: PathEnds
    annotations: list[Annotation]

    def drawn(self, picture: Path, size: Size) -> Iterator[tuple[str, np.ndarray]]:
        """Yield name of class and (H, W) bool of each region of an image, in order.

        Raises:
            ValueError: "<expected>, got <got>"; no such image, or a faulty region.
        """
        for item in self.annotations[self.images.known(picture)].result:
            kind = item.get("type") if isinstance(item, dict) else None
            if not isinstance(kind, str):
                raise ValueError(f"regions with a type, got {item!r:.40}")
            if kind.endswith("labels"):
                yield checked(Region, item, "a region of Label Studio").drawn(size)


def index(content: list[Any]) -> LabelStudioFile:
    """Return what an export of type JSON says.

    Raises:
        ValueError: "<expected>, got <got>"; another file.
    """
    try:
        tasks = TypeAdapter(list[Task]).validate_python(content)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise ValueError(
            f"Label Studio's export of type JSON, got at {where} ({fault['msg']})"
        ) from error
    paths, chosen = [], []
    for task in tasks:
        valid = [one for one in task.annotations if not one.was_cancelled]
        if valid:
            paths.append(_path_of(task.data))
            chosen.append(max(reversed(valid), key=_time))  # the last of those of one time
    return LabelStudioFile(PathEnds(paths), chosen)


def _time(one: Annotation) -> datetime:
    return one.updated_at or one.created_at or BEGINNING


def _path_of(data: Mapping[str, Any]) -> str:
    """Return the path of the image of a task, the only text of it or what goes by `image`."""
    texts = [value for value in data.values() if isinstance(value, str)]
    url = data.get("image", texts[0] if len(texts) == 1 else None)
    if not isinstance(url, str):
        raise ValueError(f"an image in the data of each task, got {dict(data)!r:.60}")
    parts = urlsplit(url)
    served = parse_qs(parts.query).get("d")
    path = served[-1] if served else unquote(parts.path)
    uploaded = UPLOADED.search(path)
    return HASH.sub("", uploaded[1]) if uploaded else path


def _in_pixels(points: list[Point], size: Size) -> list[Point]:
    height, width = size
    return [(x * width / 100, y * height / 100) for x, y in points]


def _turned(corners: list[Point], pivot: Point, degrees: float, size: Size) -> np.ndarray:
    """Return (H, W) bool of corners that are turned about a pivot they are relative to."""
    (left, top), *moved = _in_pixels([pivot, *corners], size)
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    turned = [(left + x * cosine - y * sine, top + x * sine + y * cosine) for x, y in moved]
    return areas.of_polygons([turned], size)
