"""How cost grows with image size, classes, batch, images and ranks: python -m benchmarks.growth.

    python -m benchmarks.growth --json growth.json --plot docs/growth.png

Each point is a process of its own: the median time of a few steps after one, and the growth of the
peak memory. Training is the step of train_stac.py with DeiT-S and the paper's settings, `Config()`;
one of image size, classes, batch and ranks changes at a time. Evaluation counts CAM files.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import torch

from benchmarks import evaluating
from benchmarks.measuring import peak_megabytes, seconds_of
from benchmarks.training import CONFIG, LR, make_batch
from configs.command_line import ROOT, run_stage
from execution import ranks
from models.device import amp_dtype, autocast
from models.optim import optimizer_step, parameter_groups
from models.stac import build_stac
from train_stac import CLIP_NORM, WEIGHT_DECAY, batch_loss

AXES = {  # values that are measured
    "image size": (112, 224, 336, 448),
    "classes": (1, 3, 10, 20),
    "batch": (4, 8, 16),
    "ranks": (1, 2),
    "CAM files": (40, 80, 160, 320),
}
BASE = {"image size": 224, "classes": 3, "batch": 8, "ranks": 1}
STEPS = 3  # that are timed


class Point(NamedTuple):
    """What one value of an axis costs."""

    axis: str
    value: int
    seconds: float
    megabytes: float


def training_step(side: int, num_classes: int, batch_size: int, device: str) -> Callable[[], None]:
    """Return a step of this rank's part of a batch."""
    place = torch.device(device)
    dtype = amp_dtype(place, "auto")
    size = (side, side)
    torch.manual_seed(0)
    settings = dataclasses.replace(CONFIG.train, image_size=size)
    model = build_stac(settings, num_classes).to(place).train()
    optimizer = torch.optim.AdamW(parameter_groups(model, WEIGHT_DECAY), lr=LR)
    scaler = torch.amp.GradScaler(place.type, enabled=dtype is torch.float16)
    generator = torch.Generator(place)
    batch = make_batch(batch_size, size, num_classes)
    own = {name: ranks.part(values) for name, values in batch.items()}

    def step() -> None:
        generator.manual_seed(0)
        with autocast(place, dtype):
            total, _, _ = batch_loss(model, own, CONFIG, place, generator)
        scaler.scale(total).backward()
        optimizer_step(model, optimizer, scaler, CLIP_NORM)

    return step


def cost_of(step: Callable[[], Any], before: float, device: str) -> tuple[float, float]:
    """Return the median seconds of a step after one, and the growth of the peak in megabytes."""
    return seconds_of(step, device, STEPS), peak_megabytes(device) - before


def training_cost(device: str, values: dict[str, int]) -> tuple[float, float]:
    """Measure a training step in this process."""
    training_step(32, 2, 2, device)()  # loads the libraries
    before = peak_megabytes(device)
    step = training_step(values["image size"], values["classes"], values["batch"], device)
    return cost_of(step, before, device)


def evaluation_cost(count: int) -> tuple[float, float]:
    """Measure the count of so many CAM files in this process."""
    with TemporaryDirectory() as folder:
        records = evaluating.write_files(Path(folder), count, 200)
        paths = [record.mask.with_suffix(".npz") for record in records]
        before = peak_megabytes("cpu")
        return cost_of(lambda: evaluating.ours(records, paths, evaluating.FULL[2]), before, "cpu")


def in_ranks(count: int, device: str) -> tuple[float, float]:
    """Measure a training step on so many ranks, as the first of them sees it."""
    words = ["-m", "benchmarks.growth", "--device", device, "--one-rank"]
    command = [sys.executable, *ranks.torchrun(count), *words]
    threads = str(max(1, torch.get_num_threads() // count))
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": threads},
    )
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def measure(axis: str, value: int, device: str) -> Point:
    """Measure one point."""
    if axis == "ranks":
        return Point(axis, value, *in_ranks(value, device))
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        if axis == "CAM files":
            cost = pool.submit(evaluation_cost, value)
        else:
            cost = pool.submit(training_cost, device, {**BASE, axis: value})
        return Point(axis, value, *cost.result())


def plot(points: Sequence[Point], path: Path) -> None:
    """Draw time and memory against each axis."""
    axes = list(dict.fromkeys(point.axis for point in points))
    figure, panels = plt.subplots(2, len(axes), figsize=(3 * len(axes), 5), squeeze=False)
    for column, axis in enumerate(axes):
        own = [point for point in points if point.axis == axis]
        for row, (name, unit) in enumerate((("seconds", "s"), ("megabytes", "MB"))):
            panel = panels[row][column]
            panel.plot([p.value for p in own], [getattr(p, name) for p in own], marker="o")
            panel.set(xlabel=axis, ylabel=unit, ylim=(0, None))
            panel.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table of all points, and draw them."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.growth",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--axes", nargs="+", choices=tuple(AXES), default=list(AXES), metavar="AXIS")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--json", type=Path, metavar="FILE", help="for the points too")
    add("--plot", type=Path, metavar="FILE", help="picture of the points")
    add("--one-rank", action="store_true", help=argparse.SUPPRESS)  # of in_ranks
    args = parser.parse_args(argv)
    if args.one_rank:
        device = str(ranks.join(args.device))
        print(json.dumps(training_cost(device, BASE)))
        return
    points = []
    print("| axis | value | s | MB |\n|---|---|---|---|")
    for axis in args.axes:
        for value in AXES[axis]:
            points.append(measure(axis, value, args.device))
            seconds, megabytes = points[-1][2:]
            print(f"| {axis} | {value} | {seconds:.3f} | {megabytes:.0f} |", flush=True)
    if args.json:
        content = [point._asdict() for point in points]
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if args.plot:
        plot(points, args.plot)


if __name__ == "__main__":
    run_stage(main)
