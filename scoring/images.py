"""Figures of whole images, which need labels and no masks: is a part defective, and by what?

Shares are in %. An image is *flagged* if any class is there.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from scoring.calibration import calibration_error

ROUNDS = 1000  # of the bootstrap
INTERVALS = ("found", "false_alarms", "auroc", "map")  # figures of `image_figures` that have one


class Verdicts(NamedTuple):
    """What is known and what was said of N images.

    Attributes:
        labels: (N, K) bool, of the images.
        present: (N, K) bool, classes that were said to be there.
        scores: (N, K) in [0, 1], how far.
        groups: N texts; images of one group show the same thing.
    """

    labels: np.ndarray
    present: np.ndarray
    scores: np.ndarray
    groups: Sequence[str]


class Auroc(NamedTuple):
    """How well scores tell images with a class from those without it, in %.

    Attributes:
        auroc: area under the curve.
        interval: (low, high) of 95 % of the draws of as many groups of images.
    """

    auroc: float
    interval: tuple[float, float]


def auroc_by_class(said: Verdicts, rounds: int = ROUNDS, seed: int = 0) -> list[Auroc | None]:
    """Return the AUROC of each class' scores, None of a class that all images show or none.

    Args:
        said: of the images; what was said of classes being there does not matter.
        rounds: of the bootstrap.
        seed: of its draws.
    """
    draws = list(_draws(said.groups, rounds, seed))
    found: list[Auroc | None] = []
    for levels, shown in zip(_levels(said)[1:], said.labels.T, strict=True):
        auroc = area_under_roc(levels, shown, np.ones(len(shown)))
        interval = _interval([area_under_roc(levels, shown, weights) for weights in draws])
        found.append(None if auroc is None or interval is None else Auroc(auroc, interval))
    return found


def even_thresholds(scores: np.ndarray, labels: np.ndarray) -> list[float]:
    """Return for each class the score from which as many images have it as show it.

    So classes are missed as often as they are invented, also where training was short and all
    scores of a class lie on one side of 0.5.

    Args:
        scores: (N, K) in [0, 1], of images that were not trained on.
        labels: (N, K) bool.

    Returns:
        K thresholds, each halfway between two scores; 0.5 of a class that all or none show.
    """
    thresholds = []
    for of_class, shown in zip(scores.T, labels.T, strict=True):
        ordered, count = np.sort(of_class)[::-1], int(shown.sum())
        is_told = 0 < count < len(ordered)
        thresholds.append(float(ordered[count - 1 : count + 1].mean()) if is_told else 0.5)
    return thresholds


def image_figures(
    said: Verdicts, class_names: Sequence[str], rounds: int = ROUNDS, seed: int = 0
) -> dict[str, Any]:
    """Return the figures of whole images, None where the images do not tell.

    Args:
        said: of the images.
        class_names: K.
        rounds: of the bootstrap.
        seed: of its draws.

    Returns:
        defective and good, numbers of images; found, the share of defective images that are
        flagged; false_alarms, of 100 good images those that are flagged; auroc of defective against
        good ones by their highest score; map, the mean of the classes' average precision; ece, the
        expected calibration error of the scores in points; classes,
        name -> hit, extra, missed and rest, numbers of images, and precision, recall, f1 and ap;
        contradicted, numbers of images with an extra class and with a missed one; interval, for
        each of `INTERVALS` (low, high) of 95 % of the draws of as many groups of images.
    """
    defective = said.labels.any(axis=1)
    extra, missed = said.present & ~said.labels, ~said.present & said.labels
    hit = said.present & said.labels
    counts = np.stack([hit, extra, missed, ~(hit | extra | missed)]).sum(axis=1).T  # (K, 4)
    levels = _levels(said)
    whole = _figures(said, levels, np.ones(len(said.labels)))
    draws = [_figures(said, levels, weights) for weights in _draws(said.groups, rounds, seed)]
    return {
        "defective": int(defective.sum()),
        "good": int((~defective).sum()),
        **{key: whole[key] for key in INTERVALS},
        "ece": calibration_error(said.scores, said.labels),
        "classes": {
            name: _class_figures(*row.tolist()) | {"ap": ap}
            for name, row, ap in zip(class_names, counts, whole["ap"], strict=True)
        },
        "contradicted": {
            "extra": int(extra.any(axis=1).sum()),
            "missed": int(missed.any(axis=1).sum()),
        },
        "interval": {key: _interval([draw[key] for draw in draws]) for key in INTERVALS},
    }


def _levels(said: Verdicts) -> list[np.ndarray]:
    """Return the rank of each image's score among the different ones: highest, then each class."""
    columns = [said.scores.max(axis=1), *said.scores.T]
    return [np.unique(column, return_inverse=True)[1] for column in columns]


def _figures(said: Verdicts, levels: list[np.ndarray], weights: np.ndarray) -> dict[str, Any]:
    """Return the figures of images that are counted by their weights."""
    defective, flagged = said.labels.any(axis=1), said.present.any(axis=1)
    aps = [
        average_precision(of_class, label, weights)
        for of_class, label in zip(levels[1:], said.labels.T, strict=True)
    ]
    known = [ap for ap in aps if ap is not None]
    return {
        "found": _share(weights[defective & flagged].sum(), weights[defective].sum()),
        "false_alarms": _share(weights[~defective & flagged].sum(), weights[~defective].sum()),
        "auroc": area_under_roc(levels[0], defective, weights),
        "map": sum(known) / len(known) if known else None,
        "ap": aps,
    }


def average_precision(levels: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> float | None:
    """Return the precision at each level, weighted by what recall gains there, in %.

    Args:
        levels: (N,) ranks of scores, equal for equal scores.
        truth: (N,) bool.
        weights: (N,) how often each image counts.
    """
    positive = np.bincount(levels, weights * truth)[::-1]
    everything = np.bincount(levels, weights)[::-1]
    if not positive.sum():
        return None
    precision = positive.cumsum() / np.maximum(everything.cumsum(), 1e-12)
    return float(100 * (precision * positive).sum() / positive.sum())


def area_under_roc(levels: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> float | None:
    """Return the share of pairs in which the defective image's score is higher, ties half, in %.

    Arguments as of `average_precision`.
    """
    positive = np.bincount(levels, weights * truth)
    negative = np.bincount(levels, weights * ~truth)
    if not positive.sum() or not negative.sum():
        return None
    below = negative.cumsum() - negative / 2
    return float(100 * (positive * below).sum() / (positive.sum() * negative.sum()))


def _class_figures(hit: int, extra: int, missed: int, rest: int) -> dict[str, Any]:
    return {
        "hit": hit,
        "extra": extra,
        "missed": missed,
        "rest": rest,
        "precision": _share(hit, hit + extra),
        "recall": _share(hit, hit + missed),
        "f1": _share(2 * hit, 2 * hit + extra + missed),
    }


def _draws(groups: Sequence[str], rounds: int, seed: int) -> Iterator[np.ndarray]:
    """Give how often each image counts when groups are drawn with repetition."""
    _, of_image = np.unique(np.array(groups, dtype=object).astype(str), return_inverse=True)
    count = of_image.max() + 1
    rng = np.random.default_rng(seed)
    for _ in range(rounds):
        yield rng.multinomial(count, np.full(count, 1 / count))[of_image].astype(np.float64)


def _interval(values: Sequence[float | None]) -> tuple[float, float] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    low, high = np.quantile(known, (0.025, 0.975)).tolist()
    return low, high


def _share(part: float, whole: float) -> float | None:
    return float(100 * part / whole) if whole else None
