"""Ways to train the second stage beside each other, on the same pseudo labels.

    python -m benchmarks.second_stage --config configs/sample.toml --run runs/sample --seeds 0 1 2

Trains every variant (a config laid over --config, default: configs/second_stage/) with every seed
on the pseudo labels of a finished run, predicts data.eval_split without labels, scores it, and
prints mean and standard deviation over the seeds as a Markdown table. A finished training is not
repeated; a stopped one continues when the same command is given again.
"""

import shutil
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.ablation import deviation, results_of, run_script
from configs import fingerprint, load
from configs.command_line import ROOT, load_run, run_stage, stage_parser

STAGES = (["-m", "segmentation.train", "--resume"], ["-m", "segmentation.infer"])


def main(argv: Sequence[str] | None = None) -> None:
    """Train, score and compare."""
    parser = stage_parser(__doc__)
    shipped = [str(path) for path in sorted((ROOT / "configs/second_stage").glob("*.toml"))]
    parser.add_argument("--run", required=True, type=Path, help="run whose pseudo labels are taken")
    parser.add_argument(
        "--variants", nargs="+", default=shipped, metavar="TOML", help="one row each"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N")
    args = parser.parse_args(argv)
    config, out_dir = load_run(args)
    if not args.out:
        out_dir = out_dir.with_name(f"{out_dir.name}_second_stage")
    if not (args.run / "pseudo_labels/meta.json").is_file():
        raise FileNotFoundError(
            f"{args.run}: expected a run with all its pseudo labels, found no "
            "pseudo_labels/meta.json. Run make_pseudo_labels.py first, or correct --run."
        )
    found: dict[str, list[float]] = {Path(variant).stem: [] for variant in args.variants}
    for seed in args.seeds:  # all variants of one seed first: an early look compares them
        for variant in args.variants:
            name, changes = Path(variant).stem, [f"segmentation.seed={seed}"]
            run_dir = out_dir / f"{name}_{seed}"
            sha = fingerprint(load([*args.config, variant], [*args.set, *changes]))
            rows = results_of(run_dir, sha)
            if not rows:
                print(f"{run_dir}: {variant}, {changes[0]}", flush=True)
                take_over(args.run, run_dir)
                for words in (*STAGES, ["evaluation.py", "--kind", "segmentation"]):
                    run_script(words, args, [variant], run_dir, changes)
                rows = results_of(run_dir, sha)
            found[name].append(rows[-1]["miou"])
    print(table(found, config.data.eval_split))


def take_over(run: Path, run_dir: Path) -> None:
    """Give a run folder the image labels and the pseudo labels of another run."""
    run_dir.mkdir(parents=True, exist_ok=True)
    if (run / "labels.csv").is_file():
        shutil.copy(run / "labels.csv", run_dir)
    link = run_dir / "pseudo_labels"
    link.unlink(missing_ok=True)
    link.symlink_to((run / "pseudo_labels").resolve(), target_is_directory=True)


def table(found: Mapping[str, Sequence[float]], split: str) -> str:
    """Return a Markdown table of the mIoU of each variant's seeds."""
    lines = [f"| variant | seeds | mIoU, {split} |", "|---|---|---|"]
    for name, values in found.items():
        score = f"{statistics.mean(values):.2f} ± {deviation(values):.2f}"
        lines.append(f"| {name} | {len(values)} | {score} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_stage(main)
