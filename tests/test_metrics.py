"""Scores against hand counts, and the sweep against single thresholds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics import ConfusionMatrix, ThresholdSweep, auto_threshold, pooled_histogram, seed_mask

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


def test_counts_are_int64_and_hold_more_than_32_bits():
    confusion = ConfusionMatrix(1, np.full((2, 2), 2**40, np.int64))
    confusion.update(np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint8))
    assert confusion.counts.dtype == np.int64
    assert confusion.counts[0, 0] == 2**40 + 1
    assert confusion.scores().iou == pytest.approx([100 / 3, 100 / 3])


def test_absent_class_is_left_out_of_every_mean():
    confusion = ConfusionMatrix(2)
    confusion.update(np.array([[0, 1, 1, 1]], np.uint8), np.array([[0, 0, 1, 1]], np.uint8))
    scores = confusion.scores()
    assert np.isnan(scores.iou[2])
    assert scores.miou == pytest.approx((100 / 2 + 200 / 3) / 2)
    assert scores.fp == pytest.approx((100 / 2 + 0) / 2)
    assert scores.fn == pytest.approx((0 + 100 / 3) / 2)


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


def test_seed_is_the_highest_class_above_the_threshold_and_ties_go_to_background():
    cam = np.array([[[0.2, 0.6, 0.7, 0.9]], [[0.1, 0.5, 0.8, 0.9]]], np.float32)
    # 0.2 lies below; 0.6 is a tie with the background; 0.8 wins; 0.9 twice: the first class.
    assert seed_mask(cam, np.array([0, 4]), 0.6).tolist() == [[0, 0, 5, 1]]
    assert seed_mask(cam, np.array([0, 4]), 0.6).dtype == np.uint8
    assert seed_mask(cam[:0], np.zeros(0, np.int64), 0.6).tolist() == [[0, 0, 0, 0]]
    with pytest.raises(ValueError, match=r"cam: expected shape \(1, H, W\), got \(2, 1, 4\)"):
        seed_mask(cam, np.array([0]), 0.6)


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


def slow_otsu(histogram: np.ndarray) -> float:
    """Try every cut: the first with the largest variance between its sides, in plain loops."""
    best, cut = -1.0, None
    for level in range(len(histogram) - 1):
        sides = ([], [])
        for i, count in enumerate(histogram):
            sides[i > level].append((i, float(count)))
        sizes = [sum(c for _, c in side) for side in sides]
        if min(sizes) == 0:
            continue
        means = [sum(i * c for i, c in side) / n for side, n in zip(sides, sizes, strict=True)]
        variance = sizes[0] * sizes[1] * (means[0] - means[1]) ** 2
        if variance > best * (1 + 1e-12):
            best, cut = variance, level
    below = max(i for i in range(cut + 1) if histogram[i])
    above = min(i for i in range(cut + 1, len(histogram)) if histogram[i])
    return (below + above) / 2 / (len(histogram) - 1)


@pytest.mark.parametrize("seed", range(4))
def test_auto_threshold_matches_a_loop_over_all_cuts(seed):
    rng = np.random.default_rng(seed)
    histogram = rng.integers(0, 1000, 256) * (rng.random(256) < (0.05, 0.3, 0.9, 1)[seed])
    assert auto_threshold(histogram) == pytest.approx(slow_otsu(histogram), abs=1e-12)


def test_auto_threshold_lies_halfway_between_two_values():
    histogram = np.zeros(256, np.int64)
    histogram[[51, 204]] = 900, 100
    assert auto_threshold(histogram) == pytest.approx(127.5 / 255)


@pytest.mark.parametrize("occupied", [[], [7]])
def test_auto_threshold_needs_two_values(occupied):
    histogram = np.zeros(256, np.int64)
    histogram[occupied] = 5
    with pytest.raises(ValueError, match=f"two or more different values, got {len(occupied)}"):
        auto_threshold(histogram)


def test_histogram_pools_the_maxima_of_images_with_classes():
    cams = [np.array([[[0.0, 0.2]], [[1.0, 0.1]]]), np.zeros((0, 4, 4)), np.array([[[0.2]]])]
    histogram = pooled_histogram(cams)
    assert {int(i): int(histogram[i]) for i in np.flatnonzero(histogram)} == {51: 2, 255: 1}
    assert histogram.shape == (256,)
