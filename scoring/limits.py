"""Limits between good and defective images, learnt from images that were not trained on.

From one score on, an image is *defective*; below another it is *ok*; between both it is *unsure*.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import beta

CONFIDENCE = 0.95  # of the bounds
OK, UNSURE, DEFECTIVE = "ok", "unsure", "defective"


class Share(NamedTuple):
    """A share that was counted, with its one-sided bound of Clopper and Pearson (1934).

    Attributes:
        count: of total.
        total: images.
        bound: the highest, or lowest, share that is compatible with the count.
    """

    count: int
    total: int
    bound: float


class Limits(NamedTuple):
    """What an image's score means.

    Attributes:
        ok_below: images under this score are ok.
        defective_from: images of this score or more are defective.
        missed: of the defective images those that are ok, with the highest share.
        alarms: of the good images those that are defective, with the highest share; None where no
            good image was held out.
    """

    ok_below: float
    defective_from: float
    missed: Share | None
    alarms: Share | None

    def verdict(self, score: float) -> str:
        """Return ok, unsure or defective."""
        if score >= self.defective_from:
            return DEFECTIVE
        return OK if score < self.ok_below else UNSURE

    def reason(self, score: float) -> str:
        """Return why a score has its verdict, in a few words."""
        if score >= self.defective_from:
            return f"score {score:.3f}, defective from {self.defective_from:.3f}"
        if score < self.ok_below:
            return f"score {score:.3f}, ok below {self.ok_below:.3f}"
        return f"score {score:.3f}, between {self.ok_below:.3f} and {self.defective_from:.3f}"

    def lines(self) -> list[str]:
        """Return what the limits are worth, a line for each."""
        told = []
        for text, limit, kind, share in (
            ("ok below", self.ok_below, "defective", self.missed),
            ("defective from", self.defective_from, "good", self.alarms),
        ):
            worth = f"no {kind} image was held out"
            if share:
                worth = f"wrong for {share.count} of {share.total} {kind} images held out, at most "
                worth += f"{100 * share.bound:.1f} % of all ({100 * CONFIDENCE:.0f} % confidence)"
            told.append(f"{text} a score of {limit:.3f}: {worth}")
        return told


def learn_limits(
    scores: Sequence[float], defective: Sequence[bool], max_alarms: float, min_recall: float
) -> Limits:
    """Choose the limits on held-out images.

    `defective_from` is the lowest score at which at most a share `max_alarms` of the good images is
    called defective, `ok_below` the highest at which a share `min_recall` of the defective ones is
    not called ok. Each lies halfway between two scores. Where the second is not below the first,
    nothing need be unsure that was held out: both are drawn to the middle third of the gap between
    the kinds, in which no image was seen. Images of one kind alone give one limit.

    Args:
        scores: of N images, in [0, 1].
        defective: N, by their labels.
        max_alarms: in [0, 1].
        min_recall: in [0, 1].

    Raises:
        ValueError: no image.
    """
    values, is_bad = np.asarray(scores, float), np.asarray(defective, bool)
    if not len(values):
        raise ValueError("expected held-out images to learn limits from, got none.")
    good, bad = np.sort(values[~is_bad])[::-1], np.sort(values[is_bad])
    allowed, missable = int(max_alarms * len(good)), int((1 - min_recall) * len(bad) + 1e-9)
    # The first good image that must not be called defective, the first defective one not called ok.
    highest = good[allowed] if allowed < len(good) else 0.0
    lowest = bad[missable] if missable < len(bad) else 1.0
    upper = _between(highest, values[values > highest], 1.0) if len(good) else None
    lower = _between(lowest, values[values < lowest], 0.0) if len(bad) else None
    if upper is None:
        upper = lower
    elif lower is None:
        lower = upper
    elif lower >= upper:
        lower, upper = (2 * highest + lowest) / 3, (highest + 2 * lowest) / 3
    return Limits(
        ok_below=float(lower),
        defective_from=float(upper),
        missed=_share(int((bad < lower).sum()), len(bad)),
        alarms=_share(int((good >= upper).sum()), len(good)),
    )


def _between(score: float, others: np.ndarray, end: float) -> float:
    """Return the middle of a score and the nearest of others on one side, else of the end."""
    nearest = others[np.abs(others - score).argmin()] if len(others) else end
    return (score + nearest) / 2


def _share(count: int, total: int) -> Share | None:
    """Return a share with its upper bound; None of no image."""
    if not total:
        return None
    bound = 1.0 if count == total else float(beta.ppf(CONFIDENCE, count + 1, total - count))
    return Share(count, total, bound)


def defect_score(scores: Sequence[np.ndarray]) -> float:
    """Return how surely an image shows a defect of any class.

    Args:
        scores: (K,) in [0, 1] of each model.

    Returns:
        The highest class of the models' mean.
    """
    return float(np.mean(scores, axis=0).max())
