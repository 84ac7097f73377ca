"""Scores against hand counts, and the sweep against single thresholds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scoring.confusion import ConfusionMatrix, LevelledSeeds, ThresholdSweep
from scoring.thresholds import seed_mask

# Of class 0, 1, 2 (pixels): truth 2, 2, 1; predicted 1, 2, 2; both 1, 1, 1; either 2, 3, 2.
TRUTH = np.array([[0, 0, 1], [1, 2, 255]], np.uint8)
PREDICTION = np.array([[0, 1, 1], [2, 2, 1]], np.uint8)


def test_scores_match_a_hand_count():
    confusion = ConfusionMatrix(2)
    confusion.update(TRUTH, PREDICTION)
    assert confusion.counts.tolist() == [[1, 1, 0], [0, 1, 1], [0, 0, 1]]
    scores = confusion.scores()
    assert scores.iou == pytest.approx([100 / 2, 100 / 3, 100 / 2])
    assert scores.miou == confusion.miou() == pytest.approx(400 / 9)  # (1/2 + 1/3 + 1/2) / 3
    assert scores.fp == pytest.approx(500 / 18)  # (0/2 + 1/3 + 1/2) / 3
    assert scores.fn == pytest.approx(500 / 18)  # (1/2 + 1/3 + 0/2) / 3
    assert scores.fg_iou == pytest.approx(75)  # 3 pixels foreground in both, 4 in either


def test_fp_is_what_is_predicted_in_vain_and_fn_what_is_missed():
    confusion = ConfusionMatrix(1)
    confusion.update(np.array([[0, 1, 1, 1]], np.uint8), np.array([[0, 0, 1, 1]], np.uint8))
    # Background: 1 pixel, 2 predicted, so 1 of 2 in vain; class 0: 3 pixels, 1 of them missed.
    scores = confusion.scores()
    assert scores.fp == pytest.approx(100 * (1 / 2 + 0) / 2)
    assert scores.fn == pytest.approx(100 * (0 + 1 / 3) / 2)


def test_iou_fp_and_fn_make_up_a_whole():
    confusion = ConfusionMatrix(2, np.array([[50, 3, 2], [7, 11, 5], [1, 0, 13]], np.int64))
    scores = confusion.scores()
    assert scores.miou + scores.fp + scores.fn == pytest.approx(100)


def test_batches_count_like_their_images():
    batch = ConfusionMatrix(2)
    batch.update(np.stack([TRUTH, TRUTH.T.reshape(2, 3)]), np.stack([PREDICTION, PREDICTION]))
    single = ConfusionMatrix(2)
    single.update(TRUTH, PREDICTION)
    single.update(TRUTH.T.reshape(2, 3), PREDICTION)
    assert np.array_equal(batch.counts, single.counts)


def test_uncertain_predictions_count_as_background():
    confusion = ConfusionMatrix(1)
    confusion.update(np.array([[0, 1]], np.uint8), np.array([[255, 255]], np.uint8))
    assert confusion.counts.tolist() == [[1, 0], [1, 0]]


def test_foreground_iou_is_none_without_foreground():
    confusion = ConfusionMatrix(2)
    confusion.update(np.zeros((2, 3), np.uint8), np.zeros((2, 3), np.uint8))
    assert confusion.scores().fg_iou is None
    assert confusion.scores().miou == 100


def test_nothing_to_score_is_an_error():
    confusion = ConfusionMatrix(2)
    confusion.update(np.full((2, 3), 255, np.uint8), np.zeros((2, 3), np.uint8))
    with pytest.raises(ValueError, match="masks: expected a pixel to score, got only 255"):
        confusion.scores()


def test_sizes_and_classes_are_checked():
    with pytest.raises(ValueError, match=r"size \(H, W\) of its mask, \(2, 3\), got \(3, 2\)"):
        ConfusionMatrix(2).update(TRUTH, PREDICTION.T)
    for truth, prediction in ((TRUTH, PREDICTION + 1), (TRUTH + (TRUTH == 2), PREDICTION)):
        with pytest.raises(ValueError, match=r"expected mask values 0\.\.2 and 255, got 3"):
            ConfusionMatrix(2).update(truth, prediction)
    sweep = ThresholdSweep([0.5], 2)
    with pytest.raises(ValueError, match=r"size \(H, W\) of its mask, \(2, 3\), got \(3, 2\)"):
        sweep.update(TRUTH, np.zeros((1, 3, 2), np.float32), [0])
    with pytest.raises(ValueError, match=r"expected class indices 0\.\.1, got \[0, 2\]"):
        sweep.update(TRUTH, np.zeros((2, 2, 3), np.float32), [0, 2])
    with pytest.raises(ValueError, match="expected finite CAM values, got NaN"):
        sweep.update(TRUTH, np.full((1, 2, 3), np.nan, np.float32), [0])


@pytest.mark.parametrize("make", [ConfusionMatrix, lambda k: LevelledSeeds([0.5] * k)])
def test_masks_of_more_than_254_classes_are_refused(make):
    counter = make(254)
    truth = np.full((1, 2), 254, np.uint8)
    ConfusionMatrix.update(counter, truth, truth)
    assert counter.counts[254, 254] == 2
    with pytest.raises(ValueError, match="confusion matrix: expected at most 254 .* got 255"):
        make(255)


def test_sweeps_of_more_than_254_classes_are_refused():
    sweep = ThresholdSweep([0.5], 254)
    sweep.update(np.full((1, 2), 254, np.uint8), np.ones((1, 1, 2), np.float32), [253])
    assert sweep.confusion(0.5).counts[254, 254] == 2
    with pytest.raises(ValueError, match="threshold sweep: expected at most 254 .* got 255"):
        ThresholdSweep([0.5], 255)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 13), st.integers(1, 9), st.integers(0, 3))
def test_threshold_sweep_equals_single_threshold_runs(seed, height, width, num_maps):
    rng = np.random.default_rng(seed)
    thresholds = [0.0, 0.1, 0.3, 0.6, 0.66, 1.0]
    sweep = ThresholdSweep(thresholds, 3)
    single = {t: ConfusionMatrix(3) for t in thresholds}
    for _ in range(2):
        truth = rng.choice(np.array([0, 1, 2, 3, 255], np.uint8), (height, width))
        # Values in tenths: many are ties, with the background and between classes.
        cam = (rng.integers(0, 11, (num_maps, height, width)) / 10).astype(np.float32)
        classes = np.sort(rng.permutation(3)[:num_maps])
        sweep.update(truth, cam, classes)
        for t, confusion in single.items():
            confusion.update(truth, seed_mask(cam, classes, t))
    for t, confusion in single.items():
        assert np.array_equal(sweep.confusion(t).counts, confusion.counts)


def test_best_threshold_of_a_sweep_has_the_highest_miou():
    sweep = ThresholdSweep([0.2, 0.4, 0.6, 0.8], 1)
    cam = np.array([[[0.1, 0.3, 0.5, 0.7]]], np.float32)
    sweep.update(np.array([[0, 0, 0, 1]], np.uint8), cam, [0])
    assert sweep.best() == 0.6
    assert sweep.confusion(0.6).miou() == 100


def test_cam_without_classes_is_background_whatever_its_size():
    sweep = ThresholdSweep([0.0, 0.5], 2)
    sweep.update(TRUTH, np.zeros((0, 0, 0), np.float32), np.zeros(0, np.int64))
    for threshold in (0.0, 0.5):
        assert sweep.confusion(threshold).counts[:, 0].tolist() == [2, 2, 1]
        assert sweep.confusion(threshold).counts[:, 1:].sum() == 0


def test_levelled_seeds_cut_each_class_at_its_own_threshold():
    # Class 0 at .25: .5 is a third of the way up, 2/3 levelled; class 1 at .75: .6 is background.
    cam = np.array([[[0.5, 0.25, 0.0, 0.3]], [[0.6, 0.0, 0.9, 0.9]]], np.float32)
    truth = np.array([[1, 0, 2, 1]], np.uint8)
    seeds = LevelledSeeds((0.25, 0.75))
    seeds.update(truth, cam, np.array([0, 1]))
    # Last pixel: .3 levels to .533, .9 to .8, so class 1 wins.
    assert seeds.counts.tolist() == [[1, 0, 0], [0, 1, 1], [0, 0, 1]]
    seeds.update(truth, cam[:0], np.array([], np.int64))
    assert seeds.counts.tolist() == [[2, 0, 0], [2, 1, 1], [1, 0, 1]]


def test_levelled_seeds_with_equal_thresholds_are_the_seeds_of_one():
    rng = np.random.default_rng(0)
    cam = rng.integers(0, 65, (2, 9, 7)).astype(np.float32) / 64
    truth = rng.integers(0, 3, (9, 7)).astype(np.uint8)
    seeds, sweep = LevelledSeeds((0.5, 0.5)), ThresholdSweep([0.5], 2)
    for counter in (seeds, sweep):
        counter.update(truth, cam, np.array([0, 1]))
    assert np.array_equal(seeds.counts, sweep.confusion(0.5).counts)
