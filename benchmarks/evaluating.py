"""All thresholds in one look at each file, against a look at all files for each threshold.

The other side is how the released evaluator sweeps; both read the same files.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.measuring import Row, Step
from datasets.files import Cam, read_cam, read_mask, write_cam, write_mask
from datasets.record import Record
from scoring.confusion import ThresholdSweep
from scoring.passes import count_cams

NUM_CLASSES = 3
SMALL = (3, 20, (0.2, 0.5))  # files, side, thresholds
FULL = (160, 200, tuple(i / 20 for i in range(20)))


def write_files(folder: Path, count: int, side: int) -> list[Record]:
    """Write CAMs of one or two classes, with masks; return the records."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(count):
        classes = np.arange(number % 2, number % 2 + 1 + number % 3 // 2)
        coarse = rng.random((len(classes), side // 10, side // 10))
        maps = np.kron(coarse, np.ones((1, 10, 10))).astype(np.float32)
        truth = np.where(maps[0] > 0.6, classes[0] + 1, 0).astype(np.uint8)
        mask = folder / f"{number}.png"
        write_mask(mask, truth)
        write_cam(folder / f"{number}.npz", Cam(maps, classes, np.zeros(NUM_CLASSES, np.float32)))
        records.append(Record(str(number), mask, tuple(classes.tolist()), mask))
    return records


def ours(records: list[Record], paths: list[Path], thresholds: tuple[float, ...]) -> list[float]:
    """Return the mIoU of each threshold as evaluation.py does."""
    sweep = ThresholdSweep(thresholds, NUM_CLASSES)
    count_cams([sweep], records, paths, NUM_CLASSES)
    return [sweep.confusion(threshold).miou() for threshold in sweep.thresholds]


def other(records: list[Record], paths: list[Path], thresholds: tuple[float, ...]) -> list[float]:
    """Return the same by a pass over the files for each threshold, class after class."""
    found = []
    for threshold in thresholds:
        true, predicted, hit = (np.zeros(NUM_CLASSES + 1, np.int64) for _ in range(3))
        for record, path in zip(records, paths, strict=True):
            cam, truth = read_cam(path), read_mask(record.mask, NUM_CLASSES)
            scores = np.zeros((NUM_CLASSES + 1, *truth.shape), np.float32)
            scores[0] = threshold
            scores[cam.classes + 1] = cam.cam
            mask = scores.argmax(axis=0)
            for k in range(NUM_CLASSES + 1):
                true[k] += (truth == k).sum()
                predicted[k] += (mask == k).sum()
                hit[k] += ((truth == k) & (mask == k)).sum()
        union = true + predicted - hit
        found.append(float(np.mean(100 * hit[union > 0] / union[union > 0])))
    return found


def step_of(sweep: Callable[..., list[float]], small: bool, device: str) -> Step:
    """Return a sweep over files; its result is the mIoU of each threshold."""
    count, side, thresholds = SMALL if small else FULL
    folder = TemporaryDirectory()
    records = write_files(Path(folder.name), count, side)
    paths = [record.mask.with_suffix(".npz") for record in records]

    def step(kept: TemporaryDirectory = folder) -> list[float]:  # the files live as long
        return sweep(records, paths, thresholds)

    return step


ROW = Row(
    f"evaluation of {FULL[0]} CAM files at {len(FULL[2])} thresholds",
    "one pass over the files for each threshold",
    partial(step_of, ours),
    partial(step_of, other),
    target=20.0,
    tolerance=1e-9,
    devices=("cpu",),
)
