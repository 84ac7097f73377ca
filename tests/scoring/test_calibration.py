"""Probabilities learnt from scores, against hand counts and drawn truth."""

import numpy as np
import pytest

from scoring.calibration import Calibration, calibration_error, fit_calibration, reliability


def test_bins_by_hand():
    scores, truth = np.array([0.05, 0.05, 0.72, 0.78, 1.0]), np.array([0, 1, 1, 0, 1], bool)
    mean, share, counts = reliability(scores, truth)
    assert mean == pytest.approx([5, 75, 100])
    assert share == pytest.approx([50, 50, 100])
    assert counts.tolist() == [2, 2, 1]
    error = calibration_error(scores[:, None], truth[:, None])
    assert error == pytest.approx((2 * 45 + 2 * 25 + 0) / 5)
    assert calibration_error(np.zeros((0, 2)), np.zeros((0, 2), bool)) is None


def test_a_calibration_that_is_known_is_found_again():
    rng = np.random.default_rng(0)
    scores = rng.random((4000, 2))
    true = Calibration(2.0, (1.0, -1.5)).probabilities(scores)
    found = fit_calibration(scores, rng.random(true.shape) < true)
    assert found.slope == pytest.approx(2, abs=0.15)
    assert found.offsets == pytest.approx((1, -1.5), abs=0.15)


@pytest.mark.parametrize("seed", range(3))
def test_probabilities_of_new_images_are_better_calibrated_than_scores(seed):
    rng = np.random.default_rng(seed)
    labels = rng.random((430, 3)) < 0.3
    # Lukewarm scores, each class with a bias of its own, as a short training gives.
    scores = 0.35 + 0.2 * labels + 0.1 * rng.standard_normal(labels.shape) + [0.0, 0.15, -0.1]
    scores = scores.clip(0, 1)
    probabilities = fit_calibration(scores[:30], labels[:30]).probabilities(scores[30:])
    before = calibration_error(scores[30:], labels[30:])
    assert calibration_error(probabilities, labels[30:]) < before / 2


def test_scores_that_tell_all_images_or_nothing_give_finite_probabilities():
    labels = np.array([[True], [True], [False]])
    sure = fit_calibration(np.array([[1.0], [0.9], [0.0]]), labels)
    assert 1 < sure.slope < 20
    high, low = sure.probabilities(np.array([[1.0], [0.0]])).ravel()
    assert 0 < low < 0.05 and 0.95 < high < 1
    # The wrong way round: the order of a class' images is never turned.
    turned = fit_calibration(np.array([[0.1], [0.2], [0.9]]), labels)
    assert turned.slope == 0
    assert turned.probabilities(np.array([[0.1], [0.9]])) == pytest.approx(0.65, abs=0.02)
    with pytest.raises(ValueError, match="expected held-out images"):
        fit_calibration(np.zeros((0, 1)), np.zeros((0, 1), bool))
