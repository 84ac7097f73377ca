"""Ground truth that annotation tools draw as outlines: LabelMe files and COCO files.

A LabelMe file holds the shapes of one image; a COCO file holds those of many, each image under a
path of which the last parts must be those of the picture's. Defects go by the names of the classes.
Where two overlap, the later one is on top. COCO's crowd regions are defects like all others, as
some tools mark every painted region so.
"""

import functools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from datasets import areas
from datasets.areas import Coordinate, Point, Size
from datasets.record import BACKGROUND

CIRCLE_CORNERS = 64

Id = int | str
Side = Annotated[int, Field(ge=1)]


class Shape(BaseModel):
    """A shape of a LabelMe file; its lines have no area."""

    label: str
    points: list[Point]
    shape_type: Literal["polygon", "rectangle", "circle", "mask"] = "polygon"
    mask: str = ""

    def area(self, size: Size) -> np.ndarray:
        """Return (H, W) bool of what the shape covers."""
        needed = {"rectangle": 2, "circle": 2, "mask": 1}.get(self.shape_type, 0)
        if len(self.points) < needed:
            raise ValueError(f"{needed} points of a {self.shape_type}, got {len(self.points)}")
        if self.shape_type == "mask":
            return areas.of_picture(self.mask, self.points[0], size)
        return areas.of_polygons([self._corners()], size)

    def _corners(self) -> list[Point]:
        if self.shape_type == "polygon":
            return self.points
        first, last = self.points[0], self.points[-1]
        if self.shape_type == "rectangle":
            return [first, (last[0], first[1]), last, (first[0], last[1])]
        radius = math.dist(first, last)
        turns = [2 * math.pi * i / CIRCLE_CORNERS for i in range(CIRCLE_CORNERS)]
        return [(first[0] + radius * math.cos(t), first[1] + radius * math.sin(t)) for t in turns]


class LabelMe(BaseModel):
    """A LabelMe file."""

    shapes: list[Shape]
    imageHeight: Side  # noqa: N815
    imageWidth: Side  # noqa: N815


class CocoImage(BaseModel):
    """An image of a COCO file."""

    id: Id
    file_name: str
    height: Side
    width: Side


class CocoCategory(BaseModel):
    """A class of a COCO file."""

    id: Id
    name: str


class CocoAnnotation(BaseModel):
    """An outline of a COCO file; what it encloses is looked at when it is drawn."""

    image_id: Id
    category_id: Id
    segmentation: Any


class Coco(BaseModel):
    """A COCO file."""

    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]


class RunLengths(BaseModel):
    """Of a COCO annotation."""

    size: tuple[int, int]
    counts: list[int] | str


class Polygons(BaseModel):
    """Of a COCO annotation: x, y, x, y, ... each."""

    polygons: list[list[Coordinate]]


Schema = TypeVar("Schema", bound=BaseModel)


@dataclass(frozen=True)
class CocoFile:
    """What a COCO file says of each image, found by file name."""

    images: dict[str, list[tuple[PurePosixPath, CocoImage]]]  # file name -> path, image
    annotations: dict[Id, list[CocoAnnotation]]  # by image id
    categories: dict[Id, str]

    def image_of(self, picture: Path) -> CocoImage | None:
        """Return the entry whose path ends the picture's, the longest if several do, or None."""
        parts = picture.parts
        ends = [
            (len(path.parts), i)
            for i, (path, _) in enumerate(self.images.get(picture.name, ()))
            if path.parts == parts[-len(path.parts) :]
        ]
        return self.images[picture.name][max(ends)[1]][1] if ends else None


def read_outlines(path: Path, picture: Path, size: Size, class_names: Sequence[str]) -> np.ndarray:
    """Draw the outlines of one image as (H, W) uint8 mask values.

    What lies outside of the image is cut off.

    Args:
        path: LabelMe or COCO file.
        picture: the image, by which its shapes are found in a COCO file.
        size: (H, W) of the image.
        class_names: mask value k + 1 goes by the name k.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, an image or a name that it does not know, an image of another
            size, or no area.
    """
    content = _read_json(path)
    coco = None if "shapes" in content else read_coco(path)
    truth = np.full(size, BACKGROUND, np.uint8)
    try:
        drawn = _coco(coco, picture, size) if coco else _labelme(content, size)
        for name, area in drawn:
            if name not in class_names:
                raise ValueError(f"names of {', '.join(class_names)}, got {name!r}")
            truth[area] = class_names.index(name) + 1
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
    try:
        content = _checked(Coco, _read_json(path), "a LabelMe file (shapes) or a COCO file")
    except ValueError as error:
        raise ValueError(f"{path}: expected {error}. Export it again.") from error
    images: dict[str, list] = {}
    for image in content.images:
        file = PurePosixPath(image.file_name.replace("\\", "/"))
        file = PurePosixPath(*(part for part in file.parts if part != "."))
        images.setdefault(file.name, []).append((file, image))
    annotations: dict[Id, list] = {}
    for annotation in content.annotations:
        annotations.setdefault(annotation.image_id, []).append(annotation)
    return CocoFile(images, annotations, {c.id: c.name for c in content.categories})


def _labelme(content: dict[str, Any], size: Size) -> Iterator[tuple[str, np.ndarray]]:
    file = _checked(LabelMe, content, "a LabelMe file")
    _check_size((file.imageHeight, file.imageWidth), size)
    for shape in file.shapes:
        yield shape.label, shape.area(size)


def _coco(coco: CocoFile, picture: Path, size: Size) -> Iterator[tuple[str, np.ndarray]]:
    image = coco.image_of(picture)
    if image is None:
        raise ValueError(f"an entry of {picture.name}, got none")
    _check_size((image.height, image.width), size)
    for annotation in coco.annotations.get(image.id, ()):
        if annotation.category_id not in coco.categories:
            raise ValueError(f"a category of id {annotation.category_id!r}, got none")
        yield coco.categories[annotation.category_id], _coco_area(annotation.segmentation, size)


def _coco_area(segmentation: Any, size: Size) -> np.ndarray:
    if isinstance(segmentation, dict):
        packed = _checked(RunLengths, segmentation, "run lengths")
        if packed.size != size:
            raise ValueError(f"run lengths of size {size}, got {packed.size}")
        return areas.of_run_lengths(packed.counts, size)
    polygons = _checked(Polygons, {"polygons": segmentation}, "outlines").polygons
    if odd := [polygon for polygon in polygons if len(polygon) % 2]:
        raise ValueError(f"pairs of x and y, got {odd[0][:7]}")
    return areas.of_polygons([[*zip(p[::2], p[1::2], strict=True)] for p in polygons], size)


def _check_size(said: Size, size: Size) -> None:
    if said != size:
        raise ValueError(f"the size of the picture, {size}, got {said}")


def _checked(schema: type[Schema], content: Any, what: str) -> Schema:
    """Return content as a schema says it.

    Raises:
        ValueError: "<what> ..., got ..." of the first fault.
    """
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"]))
        got = "" if fault["type"] == "missing" else f": {fault['input']!r:.40}"
        raise ValueError(f"{what}, got at {where}{got} ({fault['msg']})") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: expected an annotation file, found none.") from error
    except (ValueError, RecursionError) as error:  # of JSON, of UTF-8, of numbers of 4,300 digits
        raise ValueError(f"{path}: expected JSON, got: {error}. Export it again.") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{path}: expected a LabelMe file (shapes) or a COCO file (images, annotations, "
            f"categories), got a {type(content).__name__}. Export it again."
        )
    return content
