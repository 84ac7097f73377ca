"""Stage 1: images and image labels -> saliency/<name>.png. No mask is opened."""

import argparse
import dataclasses
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from configs.command_line import load_run, run_stage, save_config, stage_parser
from configs.schema import Config, SaliencyConfig
from datasets.files import IMAGE_SUFFIXES, read_image, read_saliency, write_saliency
from datasets.record import Record
from datasets.sources import Data, read_data
from saliency.contrast import Polarity, contrast_map, learn_polarities, residual, skewness

MAX_VOTES = 200  # images per label that polarities are learnt from; a median needs no more

DESCRIPTION = """\
Make a saliency map per image from images and image labels; no mask is opened.

Whether a class is dark or bright is learnt from the training split's labels; maps are written for
the training split and data.eval_split. Runs on the CPU, whatever --device says."""
EPILOG = """\
examples:
  python make_saliency.py
  python make_saliency.py --config configs/neu_seg.toml --set data.root=NEU_Seg --out runs/neu
  python make_saliency.py --config configs/mtd.toml --out runs/mtd --from-dir my_maps

writes OUT/saliency/<name>.png (grey, 255 = salient), OUT/saliency/meta.json"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage."""
    args = _parser().parse_args(argv)
    config, out_dir = load_run(args)
    if args.from_dir:
        external = dataclasses.replace(
            config.saliency, generator="external", folder=str(args.from_dir)
        )
        config = dataclasses.replace(config, saliency=external)
    save_config(config, out_dir)
    data = read_data(config.data, out_dir / "labels.csv")
    splits = args.split or ["train", config.data.eval_split]
    records = list({r.name: r for split in splits for r in data.split(split)}.values())
    problems: dict[str, str] = {}
    if config.saliency.generator == "external":
        polarities = None
        make_map = _external_maps(Path(config.saliency.folder).expanduser(), records, config)
    else:
        polarities = _polarities(data, config.saliency, problems)
        make_map = _contrast_maps(polarities, config.saliency)
    _write_maps(records, make_map, out_dir / "saliency", problems)
    _write_meta(out_dir / "saliency", config, data, splits, polarities)
    defect_free = sum(not record.classes for record in records)
    print(
        f"{out_dir / 'saliency'}: {len(records)} maps of {', '.join(dict.fromkeys(splits))}, "
        f"{defect_free} of them of defect-free images and empty."
    )
    for name, polarity in zip(data.class_names, polarities or (), strict=polarities is not None):
        print(f"  {name}: {_evidence(polarity)}")
    print(f"next: python train_stac.py --config {out_dir / 'config.toml'} --out {out_dir}")


def _parser() -> argparse.ArgumentParser:
    parser = stage_parser(DESCRIPTION, EPILOG)
    parser.add_argument(
        "--split",
        nargs="+",
        choices=("train", "fit", "val", "test"),
        help="splits to write maps for (default: train and data.eval_split)",
    )
    parser.add_argument(
        "--from-dir",
        type=Path,
        metavar="DIR",
        help="take your own maps from DIR, <name>.png (or .jpg, .bmp, .tif) of the image's size",
    )
    return parser


def _polarities(
    data: Data, settings: SaliencyConfig, problems: dict[str, str]
) -> tuple[Polarity, ...]:
    """Learn each class' polarity from the training split, or take the one the config sets."""
    if settings.polarity != "auto":
        return tuple(Polarity(settings.polarity) for _ in data.class_names)
    skewnesses, labels, voters = [], [], []
    for classes in [(), *((k,) for k in range(len(data.class_names)))]:
        alike = [record for record in data.split("train") if record.classes == classes]
        voters += alike[:: max(1, math.ceil(len(alike) / MAX_VOTES))]
    for record in tqdm(voters, desc="polarity", unit="image", disable=None):
        try:
            image = read_image(record.image)
        except (ValueError, FileNotFoundError) as error:
            problems[record.name] = str(error)
            continue
        skewnesses.append(skewness(residual(image, settings.blur, settings.windows)))
        labels.append(record.classes)
    return learn_polarities(skewnesses, labels, len(data.class_names))


def _contrast_maps(
    polarities: Sequence[Polarity], settings: SaliencyConfig
) -> Callable[[Record, np.ndarray], np.ndarray]:
    def make_map(record: Record, image: np.ndarray) -> np.ndarray:
        sides = [polarities[k].side for k in record.classes]
        return contrast_map(image, sides, settings.blur, settings.windows, settings.percentile)

    return make_map


def _external_maps(
    folder: Path, records: Sequence[Record], config: Config
) -> Callable[[Record, np.ndarray], np.ndarray]:
    """Find the user's map of every image that has a defect; defect-free ones need none.

    Of several files for one image the PNG, which comes last, is taken.
    """
    if not config.saliency.folder:
        raise ValueError(
            "saliency.folder: expected the folder of your maps, got ''. Set it or give --from-dir."
        )
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder of saliency maps, found none.")
    paths = {
        path.stem: path
        for path in sorted(folder.iterdir(), key=lambda path: path.suffix.lower() == ".png")
        if path.suffix.lower() in IMAGE_SUFFIXES
    }
    missing = [record.name for record in records if record.classes and record.name not in paths]
    if missing:
        raise FileNotFoundError(
            f"{folder}: expected a map <name>.png for every image with a defect, found "
            f"{len(paths)} maps; {len(missing)} are missing: {', '.join(missing[:5])}. Add them."
        )

    def make_map(record: Record, image: np.ndarray) -> np.ndarray:
        if not record.classes:
            return np.zeros(image.shape[:2], np.float32)
        saliency = read_saliency(paths[record.name])
        if saliency.shape != image.shape[:2]:
            raise ValueError(
                f"{paths[record.name]}: expected the size of its image, {image.shape[0]} x "
                f"{image.shape[1]}, got {saliency.shape[0]} x {saliency.shape[1]}. Resize it."
            )
        return saliency

    return make_map


def _write_maps(
    records: Sequence[Record],
    make_map: Callable[[Record, np.ndarray], np.ndarray],
    saliency_dir: Path,
    problems: dict[str, str],
) -> None:
    """Write every map that can be made.

    Args:
        records: images to write maps for.
        make_map: gives the (H, W) map in [0, 1] of a record and its image.
        saliency_dir: where <name>.png goes.
        problems: what went wrong so far, by image name; adds to it.

    Raises:
        ValueError: with the first five problems and their total, after all other maps.
    """
    (saliency_dir / "meta.json").unlink(missing_ok=True)  # back only when all maps are there
    for record in tqdm(records, desc="saliency", unit="image", disable=None):
        try:
            saliency = make_map(record, read_image(record.image))
        except (ValueError, FileNotFoundError) as error:
            problems[record.name] = str(error)
            continue
        write_saliency(saliency_dir / f"{record.name}.png", saliency)
    if problems:
        shown = " | ".join(list(problems.values())[:5])
        raise ValueError(
            f"{saliency_dir}: expected a map for every image, {len(problems)} could not be made; "
            f"the first: {shown}"
        )


def _write_meta(
    saliency_dir: Path,
    config: Config,
    data: Data,
    splits: Sequence[str],
    polarities: Sequence[Polarity] | None,
) -> None:
    """Write how the maps were made."""
    meta = {"settings": dataclasses.asdict(config.saliency), "splits": list(splits)}
    if polarities is not None:
        named = zip(data.class_names, polarities, strict=True)
        meta["polarities"] = {name: polarity._asdict() for name, polarity in named}
    temporary = saliency_dir / f".meta.json.{os.getpid()}.tmp"
    temporary.write_text(json.dumps(meta, indent=2), encoding="utf-8")
    temporary.replace(saliency_dir / "meta.json")


def _evidence(polarity: Polarity) -> str:
    if not polarity.num_images:
        return f"{polarity.side} (set, or no training image carries this class alone)"
    return (
        f"{polarity.side} (skewness {polarity.shift:+.2f}, spread {polarity.spread:.2f}, "
        f"{polarity.num_images} images)"
    )


if __name__ == "__main__":
    run_stage(main)
