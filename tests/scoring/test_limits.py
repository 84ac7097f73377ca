"""Limits between good and defective images, against hand counts."""

import numpy as np
import pytest
from scipy.stats import binom

from scoring.limits import DEFECTIVE, OK, UNSURE, defect_score, learn_limits

SCORES = [0.1, 0.2, 0.3, 0.6, 0.5, 0.7, 0.8, 0.9]
IS_BAD = [False] * 4 + [True] * 4  # one good image, 0.6, lies above a defective one, 0.5


def test_images_between_both_limits_are_unsure():
    limits = learn_limits(SCORES, IS_BAD, max_alarms=0, min_recall=1)

    # No good image may be called defective: above 0.6. No defective one ok: under 0.5.
    assert limits.ok_below == pytest.approx(0.4)
    assert limits.defective_from == pytest.approx(0.65)
    assert [limits.verdict(score) for score in (0.39, 0.4, 0.64, 0.65)] == [
        OK,
        UNSURE,
        UNSURE,
        DEFECTIVE,
    ]
    assert limits.missed[:2] == (0, 4)
    assert limits.alarms[:2] == (0, 4)


def test_shares_that_are_allowed_move_the_limits():
    limits = learn_limits(SCORES, IS_BAD, max_alarms=0.25, min_recall=1)
    # With 0.6 allowed the kinds are apart: nothing was seen between 0.3 and 0.5.
    assert limits.ok_below == pytest.approx(0.3 + 0.2 / 3)
    assert limits.defective_from == pytest.approx(0.5 - 0.2 / 3)
    assert limits.alarms[:2] == (1, 4)
    limits = learn_limits(SCORES, IS_BAD, max_alarms=0, min_recall=0.75)
    assert limits.ok_below == pytest.approx(0.6 + 0.1 / 3)
    assert limits.missed[:2] == (1, 4)


def test_of_kinds_that_are_apart_the_middle_third_between_them_is_unsure():
    limits = learn_limits([0.1, 0.3, 0.6, 0.9], [False, False, True, True], 0, 1)
    assert (limits.ok_below, limits.defective_from) == pytest.approx((0.4, 0.5))
    assert (limits.missed[:2], limits.alarms[:2]) == ((0, 2), (0, 2))


@pytest.mark.parametrize(("is_bad", "limit"), [(True, 0.15), (False, 0.65)])
def test_images_of_one_kind_alone_give_one_limit(is_bad, limit):
    limits = learn_limits([0.3], [is_bad], 0, 1)
    assert limits.ok_below == limits.defective_from == pytest.approx(limit)
    assert (limits.missed is None, limits.alarms is None) == (not is_bad, is_bad)
    kind = "good" if is_bad else "defective"
    assert any(f"no {kind} image was held out" in line for line in limits.lines())


def test_the_bound_is_that_of_clopper_and_pearson():
    rng = np.random.default_rng(0)
    good, bad = rng.uniform(0, 0.6, 40), rng.uniform(0.4, 1, 30)
    limits = learn_limits([*good, *bad], [False] * 40 + [True] * 30, 0.1, 0.9)
    assert (limits.alarms.count, limits.missed.count) == (4, 3)
    for share in (limits.alarms, limits.missed):
        # As few or fewer are seen in 5 % of the draws if the share is the bound.
        assert binom.cdf(share.count, share.total, share.bound) == pytest.approx(0.05)
    assert limits.lines()[1].endswith(
        f"wrong for 4 of 40 good images held out, at most {100 * limits.alarms.bound:.1f} % of all "
        "(95 % confidence)"
    )


def test_all_wrong_has_the_bound_of_one():
    limits = learn_limits([0.5, 0.5], [False, True], max_alarms=1, min_recall=1)
    assert limits.alarms == (1, 1, 1.0)


def test_no_image_is_an_error():
    with pytest.raises(ValueError, match="held-out images to learn limits from"):
        learn_limits([], [], 0, 1)


def test_the_score_of_an_image_is_the_highest_class_of_the_mean():
    assert defect_score([np.array([0.9, 0.2]), np.array([0.1, 0.7])]) == pytest.approx(0.5)
    assert defect_score([np.array([0.25, 0.75])]) == pytest.approx(0.75)
