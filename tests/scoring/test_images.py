"""Figures of whole images, against hand counts and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from scoring.images import (
    Verdicts,
    area_under_roc,
    average_precision,
    even_thresholds,
    image_figures,
)

NAMES = ("crack", "dent")
LABELS = [(1, 0), (1, 1), (0, 1), (0, 0), (0, 0)]
PRESENT = [(1, 0), (1, 0), (0, 0), (0, 1), (0, 0)]
SCORES = [(0.9, 0.1), (0.8, 0.4), (0.1, 0.3), (0.2, 0.6), (0.1, 0.2)]


def said(labels=LABELS, present=PRESENT, scores=SCORES, groups=None) -> Verdicts:
    groups = groups or [str(i) for i in range(len(labels))]
    return Verdicts(np.array(labels, bool), np.array(present, bool), np.array(scores), groups)


def test_even_thresholds_let_as_many_images_pass_as_show_the_class():
    scores = np.array([(0.40, 0.9), (0.10, 0.8), (0.30, 0.7), (0.20, 0.1)])
    labels = np.array([(1, 1), (0, 1), (1, 1), (0, 1)], bool)
    # Two show the first class: between .3 and .2. All show the second, which tells nothing.
    assert even_thresholds(scores, labels) == pytest.approx([0.25, 0.5])
    assert even_thresholds(scores, ~labels) == pytest.approx([0.25, 0.5])
    assert even_thresholds(scores[:0], labels[:0]) == [0.5, 0.5]


def test_counts_by_hand():
    figures = image_figures(said(), NAMES, rounds=5)
    assert (figures["defective"], figures["good"]) == (3, 2)
    assert figures["found"] == pytest.approx(100 * 2 / 3)
    assert figures["false_alarms"] == 50
    assert figures["contradicted"] == {"extra": 1, "missed": 2}
    crack, dent = figures["classes"]["crack"], figures["classes"]["dent"]
    assert [crack[k] for k in ("hit", "extra", "missed", "rest")] == [2, 0, 0, 3]
    assert [dent[k] for k in ("hit", "extra", "missed", "rest")] == [0, 1, 2, 2]
    assert [crack[k] for k in ("precision", "recall", "f1", "ap")] == [100] * 4
    # dent by score: image 3 (good), 1 (dent), 2 (dent): precision 1/2 and 2/3 where recall gains.
    assert [dent[k] for k in ("precision", "recall", "f1")] == [0, 0, 0]
    assert dent["ap"] == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)
    assert figures["map"] == pytest.approx((100 + dent["ap"]) / 2)
    # Bins of ten: .1 .1 .1 | .2 .2 | .3 | .4 | .6 | .8 | .9; true are .3, .4, .8 and .9.
    off = [0.1] * 3 + [0.2] * 2 + [0.7, 0.6, 0.6, 0.2, 0.1]
    assert figures["ece"] == pytest.approx(100 * sum(off) / 10)
    # Highest scores: .9 and .8 and .3 against .6 and .2.
    assert figures["auroc"] == pytest.approx(100 * 5 / 6)


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_those_of_scikit_learn_also_with_ties_and_repetition(seed):
    rng = np.random.default_rng(seed)
    values, truth = rng.integers(0, 8, 60) / 8, rng.random(60) < 0.4
    weights = rng.integers(0, 4, 60).astype(float)
    levels = np.unique(values, return_inverse=True)[1]
    again = np.repeat(np.arange(60), weights.astype(int))
    expected = average_precision_score(truth[again], values[again])
    assert average_precision(levels, truth, weights) == pytest.approx(100 * expected)
    expected = roc_auc_score(truth[again], values[again])
    assert area_under_roc(levels, truth, weights) == pytest.approx(100 * expected)


def test_what_the_images_do_not_tell_is_none():
    figures = image_figures(said(LABELS[:3], PRESENT[:3], SCORES[:3]), NAMES, rounds=5)
    assert figures["good"] == 0
    assert figures["false_alarms"] is figures["auroc"] is None
    assert figures["interval"]["false_alarms"] is None
    good = image_figures(said(LABELS[3:], PRESENT[3:], SCORES[3:]), NAMES, rounds=5)
    assert good["found"] is good["map"] is good["classes"]["crack"]["recall"] is None
    assert good["classes"]["dent"]["precision"] == 0


def test_intervals_are_over_groups():
    many = [LABELS * 40, PRESENT * 40, SCORES * 40]
    apart = image_figures(said(*many), NAMES)["interval"]["found"]
    copies = [str(i % 5) for i in range(200)]
    together = image_figures(said(*many, copies), NAMES)["interval"]["found"]
    low, high = apart
    assert low < 100 * 2 / 3 < high
    assert high - low < 20  # 120 images: standard error 4.3
    assert together == (0, 100)  # three groups of them, two found
    assert (
        image_figures(said(*many), NAMES)["interval"]
        == image_figures(said(*many), NAMES)["interval"]
    )
