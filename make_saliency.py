"""Stage 1: images and image labels -> saliency/<name>.png. Only --masks opens masks."""

import argparse
import dataclasses
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from tqdm import tqdm

from configs.command_line import load_run, run_stage, save_config, stage_parser
from configs.schema import Config, RefinementConfig
from datasets.files import read_image, write_saliency
from datasets.record import Record
from datasets.sources import read_data
from models.device import select_device
from saliency import fuse, refinement
from saliency.generator import Prepared

DESCRIPTION = """\
Make a saliency map per image from images and image labels; no mask is opened but with --masks.

saliency.generator says how: contrast (whether a class is dark or bright is learnt from the labels),
feature (patches that differ from the rest of their image), normal (patches that no defect-free
image has), variation (what varies within images of a class and not within defect-free ones),
external (your own maps), fuse (several of them), auto (normal and variation where there are
defect-free images, else contrast). What is learnt comes from the training split; maps are written
for it and for data.eval_split. With --refine N a small network learns from these maps what is alike
in all of them, N times over. --device is for networks."""
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
    config = dataclasses.replace(config, refinement=_refinement(config.refinement, args))
    if args.from_dir:
        external = dataclasses.replace(
            config.saliency, generator="external", folder=str(args.from_dir)
        )
        config = dataclasses.replace(config, saliency=external)
    data = read_data(config.data, out_dir / "labels.csv")
    save_config(config, out_dir)
    splits = args.split or data.default_splits(config.data.eval_split)
    records = data.records(splits)
    empty = config.saliency.empty_defect_free
    device = select_device(args.device)
    generator = fuse.make_generator(config.saliency, data, records, device)
    for left_over in out_dir.glob(".refinement_*"):  # of a call that was killed
        shutil.rmtree(left_over)
    with TemporaryDirectory(dir=out_dir, prefix=".refinement_") as folder:
        for turn in range(config.refinement.rounds):
            print(f"refinement, round {turn + 1} of {config.refinement.rounds}", flush=True)
            generator = refinement.prepare(
                config.refinement, generator, data, Path(folder), device, turn
            )
        _write_maps(records, generator, out_dir / "saliency", empty)
    _write_meta(out_dir / "saliency", config, splits, generator)
    defect_free = sum(not record.classes for record in records)
    print(
        f"{out_dir / 'saliency'}: {len(records)} maps of {', '.join(dict.fromkeys(splits))}, "
        f"{defect_free} of them of defect-free images{' and empty' if empty else ''}."
    )
    for line in generator.lines:
        print(f"  {line}")
    print(f"next: python train_stac.py --config {out_dir / 'config.toml'} --out {out_dir}")


def _refinement(settings: RefinementConfig, args: argparse.Namespace) -> RefinementConfig:
    """Apply --refine, --from-dir and --masks."""
    rounds = 0 if args.from_dir and args.refine is None else args.refine
    if rounds is not None:
        settings = dataclasses.replace(settings, rounds=rounds)
    if args.masks is not None:
        settings = dataclasses.replace(settings, masks=args.masks)
    if settings.masks and not settings.rounds:
        raise ValueError(
            f"refinement.masks={settings.masks}: expected a round of refinement to use them, got "
            "none. Add --refine 1."
        )
    return settings


def _parser() -> argparse.ArgumentParser:
    parser = stage_parser(DESCRIPTION, EPILOG)
    parser.add_argument(
        "--split",
        nargs="+",
        choices=("train", "fit", "val", "test"),
        help="splits to write maps for (default: train, val and data.eval_split)",
    )
    parser.add_argument(
        "--from-dir",
        type=Path,
        metavar="DIR",
        help="take your own maps from DIR, <name>.png (or .jpg, .bmp, .tif, .webp) of the size of "
        "the image",
    )
    parser.add_argument(
        "--refine",
        type=int,
        metavar="N",
        help="rounds of learned refinement (default: refinement.rounds; with --from-dir none)",
    )
    parser.add_argument(
        "--masks",
        type=int,
        metavar="N",
        help="use N pixel masks of training images in the refinement, drawn by refinement.seed "
        "(default: refinement.masks, 0); these images are left out of every evaluation",
    )
    return parser


def _write_maps(
    records: Sequence[Record], generator: Prepared, saliency_dir: Path, empty: bool
) -> None:
    """Write every map that can be made.

    Args:
        records: images to write maps for.
        generator: gives the map of a record and its image.
        saliency_dir: where <name>.png goes.
        empty: the maps of defect-free images become all zero.

    Raises:
        ValueError: with the first five problems and their total, after all other maps.
    """
    problems = dict(generator.problems)
    (saliency_dir / "meta.json").unlink(missing_ok=True)  # back only when all maps are there
    for record in tqdm(records, desc="saliency", unit="image", disable=None):
        try:
            image = read_image(record.image)
            if empty and not record.classes:
                saliency = np.zeros(image.shape[:2], np.float32)
            else:
                saliency = generator.make_map(record, image)
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
    saliency_dir: Path, config: Config, splits: Sequence[str], generator: Prepared
) -> None:
    """Write how the maps were made."""
    sections = {"settings": config.saliency, "refinement": config.refinement}
    settings = {name: dataclasses.asdict(section) for name, section in sections.items()}
    meta = {**settings, "splits": list(splits), **generator.facts}
    temporary = saliency_dir / f".meta.json.{os.getpid()}.tmp"
    temporary.write_text(json.dumps(meta, indent=2), encoding="utf-8")
    temporary.replace(saliency_dir / "meta.json")


if __name__ == "__main__":
    run_stage(main)
