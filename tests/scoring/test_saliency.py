"""Scores of saliency maps against hand counts, scikit-learn and the sweep."""

import numpy as np
import pytest
from sklearn.metrics import (
    average_precision_score,
    mean_absolute_error,
    precision_recall_curve,
    roc_auc_score,
)

from scoring.confusion import ThresholdSweep
from scoring.saliency import SaliencyHistogram, SaliencyScores
from scoring.thresholds import seed_mask

TRUTH = np.array([[0, 0, 1], [1, 2, 255]], np.uint8)


def as_map(levels: np.ndarray | list) -> np.ndarray:
    """Return 8-bit levels as read_saliency does."""
    return np.array(levels, np.uint8).astype(np.float32) / 255


def test_saliency_scores_match_a_hand_count():
    histogram = SaliencyHistogram(3)
    histogram.update(TRUTH, as_map([[0, 102, 102], [204, 0, 255]]), labelled=True)
    # Defects .4, .8 (class 0) and 0 (class 1); background 0, .4.
    scores = histogram.scores()
    assert scores.auroc == pytest.approx(400 / 6)  # 1.5 + 2 + 0.5 of 3 x 2 pairs
    assert scores.ap == pytest.approx(100 * (1 + 2 / 3 + 3 / 5) / 3)
    # Above 0: 2 of 3 found are right, of 3. Above .4: the one found is right.
    assert scores.max_f == pytest.approx(130 / (0.3 * 3 + 1))  # the other: 1.3 * 2 / (.9 + 3)
    assert scores.best_fg_iou == pytest.approx(50)  # 2 of 4; above .4 1 of 3
    assert scores.best_fg_threshold == 0
    assert scores.mae == pytest.approx(100 * (0 + 0.4 + 0.6 + 0.2 + 1) / 5)
    assert histogram.recall(0.3)[:2].tolist() == [100, 0]
    assert histogram.recall(0.4)[:2].tolist() == [50, 0]  # .4 is not above .4
    assert np.isnan(histogram.recall(0.4)[2])  # no such pixel
    assert histogram.false_alarm(0.4) is None
    assert histogram.defect_free_images == 0


@pytest.mark.parametrize("num_levels", [2, 9, 256])
@pytest.mark.parametrize("seed", range(3))
def test_saliency_scores_match_scikit_learn(seed, num_levels):
    rng = np.random.default_rng(seed)
    levels = np.sort(rng.permutation(256)[:num_levels])  # ties; 0 and 255 there or not
    histogram, truths, maps = SaliencyHistogram(2), [], []
    for size in ((7, 5), (3, 11), (1, 13)):
        truth = rng.choice(np.array([0, 0, 1, 2, 255], np.uint8), size)
        saliency = as_map(rng.choice(levels, size))
        histogram.update(truth, saliency, labelled=True)
        maps.append(saliency[truth != 255])
        truths.append(truth[truth != 255] > 0)
    truth, saliency = np.concatenate(truths), np.concatenate(maps).astype(np.float64)
    scores = histogram.scores()
    assert scores.auroc == pytest.approx(100 * roc_auc_score(truth, saliency))
    assert scores.ap == pytest.approx(100 * average_precision_score(truth, saliency))
    assert scores.mae == pytest.approx(100 * mean_absolute_error(truth, saliency), rel=1e-6)
    precision, recall, at_least = precision_recall_curve(truth, saliency)
    reachable = at_least > 0  # no threshold lies below 0
    precision, recall = precision[:-1][reachable], recall[:-1][reachable]
    f_beta = 1.3 * precision * recall / np.maximum(0.3 * precision + recall, 1e-12)
    assert scores.max_f == pytest.approx(100 * f_beta.max(initial=0))


@pytest.mark.parametrize("seed", range(4))
def test_best_foreground_iou_is_the_best_of_a_sweep_over_all_levels(seed):
    rng = np.random.default_rng(seed)
    sweep = ThresholdSweep([level / 255 for level in range(256)], 1)
    histogram = SaliencyHistogram(1)
    for size in ((7, 5), (3, 11)):
        truth = rng.choice(np.array([0, 1, 255], np.uint8), size)
        saliency = as_map(rng.integers(0, 256, size) // 2 + 100 * (truth == 1))
        sweep.update(truth, saliency[None], [0])
        histogram.update(truth, saliency, labelled=True)
    ious = {t: sweep.confusion(t).scores().fg_iou for t in sweep.thresholds}
    scores = histogram.scores()
    assert scores.best_fg_iou == pytest.approx(max(ious.values()))
    assert scores.best_fg_threshold == max(ious, key=ious.get)  # the lowest of equals


def test_thresholds_mean_the_same_in_histogram_and_seed_mask():
    saliency = as_map(np.arange(256).reshape(8, 32))
    free, defect = SaliencyHistogram(1), SaliencyHistogram(1)
    free.update(np.zeros((8, 32), np.uint8), saliency, labelled=False)
    defect.update(np.ones((8, 32), np.uint8), saliency, labelled=True)
    for threshold in (*(i / 255 for i in range(256)), *(i / 100 for i in range(101))):
        share = 100 * seed_mask(saliency[None], [0], threshold).mean()
        assert free.false_alarm(threshold) == pytest.approx(share)
        assert defect.recall(threshold)[0] == pytest.approx(share)


def test_false_alarm_is_a_mean_over_images_of_any_size():
    histogram = SaliencyHistogram(2)
    ignored = np.array([[0, 255, 0, 0, 0]], np.uint8)
    histogram.update(ignored, as_map([[200, 200, 0, 0, 0]]), labelled=False)  # 1 of 4 pixels
    histogram.update(np.zeros((3, 5), np.uint8), as_map(np.full((3, 5), 200)), labelled=False)
    histogram.update(TRUTH, as_map(np.full((2, 3), 200)), labelled=True)  # has defects
    assert histogram.defect_free_images == 2
    assert histogram.false_alarm(0.5) == pytest.approx((25 + 100) / 2)
    assert histogram.false_alarm(0.8) == 0
    assert histogram.counts.sum() == 5  # the pixels of the last image


def test_images_without_label_leave_only_the_false_alarm():
    histogram = SaliencyHistogram(2)
    assert histogram.scores() == SaliencyScores(*[None] * 6)
    histogram.update(np.zeros((2, 3), np.uint8), as_map(np.full((2, 3), 9)), labelled=False)
    histogram.update(np.full((2, 3), 255, np.uint8), as_map(np.full((2, 3), 9)), labelled=False)
    assert histogram.scores() == SaliencyScores(*[None] * 6)
    assert np.isnan(histogram.recall(0.5)).all()
    assert (histogram.defect_free_images, histogram.false_alarm(0.01)) == (1, 100)


def test_labelled_image_with_an_empty_mask_is_scored_and_defect_free():
    histogram = SaliencyHistogram(2)
    histogram.update(np.zeros((1, 5), np.uint8), as_map([[0, 0, 0, 51, 204]]), labelled=True)
    scores = histogram.scores()
    assert scores.mae == pytest.approx(20)  # (.2 + .8) / 5
    assert scores._replace(mae=None) == SaliencyScores(*[None] * 6)
    assert histogram.defect_free_images == 1
    assert histogram.false_alarm(0.5) == pytest.approx(20)


def test_saliency_without_background_has_no_auroc():
    histogram = SaliencyHistogram(1)
    histogram.update(np.array([[1, 1, 255]], np.uint8), as_map([[0, 255, 7]]), labelled=True)
    scores = histogram.scores()
    assert scores.auroc is None
    assert (scores.ap, scores.mae, scores.best_fg_iou) == (100, 50, 50)


def test_above_the_highest_level_there_is_nothing():
    histogram = SaliencyHistogram(1)
    histogram.update(np.array([[1, 0]], np.uint8), as_map([[51, 204]]), labelled=True)
    scores = histogram.scores()
    # The defect lies below the background, so both at once are the best: 1.3 / (0.3 + 2), 1 of 2.
    assert scores.max_f == pytest.approx(130 / 2.3)
    assert (scores.best_fg_iou, scores.best_fg_threshold) == (50, 0)


def test_saliency_that_does_not_fit_is_refused():
    histogram = SaliencyHistogram(2)
    with pytest.raises(ValueError, match=r"size \(H, W\) of its mask, \(2, 3\), got \(3, 2\)"):
        histogram.update(TRUTH, np.zeros((3, 2), np.float32), labelled=True)
    for value in (-0.1, 1.1, np.nan):
        with pytest.raises(ValueError, match=f"values from 0 to 1, got {value:g} to {value:g}"):
            histogram.update(TRUTH, np.full((2, 3), value), labelled=True)
