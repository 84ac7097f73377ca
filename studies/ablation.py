"""The parts of the method compared, several seeds each, from one command.

    python -m studies.ablation --config configs/neu_seg.toml --set data.root=DIR --seeds 0 1 2

Trains every variant (a config laid over --config, default: base, contrast,
saliency and full of configs/variants/) with every seed on
the same images and the same saliency maps, writes all CAM types, scores them with given labels and
prints mean and standard deviation over the seeds as a Markdown table. A finished training is not
repeated; a stopped one continues when the same command is given again. Of training images those of
the develop part are scored, where data.develop_list names it, as studies are what settings are
chosen by; --part report gives the others.
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from configs import Config, fingerprint, load
from configs.command_line import ROOT, load_run, run_stage, stage_parser
from configs.fields import CAM_TYPES
from datasets.files import read_lines

VARIANTS = ("base", "contrast", "saliency", "full")
RULES = ("agreement", "oracle")
AS_THEY_ARE = ["saliency.pamr_steps=0"]  # maps that are given


def main(argv: Sequence[str] | None = None) -> None:
    """Train, score and compare."""
    parser = stage_parser(__doc__)
    shipped = [str(ROOT / f"configs/variants/{name}.toml") for name in VARIANTS]
    parser.add_argument(
        "--variants", nargs="+", default=shipped, metavar="TOML", help="one row each"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    parser.add_argument(
        "--from-dir",
        type=Path,
        metavar="DIR",
        help="take saliency maps from here instead of making them (see make_saliency.py)",
    )
    add_part(parser)
    args = parser.parse_args(argv)
    config, out_dir = load_run(args)
    if not args.out:
        out_dir = out_dir.with_name(f"{out_dir.name}_ablation")
    runs = {}
    for seed in args.seeds:  # all variants of one seed first: an early look compares them
        for variant in args.variants:
            name = Path(variant).stem
            settings = scored_settings(args, [variant], [f"train.seed={seed}"])
            runs[out_dir / f"{name}_{seed}"] = (name, variant, settings)

    saliency_dir = out_dir / "saliency_run"
    source = ["--from-dir", str(args.from_dir.resolve())] if args.from_dir else []
    Job(saliency_dir, args, [], AS_THEY_ARE if source else []).call(["make_saliency.py", *source])
    rows = []
    for run_dir, (name, variant, changes) in runs.items():
        job = Job(run_dir, args, [variant], changes)
        rows += [{"variant": name, **row} for row in job.results(saliency_dir / "saliency")]
    print(table(rows, f"{config.data.eval_split}, {part_of(args, config)}"))


def add_part(parser: argparse.ArgumentParser) -> None:
    """Add the flag --part of a study."""
    parser.add_argument(
        "--part",
        choices=("all", "develop", "report"),
        help="images that are scored (default: develop of train, if data.develop_list says which)",
    )


def part_of(args: argparse.Namespace, config: Config) -> str:
    """Return the part of data.eval_split that a study scores: all, develop or report."""
    chosen_on = config.data.develop_list and config.data.eval_split == "train"
    return args.part or ("develop" if chosen_on else "all")


def scored_settings(args: argparse.Namespace, variants: list[str], changes: list[str]) -> list[str]:
    """Add to settings all CAM types that the localiser of a variant has, and given labels.

    Raises:
        ValueError: a config is wrong.
    """
    config = _config_of(args, variants, changes)
    cam_types = [t for t in CAM_TYPES if t != "pixel" or config.train.pixel_block]
    return [*changes, f"cam.types={json.dumps(cam_types)}", 'cam.labels=["given"]']


def _config_of(args: argparse.Namespace, variants: list[str], changes: list[str]) -> Config:
    return load([*args.config, *variants], [*args.set, *changes])


class Job(NamedTuple):
    """One training of a study.

    Attributes:
        run_dir: of this training.
        args: of `stage_parser`.
        variants: configs laid over those of `args`.
        changes: settings laid over these, see `scored_settings`.
    """

    run_dir: Path
    args: argparse.Namespace
    variants: list[str]
    changes: list[str]

    def results(self, maps: Path, bound: bool = False) -> list[dict[str, Any]]:
        """Train a localiser on given saliency maps and score its CAMs, unless that has been done.

        Args:
            maps: folder of the saliency maps.
            bound: score images whose masks the maps were made with too.

        Returns:
            Lines of results.jsonl, one for each CAM type and rule.
        """
        config = _config_of(self.args, self.variants, self.changes)
        config_sha = fingerprint(config)
        part = part_of(self.args, config)
        rows = results_of(self.run_dir, config_sha, part)
        if len(rows) == len(config.cam.types) * len(RULES):
            return rows
        print(f"{self.run_dir}: {', '.join([*self.variants, *self.changes])}", flush=True)
        (self.run_dir / "results.jsonl").unlink(missing_ok=True)
        copied = self._replace(changes=[*self.changes, *AS_THEY_ARE])
        copied.call(["make_saliency.py", "--from-dir", str(maps)])
        stages = [["train_stac.py", "--resume"], ["make_cams.py"]]
        for cam_type in config.cam.types:
            score = ["evaluation.py", "--kind", "cam", "--cam-type", cam_type]
            score += ["--part", part] if part != "all" else []
            score += ["--bound"] if bound else []
            stages.append([*score, "--threshold-rule", *RULES])
        for words in stages:
            self.call(words)
        return results_of(self.run_dir, config_sha, part)

    def call(self, words: list[str]) -> None:
        """Run a stage script; its output goes to stages.log of the run folder.

        Raises:
            RuntimeError: it failed.
        """
        args = self.args
        self.run_dir.mkdir(parents=True, exist_ok=True)
        common = ["--config", *args.config, *self.variants, "--out", str(self.run_dir)]
        common += ["--device", args.device]
        settings = [*args.set, *self.changes]
        common += ["--set", *settings] if settings else []
        log = self.run_dir / "stages.log"
        with log.open("a", encoding="utf-8") as file:
            done = subprocess.run(
                [sys.executable, *words, *common],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        if done.returncode:
            raise RuntimeError(
                f"{' '.join(words[:2])}: expected exit code 0, got {done.returncode}. See {log}."
            )


def results_of(run_dir: Path, config_sha: str, part: str) -> list[dict[str, Any]]:
    """Return the rows of a run that were scored with these settings on a part of the images."""
    rows = map(json.loads, read_lines(run_dir / "results.jsonl"))
    return [row for row in rows if (row["config_sha"], row["part"]) == (config_sha, part)]


def table(rows: Sequence[dict[str, Any]], split: str) -> str:
    """Return a Markdown table of mIoU, mean and standard deviation over the runs of a variant.

    A CAM type that no run has is left out.

    Args:
        rows: lines of results.jsonl, each with its variant added.
        split: that was scored, and its part, for the heading.
    """
    written = {row["cam_type"] for row in rows}
    columns = [(cam_type, rule) for cam_type in CAM_TYPES if cam_type in written for rule in RULES]
    names = (f"{cam_type}, {rule}" for cam_type, rule in columns)
    lines = [f"| mIoU, {split} | runs | {' | '.join(names)} |", "|---" * (len(columns) + 2) + "|"]
    for variant in dict.fromkeys(row["variant"] for row in rows):
        scores: dict[tuple[str, str], list[float]] = {column: [] for column in columns}
        for row in rows:
            if row["variant"] == variant:
                scores[row["cam_type"], row["threshold_rule"]].append(row["miou"])
        cells = (
            f"{statistics.mean(s):.2f} ± {deviation(s):.2f}" if s else "-" for s in scores.values()
        )
        runs = max(len(s) for s in scores.values())
        lines.append(f"| {variant} | {runs} | {' | '.join(cells)} |")
    return "\n".join(lines)


def deviation(values: Sequence[float]) -> float:
    """Return the standard deviation, 0 of one value."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


if __name__ == "__main__":
    run_stage(main)
