"""Sheets to look at: a row an image, a captioned column each for what stages made of it."""

import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from datasets.files import read_cam, read_image, read_mask, read_saliency, read_truth, voc_palette
from datasets.pictures import CELL, GAP, caption_row, fit_cell, paint_mask
from datasets.record import Record, spread
from runfolder.run import Run
from saliency.surfaces import can_be_halved
from saliency.table import GENERATORS

Draw = Callable[[Record, np.ndarray], np.ndarray]  # record, its pixels -> picture in [0, 1]


def choose_records(records: Sequence[Record], count: int, seed: int | None) -> list[Record]:
    """Choose `count` records: evenly spaced, or at random by a seed."""
    if seed is not None:
        return random.Random(seed).sample(records, min(count, len(records)))
    return spread(records, count)


def run_sheet(run: Run, records: Sequence[Record]) -> np.ndarray:
    """Draw what a run made of some images.

    Returns:
        (H, W, 3) uint8, with the columns image, saliency, CAM, pseudo label, prediction and, where
        there is a mask, ground truth; cells of what is not there are black.
    """
    settings = run.config.pseudo_label
    cam_dir = run.cam_dir(settings.cam_type, "given")

    def cam(record: Record, image: np.ndarray) -> np.ndarray:
        maps = read_cam(cam_dir / f"{record.name}.npz")
        colours = voc_palette()[maps.classes + 1] / 255  # (M, 3)
        return np.clip(np.einsum("mhw,mc->hwc", maps.cam, 2 * colours), 0, 1)

    def mask(folder: Path) -> Draw:
        def draw(record: Record, image: np.ndarray) -> np.ndarray:
            path = folder / f"{record.name}.png"
            return paint_mask(image, read_mask(path, run.num_classes))

        return draw

    columns = {
        "image": _image,
        "saliency": _saliency_of(run),
        f"CAM ({settings.cam_type})": cam,
        "pseudo label": mask(run.pseudo_label_dir),
        "prediction": mask(run.prediction_dir),
    }
    return _sheet(run, records, columns)


def generator_sheet(run: Run, records: Sequence[Record], device: torch.device) -> np.ndarray:
    """Draw the maps of every saliency generator that the data allows, and last those of the run."""
    surfaces = [record for record in run.data.split("fit") if not record.classes]
    from_surfaces = ("normal", "variation") if can_be_halved(surfaces) else ()
    names = ["contrast", "feature", *from_surfaces]

    def map_of(name: str) -> Draw:
        settings = dataclasses.replace(run.config.saliency, generator=name)
        make_map = GENERATORS[name](settings, run.data, records, device).make_map
        return lambda record, image: _grey(make_map(record, image))

    columns = {"image": _image, **{name: map_of(name) for name in names}}
    return _sheet(run, records, {**columns, "of the run": _saliency_of(run)})


def _sheet(run: Run, records: Sequence[Record], columns: dict[str, Draw]) -> np.ndarray:
    if any(record.mask for record in records):

        def truth(record: Record, image: np.ndarray) -> np.ndarray:
            if record.mask is None:
                raise FileNotFoundError(record.name)
            return paint_mask(image, read_truth(record, run.num_classes))

        columns = {**columns, "ground truth": truth}
    rows = [caption_row(list(columns))]
    for record in records:
        image = read_image(record.image)
        cells = [_cell(draw, record, image) for draw in columns.values()]
        rows.append(np.concatenate(cells, axis=1))
    return np.concatenate(rows)


def _cell(draw: Draw, record: Record, image: np.ndarray) -> np.ndarray:
    """Fit a picture into the cell; black where its file is missing."""
    try:
        return fit_cell(draw(record, image))
    except FileNotFoundError:
        return np.zeros((CELL + GAP, CELL + GAP, 3), np.uint8)


def _image(record: Record, image: np.ndarray) -> np.ndarray:
    return image / 255


def _saliency_of(run: Run) -> Draw:
    folder = run.saliency_dir
    return lambda record, image: _grey(read_saliency(folder / f"{record.name}.png"))


def _grey(saliency: np.ndarray) -> np.ndarray:
    return np.repeat(saliency[..., None], 3, axis=2)
