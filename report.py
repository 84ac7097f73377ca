"""Put what a run gave on one page, OUT/report.html, or draw its pictures for a paper.

  python report.py --out runs/neu_seg               the page: no server, no other file needed
  python report.py runs/neu_seg runs/other          runs compared: runs/neu_seg/comparison.html
  python report.py --out runs/neu_seg --sheet       OUT/sheet_<split>.png, a row an image
  python report.py --out runs/neu_seg --generators  OUT/generators_<split>.png

The page says first what was found, how good that is and where it fails. Then come the table of
results, charts (as files for papers too, OUT/figures/) and the images of a split with what each
stage made of them, which can be sorted, filtered and enlarged. Shown are the predictions; where
there are none yet, the pseudo labels. Its figures are those of results.jsonl; without masks they
are of whole images alone. All images are there as far as 15 MB allow, those with errors first.

Runs are compared with the first one: figures and classes with their differences, settings that
differ, and the images that changed most. With --out the page lies there.

The sheet has the columns image, saliency, CAM (its classes in their colours), pseudo label,
prediction, and ground truth where there are masks; what has not been made yet stays black. Colours
are those of PASCAL VOC masks, white is 255. With --generators the columns between image and truth
are the maps of every saliency generator that the data allows, made for these images, and last those
of the run.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from configs import load
from configs.command_line import run_stage, stage_parser
from datasets.files import write_image, write_text
from datasets.pictures import colour_legend
from datasets.record import Record
from reporting.comparison import comparison_page
from reporting.facts import Facts, facts_of
from reporting.gallery import look_at_all
from reporting.images import MASK_PANELS
from reporting.page import report_page
from runfolder.run import Run, open_run

SHEET_COUNT = 10  # images shown


def main(argv: Sequence[str] | None = None) -> None:
    """Write the report of a run, or a sheet."""
    args = _parser().parse_args(argv)
    if args.count is not None and args.count < 1:
        raise ValueError(f"--count: expected 1 or more, got {args.count}.")
    if args.runs:
        _compare(args)
        return
    run = open_run(args)
    split = args.split or run.config.data.eval_split
    if args.sheet or args.generators:
        _write_sheet(run, split, args)
        return
    facts = _facts(run, split)
    page, count = report_page(facts, args.count)
    _write(run.report_path, page, f"{count} of {len(facts.images)} images of {split}")


def _compare(args: argparse.Namespace) -> None:
    """Write the page of several runs."""
    flags = ("config", "set", "sheet", "generators", "random")
    if given := [flag for flag in flags if getattr(args, flag)]:
        raise ValueError(f"--{given[0]}: expected no such flag with runs to compare. Leave it out.")
    if len(args.runs) < 2:
        raise ValueError(
            f"{args.runs[0]}: expected two or more runs to compare, got one. Give --out "
            f"{args.runs[0]} for the page of this one."
        )
    runs = []
    for folder in map(Path, args.runs):
        path = folder / "config.toml"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: expected a run folder, got none. Correct the path.")
        run = Run(folder, load([str(path)], []))
        runs.append(_facts(run, args.split or run.config.data.eval_split))
    page, count = comparison_page(runs, args.count)
    _write(Path(args.out or args.runs[0]) / "comparison.html", page, f"{count} images")


def _facts(run: Run, split: str) -> Facts:
    """Read all files of a split, and warn of outdated figures."""
    records = run.data.split(split)
    kind = _kind(run, records)
    facts = facts_of(run, split, kind, look_at_all(run, kind, records))
    for note in facts.notes:
        print(f"warning: {note}")
    return facts


def _write(path: Path, page: str, what: str) -> None:
    write_text(path, page)
    print(f"wrote {path}: {what}, {path.stat().st_size / 1e6:.1f} MB")


def _write_sheet(run: Run, split: str, args: argparse.Namespace) -> None:
    """Draw one of the two sheets."""
    # Not above: they import PyTorch, which the page does not need.
    from inference.sheets import choose_records, generator_sheet, run_sheet
    from models.device import select_device

    records = [r for r in run.data.split(split) if r.classes or not args.generators]
    records = choose_records(records, args.count or SHEET_COUNT, args.random)
    if args.generators:
        sheet = generator_sheet(run, records, select_device(args.device))
    else:
        sheet = run_sheet(run, records)
    path = run.folder / f"{'generators' if args.generators else 'sheet'}_{split}.png"
    write_image(path, sheet)
    print(f"wrote {path}: {len(records)} images; {colour_legend(run.data.class_names)}")


def _kind(run: Run, records: Sequence[Record]) -> str:
    """Return the kind of the masks that are shown.

    Raises:
        FileNotFoundError: neither predictions nor pseudo labels are there.
    """
    for kind in MASK_PANELS:
        if all((run.maps_dir(kind) / f"{record.name}.png").is_file() for record in records):
            return kind
    raise FileNotFoundError(
        f"{run.folder}: expected predictions/ or pseudo_labels/ of all {len(records)} images. "
        "Run python -m segmentation.infer or make_pseudo_labels.py first, or give another --split."
    )


def _parser() -> argparse.ArgumentParser:
    parser = stage_parser(__doc__)
    add = parser.add_argument
    add("runs", nargs="*", metavar="RUN", help="run folders to compare, two or more")
    add("--split", help="split to show (default: data.eval_split)")
    shown = f"images to show (default: all that fit the page, of a sheet {SHEET_COUNT})"
    add("--count", type=int, metavar="N", help=shown)
    random = "of a sheet: draw images at random (default: evenly spaced)"
    add("--random", type=int, metavar="SEED", help=random)
    add = parser.add_mutually_exclusive_group().add_argument
    add("--sheet", action="store_true", help="draw all stages of some images")
    add("--generators", action="store_true", help="draw the maps of all saliency generators")
    return parser


if __name__ == "__main__":
    run_stage(main)
