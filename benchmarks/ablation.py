"""The parts of the method beside each other, several seeds each, from one command.

    python -m benchmarks.ablation --config configs/neu_seg.toml --set data.root=DIR --seeds 0 1 2

Trains every variant (a config laid over --config, default: configs/ablation/) with every seed on
the same images and the same saliency maps, writes all CAM types, scores them with given labels and
prints mean and standard deviation over the seeds as a Markdown table. A finished training is not
repeated; a stopped one continues when the same command is given again.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs import load
from configs.command_line import ROOT, load_run, run_stage, stage_parser
from configs.schema import CAM_TYPES

VARIANTS = ("base", "contrast", "saliency", "full")
RULES = ("auto", "oracle")


def main(argv: Sequence[str] | None = None) -> None:
    """Train, score and compare."""
    parser = stage_parser(__doc__)
    shipped = [str(ROOT / f"configs/ablation/{name}.toml") for name in VARIANTS]
    parser.add_argument(
        "--variants", nargs="+", default=shipped, metavar="TOML", help="one row each"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    args = parser.parse_args(argv)
    config, out_dir = load_run(args)
    if not args.out:
        out_dir = out_dir.with_name(f"{out_dir.name}_ablation")
    for variant in args.variants:
        load([*args.config, variant], args.set)  # a wrong one is found before the first training

    saliency_dir = out_dir / "saliency_run"
    _stage(["make_saliency.py"], args, [], saliency_dir, [])
    rows = []
    for seed in args.seeds:  # all variants of one seed first: an early look compares them
        for variant in args.variants:
            run_dir = out_dir / f"{Path(variant).stem}_{seed}"
            if not (run_dir / "results.jsonl").is_file():
                _train_and_score(args, variant, seed, run_dir, saliency_dir / "saliency")
            lines = (run_dir / "results.jsonl").read_text(encoding="utf-8").splitlines()
            rows += [{"variant": Path(variant).stem, **json.loads(line)} for line in lines]
    print(table(rows, config.data.eval_split))


def _train_and_score(
    args: argparse.Namespace, variant: str, seed: int, run_dir: Path, saliency_dir: Path
) -> None:
    types = json.dumps(list(CAM_TYPES))
    changes = [f"train.seed={seed}", f"cam.types={types}", 'cam.labels=["given"]']

    def stage(*words: str) -> None:
        _stage(list(words), args, [variant], run_dir, changes)

    print(f"variant {Path(variant).stem}, seed {seed}: {run_dir}", flush=True)
    stage("make_saliency.py", "--from-dir", str(saliency_dir))
    stage("train_stac.py", "--resume")
    stage("make_cams.py")
    # Scores are gathered aside, so that results.jsonl stands for a complete variant.
    for cam_type in CAM_TYPES:
        rules = ("--threshold-rule", *RULES)
        stage("evaluation.py", "--kind", "cam", "--cam-type", cam_type, *rules)


def _stage(
    words: list[str],
    args: argparse.Namespace,
    variants: list[str],
    out_dir: Path,
    changes: list[str],
) -> None:
    """Run a stage script; its output goes to stages.log of the run folder.

    Raises:
        RuntimeError: it failed.
    """
    out_dir.mkdir(parents=True, exist_ok=True)
    common = ["--config", *args.config, *variants, "--out", str(out_dir), "--device", args.device]
    settings = [*args.set, *changes]
    common += ["--set", *settings] if settings else []
    log = out_dir / "stages.log"
    with log.open("a", encoding="utf-8") as file:
        done = subprocess.run(
            [sys.executable, words[0], *common, *words[1:]],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    if done.returncode:
        raise RuntimeError(f"{words[0]}: expected exit code 0, got {done.returncode}. See {log}.")


def table(rows: Sequence[dict[str, Any]], split: str) -> str:
    """Return a Markdown table of mIoU, mean and standard deviation over the runs of a variant.

    Args:
        rows: lines of results.jsonl, each with its variant added.
        split: rows of other splits are left out.
    """
    rules = [f"{cam_type} {rule}" for cam_type in CAM_TYPES for rule in RULES]
    lines = [f"| {split}, mIoU | runs | " + " | ".join(rules) + " |", "|---" * (len(rules) + 2) + "|"]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        cells, runs = [], set()
        for cam_type in CAM_TYPES:
            for rule in RULES:
                values = [
                    row["miou"]
                    for row in rows
                    if (row["variant"], row["split"], row["cam_type"], row["threshold_rule"])
                    == (variant, split, cam_type, rule)
                ]
                runs.add(len(values))
                spread = statistics.stdev(values) if len(values) > 1 else 0.0
                cells.append(f"{statistics.mean(values):.2f} ± {spread:.2f}")
        lines.append(f"| {variant} | {'/'.join(map(str, sorted(runs)))} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_stage(main)
