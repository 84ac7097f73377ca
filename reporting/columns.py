"""The columns of a sheet: what a run made of its images, read and painted."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import cv2
import numpy as np

from datasets.files import Cam, read_cam, read_image, read_mask, read_saliency, read_truth
from datasets.pictures import paint_cam, paint_grey, paint_mask
from datasets.record import BACKGROUND, IGNORE, Record
from reporting.images import COMMON, MASK_PANELS, PANELS, cam_folder
from reporting.pictures import class_colours, fitted
from runfolder.run import KINDS, Run

Made = np.ndarray | Cam


class Column(NamedTuple):
    """One column.

    Attributes:
        caption: above it.
        kind: of what is read.
        read: gives of a record and its pixels (H, W, 3) an image, a map (H, W) in [0, 1], CAMs or
            mask values (H, W); FileNotFoundError where there is nothing.
        made_by: the script that makes its files; "" where none does.
    """

    caption: str
    kind: Literal["image", "map", "cam", "mask"]
    read: Callable[[Record, np.ndarray], Made]
    made_by: str


class Row(NamedTuple):
    """One image of a sheet.

    Attributes:
        record: the image.
        size: of the image, (H, W) in pixels.
        pictures: (h, w, 3) in [0, 1] of each column; None where there is nothing.
        values: mask values of its label and its masks.
    """

    record: Record
    size: tuple[int, int]
    pictures: list[np.ndarray | None]
    values: set[int]


def stage_columns(runs: Mapping[str, Run], names: Sequence[str]) -> list[Column]:
    """Return the columns of one run or several.

    Args:
        runs: by what they are called; image and ground truth are those of the first.
        names: of `PANELS`, in order. With several runs, a stage has a column for each of them.
    """
    first = next(iter(runs.values()))
    num_stages = len(set(names) - set(COMMON))
    columns = []
    for name in names:
        if name in COMMON or len(runs) == 1:
            columns.append(_column(first, name))
            continue
        for called, run in runs.items():
            column = _column(run, name)
            caption = called if num_stages == 1 else f"{column.caption}, {called}"
            columns.append(column._replace(caption=caption))
    return columns


def map_column(caption: str, make_map: Callable[[Record, np.ndarray], np.ndarray]) -> Column:
    """Return the column of maps that are made for the sheet."""
    return Column(caption, "map", make_map, "")


def _column(run: Run, name: str) -> Column:
    """Return a column of one run."""

    def saliency(record: Record, _: np.ndarray) -> np.ndarray:
        return read_saliency(run.saliency_dir / f"{record.name}.png")

    def cam(record: Record, _: np.ndarray) -> Cam:
        return read_cam(cam_folder(run) / f"{record.name}.npz")

    def mask(record: Record, _: np.ndarray) -> np.ndarray:
        return read_mask(run.maps_dir(kind) / f"{record.name}.png", run.num_classes)

    def truth(record: Record, _: np.ndarray) -> np.ndarray:
        if record.mask is None:
            raise FileNotFoundError(record.name)
        return read_truth(record, run.num_classes)

    match name:
        case "image":
            return Column("image", "image", lambda _, image: image, "")
        case "truth":
            return Column("ground truth", "mask", truth, "")
        case "saliency":
            return Column("saliency", "map", saliency, KINDS["saliency"])
        case "cam":
            caption = f"CAM ({run.config.pseudo_label.cam_type})"
            return Column(caption, "cam", cam, KINDS["cam"])
    kind = next(kind for kind, panel in MASK_PANELS.items() if panel == name)
    return Column(PANELS[name].title, "mask", mask, KINDS[kind])


def read_row(record: Record, columns: Sequence[Column], names: Sequence[str], side: int) -> Row:
    """Read and paint the pictures of an image, not larger than they are shown.

    Args:
        record: the image.
        columns: what is shown of it.
        names: of the K classes.
        side: of a picture, in pixels, at most.
    """
    image = read_image(record.image)
    colours = np.zeros((256, 3), np.uint8)
    colours[IGNORE] = 255
    for k, colour in enumerate(class_colours(len(names)), start=1):
        colours[k] = [*bytes.fromhex(colour[1:])]
    height, width = fitted(image.shape[:2], side)
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    pictures: list[np.ndarray | None] = []
    values = {k + 1 for k in record.classes}
    for column in columns:
        try:
            made = column.read(record, image)
        except FileNotFoundError:
            pictures.append(None)
            continue
        pictures.append(_painted(column, made, small, colours))
        if column.kind == "mask":
            values |= set(np.unique(made).tolist()) - {BACKGROUND}
    return Row(record, image.shape[:2], pictures, values)


def _painted(column: Column, made: Made, image: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Return what a column shows, of the size of `image`, (h, w, 3) in [0, 1]."""
    height, width = image.shape[:2]

    def resized(values: np.ndarray, how: int = cv2.INTER_AREA) -> np.ndarray:
        return cv2.resize(values, (width, height), interpolation=how)

    match column.kind:
        case "map":
            return paint_grey(np.clip(resized(made.astype(np.float32)), 0, 1))
        case "cam":
            maps = [resized(one.astype(np.float32)) for one in made.cam]
            cam = np.array(maps, np.float32).reshape(-1, height, width)
            return paint_cam(image, np.clip(cam, 0, 1), made.classes, colours)
        case "mask":
            return paint_mask(image, resized(made, cv2.INTER_NEAREST), colours)
    return image / 255
