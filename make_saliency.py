"""Stage 1: images and image labels -> saliency/<name>.png. Only --masks opens masks."""

import argparse
import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from configs import Config, changed
from configs.command_line import run_stage, stage_parser
from datasets.files import read_image, write_saliency
from datasets.record import Record
from datasets.sources import draw_warnings
from execution import ranks
from execution.cores import on_cores
from execution.progress import progress
from models.device import processes_for, select_device
from pipeline import next_step
from runfolder.run import (
    Run,
    SaliencyMeta,
    begin_folder,
    masked_in,
    open_run,
    read_meta,
    write_meta,
)
from saliency import learned
from saliency.generator import Prepared
from saliency.table import make_generator

DESCRIPTION = """\
Make a saliency map per image from images and image labels; no mask is opened but with --masks.

saliency.generator says how: contrast (whether a class is dark or bright is learnt from the labels),
feature (patches that differ from the rest of their image), normal (patches that no defect-free
image has), variation (what varies within images of a class and not within defect-free ones),
external (your own maps), auto (normal and variation where there are defect-free images, else
contrast). What is learnt comes from the training images outside the validation part; maps are
written for both and for data.eval_split. With --refine N a small network learns from these maps
what is alike in all of them, N times over. --device is for networks."""
EPILOG = """\
examples:
  python make_saliency.py
  python make_saliency.py --config configs/neu_seg.toml --set data.root=NEU_Seg --out runs/neu
  python make_saliency.py --config configs/mtd.toml --out runs/mtd --from-dir my_maps

writes OUT/saliency/<name>.png (grey, 255 = salient), OUT/saliency/meta.json"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the stage."""
    args = _parser().parse_args(argv)
    run = open_run(args)
    device = ranks.join(select_device(args.device))
    run = Run(run.folder, changed(run.config, _flags(run.config, args)))
    config, data = run.config, run.data
    run.begin_stage(run.saliency_dir)
    for line in draw_warnings(data):
        print(f"warning: {line}")
    splits = args.split or data.default_splits(config.data.eval_split)
    records = data.records(splits)
    external = config.saliency.generator == "external"
    brought = read_meta(Path(config.saliency.folder), SaliencyMeta) if external else None

    # The generator, then the rounds of learned refinement: each is a generator of its own.
    generator = make_generator(config.saliency, data, records, device)
    work_dir = run.folder / ".refinement"
    with ranks.first_alone():
        shutil.rmtree(work_dir, ignore_errors=True)  # of a call that was killed
        work_dir.mkdir(parents=True)
    try:
        for turn in range(config.refinement.rounds):
            print(f"refinement, round {turn + 1} of {config.refinement.rounds}")
            generator = learned.prepare(config, generator, data, work_dir, device, turn)
        _write_maps(records, generator, run, device)
    finally:
        if ranks.is_first():
            shutil.rmtree(work_dir, ignore_errors=True)

    facts = dict(generator.facts)
    meta = SaliencyMeta(
        settings=dataclasses.asdict(config.saliency),
        refinement=dataclasses.asdict(config.refinement),
        splits=list(splits),
        masked=sorted({*facts.pop("masked", []), *masked_in(brought)}),
        seen_defect_free=facts.pop("seen_defect_free", brought.seen_defect_free if brought else []),
        learnt=facts,
    )
    write_meta(run.saliency_dir, meta)
    defect_free = sum(not record.classes for record in records)
    print(
        f"{run.saliency_dir}: {len(records)} maps of {', '.join(dict.fromkeys(splits))}, "
        f"{defect_free} of them of defect-free images"
        f"{' and empty' if config.saliency.empty_defect_free else ''}."
    )
    for line in generator.lines:
        print(f"  {line}")
    print(next_step("saliency", run))


def _flags(config: Config, args: argparse.Namespace) -> dict[str, object]:
    """Return the settings that --refine, --from-dir and --masks stand for."""
    values: dict[str, object] = {}
    if args.from_dir:
        values |= {"saliency.generator": "external", "saliency.folder": str(args.from_dir)}
        values |= {"refinement.rounds": 0, "refinement.masks": 0}
    if args.refine is not None:
        values["refinement.rounds"] = args.refine
    if args.masks is not None:
        values["refinement.masks"] = args.masks
    masks = values.get("refinement.masks", config.refinement.masks)
    if masks and not values.get("refinement.rounds", config.refinement.rounds):
        raise ValueError(
            f"refinement.masks={masks}: expected a round of refinement to use them, got none. Add "
            "--refine 1."
        )
    return values


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
    records: Sequence[Record], generator: Prepared, run: Run, device: torch.device
) -> None:
    """Write every map that can be made.

    Raises:
        ValueError: with the first five problems and their total, after all other maps.
    """
    begin_folder(run.saliency_dir)
    own = ranks.part(records)

    def write(record: Record) -> str:
        """Return what is wrong, if anything is."""
        try:
            image = read_image(record.image)
            if run.config.saliency.empty_defect_free and not record.classes:
                saliency = np.zeros(image.shape[:2], np.float32)
            else:
                saliency = generator.make_map(record, image)
        except (ValueError, FileNotFoundError) as error:
            return str(error)
        write_saliency(run.saliency_dir / f"{record.name}.png", saliency)
        return ""

    written = progress(on_cores(write, own, processes_for(device)), "saliency", len(own))
    found = {record.name: problem for record, problem in zip(own, written, strict=True) if problem}
    problems = dict(generator.problems)
    for of_rank in ranks.gathered(found):
        problems |= of_rank
    if problems:
        shown = " | ".join(list(problems.values())[:5])
        raise ValueError(
            f"{run.saliency_dir}: expected a map for every image, {len(problems)} could not be "
            f"made; the first: {shown}"
        )


if __name__ == "__main__":
    run_stage(main)
