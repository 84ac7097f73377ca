"""Draw what a run made of some images, one row each, to look at: OUT/sheet_<split>.png.

Columns: image, saliency, CAM (its classes in their colours), pseudo label, prediction, and truth
where there are masks; what has not been made yet stays black. Colours are those of PASCAL VOC
masks, white is 255. With --saliency the columns between image and truth are the maps of every
generator that the data allows, made for these images, and last those of the run:
OUT/saliency_sheet_<split>.png.
"""

import argparse
import dataclasses
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from configs.command_line import load_run, run_stage, stage_parser
from configs.schema import Config
from datasets.files import (
    read_cam,
    read_image,
    read_mask,
    read_saliency,
    read_truth,
    voc_palette,
    write_image,
)
from datasets.pictures import CELL, GAP, colour_legend, fit_cell, paint_mask
from datasets.record import Record
from datasets.sources import Data, read_data
from models.device import select_device
from saliency.fuse import GENERATORS
from saliency.generator import MakeMap


def main(argv: Sequence[str] | None = None) -> None:
    """Write one sheet."""
    parser = stage_parser(__doc__)
    parser.add_argument("--split", help="split to draw (default: data.eval_split)")
    parser.add_argument("--count", type=int, default=10, help="images to draw (default: 10)")
    parser.add_argument(
        "--random", type=int, metavar="SEED", help="draw images at random (default: evenly spaced)"
    )
    parser.add_argument(
        "--saliency", action="store_true", help="compare the maps of all saliency generators"
    )
    args = parser.parse_args(argv)
    config, out_dir = load_run(args)
    if args.count < 1:
        raise ValueError(f"--count: expected 1 or more, got {args.count}.")
    split = args.split or config.data.eval_split
    data = read_data(config.data, out_dir / "labels.csv")
    num_classes = len(data.class_names)
    records = _choose([r for r in data.split(split) if r.classes or not args.saliency], args)
    if args.saliency:
        titles, rows = _saliency_rows(config, data, records, out_dir, select_device(args.device))
        print(f"columns: {', '.join(titles)}")
    else:
        rows = [_cells(record, out_dir, num_classes) for record in records]
    path = out_dir / f"{'saliency_' if args.saliency else ''}sheet_{split}.png"
    write_image(path, np.concatenate([np.concatenate(row, axis=1) for row in rows]))
    print(f"wrote {path}: {len(rows)} images; {colour_legend(data.class_names)}")


def _choose(records: Sequence[Record], args: argparse.Namespace) -> list[Record]:
    """Choose the images to draw."""
    if args.random is not None:
        return random.Random(args.random).sample(records, min(args.count, len(records)))
    step = max(1, len(records) // args.count)
    return list(records[::step][: args.count])


def _saliency_rows(
    config: Config, data: Data, records: Sequence[Record], out_dir: Path, device: torch.device
) -> tuple[list[str], list[list[np.ndarray]]]:
    """Return the titles of the columns, and cells of each record."""
    has_surfaces = any(not record.classes for record in data.split("train"))
    names = ["contrast", "feature", *(("normal", "variation") if has_surfaces else ())]
    makers = {}
    for name in names:
        settings = dataclasses.replace(config.saliency, generator=name)
        makers[name] = GENERATORS[name](settings, data, records, device).make_map
    num_classes = len(data.class_names)
    rows = [_saliency_cells(record, makers, out_dir, num_classes) for record in records]
    return ["image", *names, "run", "truth"], rows


def _saliency_cells(
    record: Record, makers: Mapping[str, MakeMap], out_dir: Path, num_classes: int
) -> list[np.ndarray]:
    image = read_image(record.image)
    maps = [_grey(make_map(record, image)) for make_map in makers.values()]

    def of_the_run() -> np.ndarray:
        return _grey(read_saliency(out_dir / f"saliency/{record.name}.png"))

    cells = [fit_cell(image / 255), *map(fit_cell, maps), _cell(of_the_run)]
    if record.mask:
        cells.append(fit_cell(paint_mask(image, read_truth(record, num_classes))))
    return cells


def _grey(saliency: np.ndarray) -> np.ndarray:
    return np.repeat(saliency[..., None], 3, axis=2)


def _cells(record: Record, out_dir: Path, num_classes: int) -> list[np.ndarray]:
    image = read_image(record.image)

    def saliency() -> np.ndarray:
        return _grey(read_saliency(out_dir / f"saliency/{record.name}.png"))

    def cam() -> np.ndarray:
        found = read_cam(out_dir / f"cams/{record.name}.npz")
        colours = voc_palette()[found.classes + 1] / 255  # (M, 3)
        return np.clip(np.einsum("mhw,mc->hwc", found.cam, 2 * colours), 0, 1)

    def mask(folder: str) -> Callable[[], np.ndarray]:
        path = out_dir / folder / f"{record.name}.png"
        return lambda: paint_mask(image, read_mask(path, num_classes))

    columns: list[Callable[[], np.ndarray]] = [
        lambda: image / 255,
        saliency,
        cam,
        mask("pseudo_labels"),
        mask("predictions"),
    ]
    if record.mask:
        columns.append(lambda: paint_mask(image, read_truth(record, num_classes)))
    return [_cell(column) for column in columns]


def _cell(draw: Callable[[], np.ndarray]) -> np.ndarray:
    """Fit a picture into the cell; black where its file is missing."""
    try:
        return fit_cell(draw())
    except FileNotFoundError:
        return np.zeros((CELL + GAP, CELL + GAP, 3), np.uint8)


if __name__ == "__main__":
    run_stage(main)
