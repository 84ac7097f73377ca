"""Put what a run gave on one page, OUT/report.html, or draw its pictures for a paper.

  python report.py --out runs/neu_seg               the page: no server, no other file needed
  python report.py runs/neu_seg runs/other          runs compared: runs/neu_seg/comparison.html
  python report.py --out runs/neu_seg --sheet       OUT/sheet_<split>.png, .pdf and .svg
  python report.py runs/neu_seg runs/other --sheet  runs/neu_seg/comparison_<split>.png, ...
  python report.py --out runs/neu_seg --generators  OUT/generators_<split>.png, ...

The page says first what was found, how good that is and where it fails. Then come the table of
results, charts (as files for papers too, OUT/figures/) and the images of a split with what each
stage made of them, which can be sorted, filtered and enlarged. Shown are the predictions; where
there are none yet, the pseudo labels. Its figures are those of results.jsonl; without masks they
are of whole images alone. All images are there as far as 15 MB allow, those with errors first.

Runs are compared with the first one: figures and classes with their differences, settings that
differ, and the images that changed most. With --out the page lies there.

A sheet has a row for each image, with its name and label, a captioned column for each stage, a
legend, and a bar of so many pixels. Columns of what has not been made are left out. With several
runs a stage has a column for each of them. With --generators the columns between image and truth
are the maps of every saliency generator that the data allows, made for these images, and last those
of the run. Images are evenly spaced, or as --names, --random or --worst say.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from configs import load
from configs.command_line import run_stage, stage_parser
from datasets.files import write_text
from datasets.record import Record, balanced, spread
from reporting.choice import named, worst
from reporting.columns import Column, map_column, stage_columns
from reporting.comparison import called, comparison_page, in_common
from reporting.facts import Facts, facts_of
from reporting.gallery import look_at_all
from reporting.images import MASK_PANELS, PANELS
from reporting.page import report_page
from reporting.sheets import write_sheet
from runfolder.run import Run, open_run

SHEET_COUNT = 10  # images shown


def main(argv: Sequence[str] | None = None) -> None:
    """Write the report of a run, or a sheet."""
    args = _parser().parse_args(argv)
    _check(args)
    runs = _runs(args) if args.runs else [open_run(args)]
    split = args.split or runs[0].config.data.eval_split
    if args.sheet or args.generators:
        _write_sheet(runs, split, args)
        return
    if args.runs:
        facts = [_facts(run, args.split or run.config.data.eval_split) for run in runs]
        page, count = comparison_page(facts, args.count)
        _write(Path(args.out or args.runs[0]) / "comparison.html", page, f"{count} images")
        return
    facts = _facts(runs[0], split)
    page, count = report_page(facts, args.count)
    _write(runs[0].report_path, page, f"{count} of {len(facts.images)} images of {split}")


def _check(args: argparse.Namespace) -> None:
    """Refuse flags that say nothing together."""
    if args.count is not None and args.count < 1:
        raise ValueError(f"--count: expected 1 or more, got {args.count}.")
    flags = {flag: getattr(args, flag) for flag in ("names", "random", "worst", "columns")}
    given = [flag for flag, value in flags.items() if value is not None and value is not False]
    if given and not (args.sheet or args.generators):
        raise ValueError(f"--{given[0]}: expected --sheet or --generators with it. Add one.")
    if args.generators and args.columns:
        raise ValueError("--columns: expected --sheet, got --generators, whose columns are fixed.")
    if args.names and args.count:
        raise ValueError("--count: expected no number of images with --names. Leave it out.")


def _runs(args: argparse.Namespace) -> list[Run]:
    """Open several runs."""
    if given := [flag for flag in ("config", "set", "generators") if getattr(args, flag)]:
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
        runs.append(Run(folder, load([str(path)], [])))
    return runs


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


def _write_sheet(runs: Sequence[Run], split: str, args: argparse.Namespace) -> None:
    """Draw the stages of a run, those of several runs, or the maps of the generators."""
    run = runs[0]
    records = run.data.split(split)
    if args.runs:
        records = in_common(runs, [of_run.data.split(split) for of_run in runs])
    if args.generators:
        records = [record for record in records if record.classes]
    if not records:
        raise ValueError(f"{split}: expected images to draw, got none. Give another --split.")
    records = _chosen(run, split, records, args)
    if args.generators:
        columns = _generator_columns(run, records, args.device)
    else:
        names = args.columns or (("image", "prediction", "truth") if args.runs else tuple(PANELS))
        columns = stage_columns(dict(zip(called(runs), runs, strict=True)), names)
    kind = "generators" if args.generators else "comparison" if args.runs else "sheet"
    path = Path(args.out or run.folder) / f"{kind}_{split}"
    for column in write_sheet(path, records, columns, run.data.class_names):
        made_by = f"; run {column.made_by} first" if column.made_by else ""
        print(f"left out: {column.caption}, as these images have none{made_by}")
    print(f"wrote {path}.png, .pdf and .svg: {len(records)} images of {split}")


def _chosen(
    run: Run, split: str, records: Sequence[Record], args: argparse.Namespace
) -> list[Record]:
    """Return the images of a sheet."""
    count = args.count or SHEET_COUNT
    if args.names:
        return named(records, args.names)
    if args.random is not None:
        return balanced(records, count, args.random)
    if args.worst:
        by_name = {record.name: record for record in records}
        ranked = [one.name for one in worst(_facts(run, split)) if one.name in by_name]
        return [by_name[name] for name in ranked[:count]]
    return spread(records, count)


def _generator_columns(run: Run, records: Sequence[Record], device: str) -> list[Column]:
    """Prepare the generators; their maps are made when the sheet is drawn."""
    # Not above: they import PyTorch, which the page does not need.
    from models.device import select_device
    from saliency.table import all_generators

    image, of_run, truth = stage_columns({"": run}, ("image", "saliency", "truth"))
    generators = all_generators(run.config.saliency, run.data, records, select_device(device))
    maps = [map_column(name, prepared.make_map) for name, prepared in generators.items()]
    return [image, *maps, of_run._replace(caption="of the run"), truth]


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
    of_sheet = parser.add_argument_group("sheets")
    columns = "columns, in this order (default: all that were made)"
    of_sheet.add_argument("--columns", nargs="+", choices=tuple(PANELS), help=columns)
    add = of_sheet.add_mutually_exclusive_group().add_argument
    add("--sheet", action="store_true", help="draw the stages of some images")
    add("--generators", action="store_true", help="draw the maps of all saliency generators")
    add = of_sheet.add_mutually_exclusive_group().add_argument
    add("--names", nargs="+", metavar="NAME", help="show these images")
    random = "show images drawn by this seed, of each class in turn"
    add("--random", type=int, metavar="SEED", help=random)
    worst = "show those of the lowest IoU; without masks, those that contradict their label most"
    add("--worst", action="store_true", help=worst)
    return parser


if __name__ == "__main__":
    run_stage(main)
