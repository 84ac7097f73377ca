"""What one set of settings does on many surfaces: saliency alone, or the whole pipeline.

    python -m studies.surfaces --out runs/surfaces --real neu_seg=DIR mtd=DIR bsd=DIR
    python -m studies.surfaces --out runs/surfaces --only asphalt cloth --whole

Runs the config (default: configs/folder.toml) on each generated surface of datasets.surfaces and on
the real ones that are at hand, and prints a Markdown table. Saliency maps are made of all images,
those of defect-free images too, and scored at the automatic threshold and at the best one. With
--whole the second stage is scored on a test share of whole groups, labels predicted. What was done
with the same settings is not repeated.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs import fingerprint, load
from configs.command_line import ROOT, run_stage, stage_parser
from datasets.surfaces import SURFACES, write_surface
from pipeline import STAGES, commands
from studies.ablation import Job, results_of

DEFAULT = str(ROOT / "configs/folder.toml")
REAL = {
    "neu_seg": ["data.source=neu_seg"],
    "mtd": ["data.source=mtd"],
    "bsd": ["data.source=folder", r"data.group=_(\d+_\d+)_crop"],  # ball screw drives, BSData
}
SALIENCY = ["data.test_share=0", "data.eval_split=train", "saliency.empty_defect_free=false"]
NUM_DEFECTIVE, NUM_GOOD = 120, 60  # of a generated surface
HEAD = ("fg IoU", "best fg IoU", "boundary F1", "area", "pixel AUROC", "image AUROC")
WHOLE_HEAD = ("mIoU", "fg IoU", "boundary F1", "area")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the config on each surface and print the table."""
    args = _parser().parse_args(argv)
    args.config = args.config or [DEFAULT]
    out_dir = Path(args.out or "runs/surfaces").resolve()
    roots = dict(item.split("=", 1) for item in args.real)
    if unknown := set(roots) - set(REAL):
        raise ValueError(f"--real: expected {', '.join(REAL)}, got {', '.join(sorted(unknown))}.")
    names = args.only or [*roots, *SURFACES]
    if missing := [name for name in names if name in REAL and name not in roots]:
        raise ValueError(f"--only: expected --real {missing[0]}=DIR for {missing[0]}.")
    head = WHOLE_HEAD if args.whole else HEAD
    print(f"| surface | images | {' | '.join(head)} |", "|---" * (len(head) + 2) + "|", sep="\n")
    for name in names:
        changes = surface_settings(name, roots, out_dir / "data", args.seed)
        if args.whole:
            rows = whole_pipeline(Job(out_dir / f"{name}_whole", args, [], changes))
        else:
            rows = saliency_alone(Job(out_dir / name, args, [], [*changes, *SALIENCY]))
        print(line(name, rows, args.whole), flush=True)


def surface_settings(name: str, roots: dict[str, str], data_dir: Path, seed: int) -> list[str]:
    """Return the settings that name the data of a surface; a generated one is written first."""
    if name in REAL:
        return [f"data.root={Path(roots[name]).resolve()}", *REAL[name]]
    root = data_dir / name
    if not (root / "table.csv").is_file():
        write_surface(root, name, NUM_DEFECTIVE, NUM_GOOD, seed)
    classes = ", ".join(f'"{c}"' for c in SURFACES[name].class_names)
    table = ["data.source=csv", "data.table=table.csv", f"data.classes=[{classes}]"]
    # Each picture is drawn anew, so that none is a copy; those of a fixed camera only look so.
    return [f"data.root={root}", *table, "data.mask_level=0", "data.group=none"]


def saliency_alone(job: Job) -> list[dict[str, Any]]:
    """Make and score the saliency maps; return the rows of the thresholds auto and oracle."""
    score = ["evaluation.py", "--kind", "saliency", "--detailed"]
    return _rows_of(job, [["make_saliency.py"], [*score, "--threshold-rule", "auto", "oracle"]])


def whole_pipeline(job: Job) -> list[dict[str, Any]]:
    """Run all stages; return the row of the second stage."""
    config = load(job.args.config, [*job.args.set, *job.changes])
    stages = [next(commands(stage, config)) for stage in STAGES]  # each without what scores it
    return _rows_of(job, [*stages, ["evaluation.py", "--kind", "segmentation", "--detailed"]])


def _rows_of(job: Job, stages: Sequence[list[str]]) -> list[dict[str, Any]]:
    config = load(job.args.config, [*job.args.set, *job.changes])
    if not (rows := results_of(job.run_dir, fingerprint(config), "all")):
        (job.run_dir / "results.jsonl").unlink(missing_ok=True)
        for words in stages:
            job.call(words)
        rows = results_of(job.run_dir, fingerprint(config), "all")
    return rows


def line(name: str, rows: Sequence[dict[str, Any]], whole: bool) -> str:
    """Return a line of the table; boundary F1 is the mean over the classes."""
    first, last = rows[0], rows[-1]
    details = first["detailed"]
    found = [value for value in details["boundary_f1"] if value is not None]
    values = [first["miou"], first["fg_iou"]] if whole else [first["fg_iou"], last["fg_iou"]]
    values += [sum(found) / len(found) if found else None, details["area_ratio"]]
    values += [] if whole else [details["pixel_auroc"], details["image_auroc"]]
    cells = ("-" if value is None else f"{value:.2f}" for value in values)
    return f"| {name} | {first['images']} | {' | '.join(cells)} |"


def _parser() -> argparse.ArgumentParser:
    parser = stage_parser(__doc__)
    parser.add_argument(
        "--real", nargs="+", default=[], metavar="NAME=DIR", help=f"of {', '.join(REAL)}"
    )
    parser.add_argument("--only", nargs="+", choices=(*REAL, *SURFACES), metavar="NAME")
    parser.add_argument("--whole", action="store_true", help="the whole pipeline")
    parser.add_argument("--seed", type=int, default=0, help="of what is generated (default: 0)")
    return parser


if __name__ == "__main__":
    run_stage(main)
