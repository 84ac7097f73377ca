"""Ground truth that annotation tools draw: LabelMe files, COCO files, Label Studio's export.

A LabelMe file holds the shapes of one image; the others hold those of many, each image under a path
that must end the picture's. Defects go by the names of the classes. Where two overlap, the later
one is on top. COCO's crowd regions are defects like all others, as some tools mark every painted
region so.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel

from datasets import areas
from datasets.annotations import PathEnds, Side, check_size, checked, read_json
from datasets.areas import Coordinate, Point, Size
from datasets.label_studio import LabelStudioFile, index
from datasets.record import BACKGROUND

CIRCLE_CORNERS = 64

KINDS = "a LabelMe file (shapes), a COCO file (images) or Label Studio's export (a list)"

Id = int | str


class Shape(BaseModel):
    """A shape of a LabelMe file; its lines have no area."""

    label: str
    points: list[Point]
    shape_type: Literal["polygon", "rectangle", "oriented_rectangle", "circle", "mask"] = "polygon"
    mask: str | None = None  # null where another shape is meant

    def area(self, size: Size) -> np.ndarray:
        """Return (H, W) bool of what the shape covers."""
        needed = {"rectangle": 2, "circle": 2, "mask": 1}.get(self.shape_type, 0)
        if len(self.points) < needed:
            raise ValueError(f"{needed} points of a {self.shape_type}, got {len(self.points)}")
        if self.shape_type == "mask":
            return areas.of_picture(self.mask or "", self.points[0], size)
        return areas.of_polygons([self._corners()], size)

    def _corners(self) -> list[Point]:
        if self.shape_type in ("polygon", "oriented_rectangle"):
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
    imagePath: str | None = None  # noqa: N815

    def drawn(self, picture: Path, size: Size) -> Iterator[tuple[str, np.ndarray]]:
        """Yield name of class and (H, W) bool of each shape, in order; errors as of `CocoFile`."""
        check_size((self.imageHeight, self.imageWidth), size)
        for shape in self.shapes:
            yield shape.label, shape.area(size)


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


@dataclass(frozen=True)
class CocoFile:
    """What a COCO file says of each image."""

    images: PathEnds
    entries: list[CocoImage]  # by the number of the image
    annotations: dict[Id, list[CocoAnnotation]]  # by the id of the image
    categories: dict[Id, str]

    def drawn(self, picture: Path, size: Size) -> Iterator[tuple[str, np.ndarray]]:
        """Yield name of class and (H, W) bool of each annotation of an image, in order.

        Raises:
            ValueError: "<expected>, got <got>"; no such image, or a faulty annotation.
        """
        image = self.entries[self.images.known(picture)]
        check_size((image.height, image.width), size)
        for annotation in self.annotations.get(image.id, ()):
            if annotation.category_id not in self.categories:
                raise ValueError(f"a category of id {annotation.category_id!r}, got none")
            area = _coco_area(annotation.segmentation, size)
            yield self.categories[annotation.category_id], area


class Annotated(NamedTuple):
    """The images that an annotation file, or a folder of such files, has masks of.

    Attributes:
        kind: COCO, Label Studio or LabelMe.
        images: how their paths end.
        files: the file of each.
    """

    kind: str
    images: PathEnds
    files: list[Path]


def read_annotated(path: Path) -> Annotated:
    """List the images of a COCO file, a Label Studio file or a folder of LabelMe files.

    No outline is looked at.

    Raises:
        FileNotFoundError: no such file, or a folder without one.
        ValueError: another file.
    """
    if path.is_dir():
        files = sorted(path.rglob("*.json"))
        if not files:
            raise FileNotFoundError(
                f"{path}: expected LabelMe files (.json), found none. Correct data.annotations."
            )
        return Annotated("LabelMe", PathEnds([_image_path(file) for file in files]), files)
    if isinstance(content := _read(path), LabelMe):
        return Annotated("LabelMe", PathEnds([_image_path(path)]), [path])
    kind = "COCO" if isinstance(content, CocoFile) else "Label Studio"
    return Annotated(kind, content.images, [path] * len(content.images.paths))


def read_outlines(path: Path, picture: Path, size: Size, class_names: Sequence[str]) -> np.ndarray:
    """Draw the outlines of one image as (H, W) uint8 mask values.

    What lies outside of the image is cut off.

    Args:
        path: LabelMe, COCO or Label Studio file.
        picture: the image, by which its shapes are found in a file of several.
        size: (H, W) of the image.
        class_names: mask value k + 1 goes by the name k.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, an image or a name that it does not know, an image of another
            size, or no area.
    """
    content = _read(path)
    truth = np.full(size, BACKGROUND, np.uint8)
    try:
        for name, area in content.drawn(picture, size):
            if name not in class_names:
                raise ValueError(f"names of {', '.join(class_names)}, got {name!r}")
            truth[area] = class_names.index(name) + 1
    except ValueError as error:
        raise ValueError(
            f"{path}: expected {error}. Correct the annotation of {picture}."
        ) from error
    return truth


def _read(path: Path) -> LabelMe | CocoFile | LabelStudioFile:
    """Read an annotation file; of what kind it is its content tells."""
    return _read_once(path, path.stat().st_mtime_ns if path.is_file() else 0)


@functools.lru_cache(maxsize=4)
def _read_once(path: Path, changed: int) -> LabelMe | CocoFile | LabelStudioFile:
    content = read_json(path)
    try:
        if isinstance(content, list):
            return index(content)
        if not isinstance(content, dict):
            raise ValueError(f"{KINDS}, got a {type(content).__name__}")
        if "shapes" in content:
            return checked(LabelMe, content, "a LabelMe file")
        return _index_coco(checked(Coco, content, KINDS))
    except ValueError as error:
        raise ValueError(f"{path}: expected {error}. Export it again.") from error


def _image_path(path: Path) -> str:
    """Return which image a LabelMe file says it is of.

    Raises:
        ValueError: not a LabelMe file, or one that does not say it.
    """
    content = _read(path)
    if isinstance(content, LabelMe) and content.imagePath:
        return content.imagePath
    raise ValueError(
        f"{path}: expected a LabelMe file with an imagePath, got another file. Correct "
        "data.annotations, or remove the file."
    )


def _index_coco(content: Coco) -> CocoFile:
    annotations: dict[Id, list] = {}
    for annotation in content.annotations:
        annotations.setdefault(annotation.image_id, []).append(annotation)
    images = PathEnds(image.file_name for image in content.images)
    categories = {category.id: category.name for category in content.categories}
    return CocoFile(images, content.images, annotations, categories)


def _coco_area(segmentation: Any, size: Size) -> np.ndarray:
    if isinstance(segmentation, dict):
        packed = checked(RunLengths, segmentation, "run lengths")
        if packed.size != size:
            raise ValueError(f"run lengths of size {size}, got {packed.size}")
        return areas.of_run_lengths(packed.counts, size)
    polygons = checked(Polygons, {"polygons": segmentation}, "outlines").polygons
    if odd := [polygon for polygon in polygons if len(polygon) % 2]:
        raise ValueError(f"pairs of x and y, got {odd[0][:7]}")
    return areas.of_polygons([[*zip(p[::2], p[1::2], strict=True)] for p in polygons], size)
