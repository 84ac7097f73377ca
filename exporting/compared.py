"""The exported folder against PyTorch: the same masks, and how long each takes."""

import importlib
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from datasets.files import read_image
from datasets.record import Record
from exporting.formats import RunFile
from exporting.models import Exportable
from exporting.product import SHIPPED
from inference.images import Picture
from inference.models import Trained
from inference.predictor import Predictor
from inference.results import Options
from inference.segment import averaged
from runfolder.run import Run

LEAST_EQUAL = 0.99  # share of pixels; rounding alone changes far fewer
BLOCKS, BLOCK = 6, 5  # a side is timed so often without a break, in turn with the others
LONGEST = 20.0  # seconds for all sides; large pictures are timed less often


def reference_of(run: Run, trained: Trained, with_localiser: bool) -> Predictor:
    """Return what predict.py does with a picture, on the CPU and in full precision."""
    used = trained if with_localiser else trained._replace(localiser=None)
    predictor = Predictor(run, used, torch.device("cpu"), Options(keep_all=True))
    return predictor.in_full_precision()


class Agreement(NamedTuple):
    """How far the folder and predict.py agree.

    Attributes:
        equal: share of pixels with the same mask value.
        scores: largest difference of the score of a class.
    """

    equal: float
    scores: float


def shipped() -> Any:
    """Return the module stac_onnx, which folders hold a copy of."""
    if str(SHIPPED) not in sys.path:
        sys.path.append(str(SHIPPED))
    return importlib.import_module("stac_onnx")


def pictures_of(files: Sequence[Path]) -> list[Picture]:
    """Read pictures."""
    return [Picture(Record(file.stem, file, ()), read_image(file)) for file in files]


def agreement(folder: Path, reference: Predictor, pictures: Sequence[Picture]) -> Agreement:
    """Compare the folder's masks and scores of pictures with those of predict.py.

    Raises:
        ValueError: less than `LEAST_EQUAL` of the pixels are equal.
    """
    model = shipped().load(folder, torch.get_num_threads())
    equal, count, differences = 0, 0, []
    for picture in pictures:
        result = model.predict(picture.record.image, keep_all=True)
        (wanted,) = reference.over([picture])
        equal += int((result.mask == wanted.mask).sum())
        count += wanted.mask.size
        found = np.array(list(result.page["class_scores"].values()))
        scores = np.array(list(wanted.class_scores.values()))
        differences.append(float(np.abs(found - scores.round(4)).max()))
    if equal < LEAST_EQUAL * count:
        raise ValueError(
            f"{folder}: expected the masks of predict.py, got {100 * equal / count:.2f} % equal "
            f"pixels of {len(pictures)} pictures (allowed: {100 * LEAST_EQUAL:g} % or more). "
            "Please report the model and the versions of torch and onnxruntime."
        )
    return Agreement(equal / count, max(differences))


def network_latency(one: Exportable, files: dict[str, RunFile]) -> list[str]:
    """Time the second stage on one image of the trained size with its mirror image.

    Args:
        one: the second stage.
        files: how the file of each format is run, by what it is called.

    Returns:
        Lines to print.
    """
    image = torch.randn(1, 3, *one.size, generator=torch.Generator().manual_seed(0))
    calls = {"PyTorch": lambda: averaged(one.model.network, image)}
    calls |= {name: lambda run=run: run(image) for name, run in files.items()}
    height, width = one.size
    return _lines(f"latency, network, 1 image of {height} x {width} and its mirror image", calls)


def picture_latency(folder: Path, reference: Predictor, pictures: Sequence[Picture]) -> list[str]:
    """Time all steps on whole pictures, but for reading and writing files; give lines to print."""
    model = shipped().load(folder, torch.get_num_threads())
    number = {"PyTorch": 0, "ONNX": 0}

    def following(side: str) -> Picture:
        number[side] += 1
        return pictures[number[side] % len(pictures)]

    calls = {
        "PyTorch": lambda: next(reference.over([following("PyTorch")])),
        "stac_onnx.py": lambda: model.predict(following("ONNX").pixels),
    }
    return _lines(f"latency, all steps, {len(pictures)} pictures in turn", calls)


def _lines(title: str, calls: dict[str, Callable[[], Any]]) -> list[str]:
    times = milliseconds(calls)
    count = len(next(iter(times.values())))
    lines = [f"{title}, {count} runs, threads: {torch.get_num_threads()}"]
    for name, values in times.items():
        middle, high = np.percentile(values, (50, 95))
        rate = 1e3 / middle
        lines.append(
            f"  {name:<13} median {middle:.1f} ms, 95 % {high:.1f} ms, {rate:.1f} images/s"
        )
    return lines


def milliseconds(calls: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Time calls in turn, in blocks that begin with one that is not counted.

    Returns:
        The milliseconds of each call, as many of each.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    longest = LONGEST / BLOCKS / len(calls)  # seconds of a block
    for _ in range(BLOCKS):
        for name, call in calls.items():
            call()
            begun = before = time.perf_counter()
            for _ in range(BLOCK):
                call()
                now = time.perf_counter()
                times[name].append(1e3 * (now - before))
                before = now
                if now - begun > longest:
                    break
    least = min(map(len, times.values()))
    return {name: values[:least] for name, values in times.items()}
