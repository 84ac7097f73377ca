"""Passes over the files of maps and masks: each is read once and counted against its mask."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from datasets.files import read_cam, read_mask, read_saliency, read_truth
from datasets.record import Record
from released.arrays import read_released_cam
from scoring.confusion import ConfusionMatrix, LevelledSeeds, ThresholdSweep
from scoring.detailed import DetailedScores
from scoring.processes import Counter, count_over
from scoring.saliency import SaliencyHistogram
from scoring.thresholds import levelled, seed_mask

CAM_SUFFIXES, PICTURE_SUFFIXES = (".npz", ".npy"), (".png",)
Counters = Sequence[Counter]
Threshold = float | tuple[float, ...] | None  # K where each class has one; None: index masks


def find_maps(
    folder: Path, names: Sequence[str], suffixes: Sequence[str], remedy: str
) -> list[Path]:
    """Return the file of each name in a folder, with the first of the suffixes that is there.

    Raises:
        FileNotFoundError: some are missing; names the first five and says how many.
    """
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    files = [next((n + s for s in suffixes if n + s in there), None) for n in names]
    missing = [name for name, file in zip(names, files, strict=True) if file is None]
    if missing:
        raise FileNotFoundError(
            f"{folder}: expected a {' or '.join(suffixes)} file for each of {len(names)} images, "
            f"{len(missing)} are missing: {', '.join(missing[:5])}. {remedy}"
        )
    return [folder / file for file in files]


def read_map(path: Path, classes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Read a CAM file, or a saliency map painted with its image's classes."""
    if path.suffix in PICTURE_SUFFIXES:
        return paint(read_saliency(path), classes)
    if path.suffix == ".npy":
        return read_released_cam(path)
    cam = read_cam(path)
    return cam.cam, cam.classes


def paint(saliency: np.ndarray, classes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Take a saliency map as CAM of the first of its image's classes; of none without classes."""
    painted = np.array(classes[:1], np.int64)
    return np.repeat(saliency[None], len(painted), axis=0), painted


def count_masks(
    records: Sequence[Record], paths: Sequence[Path], num_classes: int
) -> ConfusionMatrix:
    """Count the masks in `paths` against those of the records."""
    confusion = ConfusionMatrix(num_classes)

    def count(counters: Counters, truth: np.ndarray, record: Record, path: Path) -> None:
        counters[0].update(truth, read_mask(path, num_classes))

    _over([confusion], records, paths, num_classes, count)
    return confusion


def count_cams(
    counters: Sequence[ThresholdSweep | LevelledSeeds],
    records: Sequence[Record],
    paths: Sequence[Path],
    num_classes: int,
) -> None:
    """Count the CAMs in `paths` against the masks of the records."""

    def count(counters: Counters, truth: np.ndarray, record: Record, path: Path) -> None:
        maps, classes = read_map(path, record.classes)
        for counter in counters:
            counter.update(truth, maps, classes)

    _over(counters, records, paths, num_classes, count)


def count_saliency(
    sweep: ThresholdSweep,
    histogram: SaliencyHistogram,
    records: Sequence[Record],
    paths: Sequence[Path],
    num_classes: int,
) -> None:
    """Count saliency maps, painted and as they are."""

    def count(counters: Counters, truth: np.ndarray, record: Record, path: Path) -> None:
        saliency = read_saliency(path)
        counters[0].update(truth, *paint(saliency, record.classes))
        counters[1].update(truth, saliency, labelled=bool(record.classes))

    _over([sweep, histogram], records, paths, num_classes, count)


def count_details(
    records: Sequence[Record],
    paths: Sequence[Path],
    num_classes: int,
    threshold: Threshold,
    maps_see_labels: bool = False,
) -> DetailedScores:
    """Count masks, or maps cut at a threshold, for the scores of `--detailed`.

    Labels decide what is cut out of a map. Scores without a threshold are taken from what knows no
    label, as far as there is such: the saliency map as it is, and the localiser's image scores.

    Args:
        records: images with masks.
        paths: mask or map of each.
        num_classes: K.
        threshold: of maps; None for masks.
        maps_see_labels: whether a defect-free image has an empty map because its label says so, as
            CAMs of given labels do. If there is such an image, the scores without a threshold are
            None: pure noise on the other images would score 100.
    """
    sees_labels = maps_see_labels and any(not record.classes for record in records)
    scores = DetailedScores(num_classes, sees_labels)

    def count(counters: Counters, truth: np.ndarray, record: Record, path: Path) -> None:
        if threshold is None:
            counters[0].update(truth, read_mask(path, num_classes), group=record.group)
            return
        maps, classes = read_map(path, record.classes)
        maps = maps if len(classes) else np.zeros((0, *truth.shape), np.float32)
        if isinstance(threshold, tuple):
            levels = levelled(maps, [threshold[k] for k in classes])
            mask = seed_mask(levels, classes, 0.5)
        else:
            mask = seed_mask(maps, classes, threshold)
        image_score = None
        if path.suffix in PICTURE_SUFFIXES:
            score_map = read_saliency(path)
        else:
            score_map = maps.max(axis=0, initial=0)
            if path.suffix == ".npz":  # the released code's CAMs hold no image scores
                image_score = float(read_cam(path).scores.max())
        counters[0].update(truth, mask, score_map, image_score, record.group)

    _over([scores], records, paths, num_classes, count)
    return scores


def _over(
    counters: Counters,
    records: Sequence[Record],
    paths: Sequence[Path],
    num_classes: int,
    count: Callable[[Counters, np.ndarray, Record, Path], None],
) -> None:
    """Hand each record's ground truth and file to `count`; its errors name both."""

    def count_pair(counters: Counters, pair: tuple[Record, Path]) -> None:
        record, path = pair
        truth = read_truth(record, num_classes)
        try:
            count(counters, truth, record, path)
        except ValueError as error:
            raise ValueError(f"{path} against {record.mask}: {error}") from error

    count_over(counters, list(zip(records, paths, strict=True)), count_pair, "scoring")
