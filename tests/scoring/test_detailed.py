"""Scores for inspection, against figures worked out by hand and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_recall_curve, roc_auc_score

from scoring.confusion import ConfusionMatrix
from scoring.detailed import DetailedScores, area_up_to, border_counts, miou_interval


def square(size, top, left, side, value=1):
    mask = np.zeros((size, size), np.uint8)
    mask[top : top + side, left : left + side] = value
    return mask


def test_dice_accuracy_and_false_alarms_by_hand():
    counted = DetailedScores(2)
    truth = np.array([[0, 1, 1, 2]], np.uint8)
    counted.update(truth, np.array([[0, 1, 2, 2]], np.uint8))
    counted.update(np.zeros((3, 5), np.uint8), np.array([[1, 0, 0, 0, 2]] * 3, np.uint8))
    counted.update(np.zeros((3, 5), np.uint8), np.zeros((3, 5), np.uint8))
    scores = counted.scores(rounds=10)

    # Class 1: one hit; 2 in truth, 1 + 3 predicted. Class 2: one hit; 1 in truth, 2 + 3 predicted.
    assert scores["dice"][1:] == pytest.approx([100 * 2 / 6, 100 * 2 / 6])
    assert scores["dice"][0] == pytest.approx(100 * 2 * 25 / (31 + 25))
    assert scores["pixel_accuracy"] == pytest.approx(100 * 27 / 34)
    assert scores["area_ratio"] == pytest.approx(
        100 * (3 + 6) / 3
    )  # three in the first image, 3 + 3 in an empty one
    assert scores["false_alarms"] == 1.0  # two regions in one image, none in the other
    assert "aupro" not in scores


def test_false_alarms_are_regions_of_eight_neighbours_whatever_their_class():
    prediction = np.array([[1, 0, 0, 0, 2], [0, 2, 0, 0, 0], [0, 0, 0, 1, 0]], np.uint8)
    counted = DetailedScores(2)
    counted.update(np.zeros((3, 5), np.uint8), prediction)
    assert counted.scores(rounds=2)["false_alarms"] == 3  # 1 and 2 touch at a corner


def test_uncertain_and_unscored_pixels_are_no_false_alarms():
    truth, prediction = np.array([[0, 0, 0, 255]], np.uint8), np.array([[1, 0, 255, 1]], np.uint8)
    counted = DetailedScores(1)
    counted.update(truth, prediction)
    assert counted.scores(rounds=2)["false_alarms"] == 1


def test_dice_equals_the_f1_of_scikit_learn():
    rng = np.random.default_rng(0)
    truth, found = rng.integers(0, 4, (2, 40, 30)).astype(np.uint8)
    counted = DetailedScores(3)
    counted.update(truth, found)
    wanted = 100 * f1_score(truth.ravel(), found.ravel(), average=None)
    np.testing.assert_allclose(counted.scores(rounds=2)["dice"], wanted)


@pytest.mark.parametrize(("shift", "near"), [(0, 36), (2, 36), (3, 14 + 2)])
def test_borders_up_to_two_pixels_away_count(shift, near):
    truth, found = square(30, 8, 8, 10) > 0, square(30, 8, 8 + shift, 10) > 0
    hits, num_found, reached, num_true = border_counts(found, truth, tolerance=2)
    assert (num_found, num_true) == (36, 36)
    assert hits == reached  # the shift is symmetric
    if shift < 3:
        assert hits == near
    else:
        rows, columns = np.nonzero(square(30, 8, 11, 10) & ~square(30, 9, 12, 8))
        ring = np.argwhere((square(30, 8, 8, 10) & ~square(30, 9, 9, 8)) > 0)
        points = np.stack([rows, columns], axis=1)
        distance = np.linalg.norm(points[:, None] - ring[None], axis=-1).min(axis=1)
        assert hits == (distance <= 2).sum() < 36


def test_the_image_edge_is_no_border_and_a_missing_class_no_number():
    whole = np.ones((6, 6), bool)
    assert border_counts(whole, whole, 2).tolist() == [0, 0, 0, 0]
    cut = whole.copy()
    cut[0, 0] = False  # (1, 1) has it as a diagonal neighbour only
    assert border_counts(cut, whole, 2).tolist() == [0, 2, 0, 0]
    counted = DetailedScores(2)
    counted.update(square(9, 2, 2, 4), square(9, 2, 2, 4))
    first, second = counted.scores(rounds=2)["boundary_f1"]
    assert first == 100 and second is None


def test_a_class_found_only_where_it_is_not_has_border_score_zero():
    counted = DetailedScores(1)
    counted.update(square(20, 1, 1, 4), square(20, 12, 12, 4))
    assert counted.scores(rounds=2)["boundary_f1"] == [0.0]


def boundary_scores(num_classes, *pairs):
    counted = DetailedScores(num_classes)
    for truth, prediction in pairs:
        counted.update(truth, prediction)
    return counted.scores(rounds=2)["boundary_f1"]


def test_a_class_that_is_missed_or_predicted_in_vain_has_border_score_zero():
    empty, one = square(9, 0, 0, 0), square(9, 2, 2, 4)
    assert boundary_scores(2, (one, empty)) == [0, None]
    assert boundary_scores(2, (empty, one)) == [0, None]
    assert boundary_scores(2, (one, 2 * one)) == [0, 0]
    # Missed in one of two images: all 12 predicted pixels are right, 12 of 24 true ones reached.
    assert boundary_scores(1, (one, one), (one, empty)) == [pytest.approx(200 * 0.5 / 1.5)]


def test_a_class_that_fills_whole_images_has_no_border_but_may_be_missed():
    empty, part, whole = square(9, 0, 0, 0), square(9, 2, 2, 4), square(9, 0, 0, 9)
    assert boundary_scores(1, (whole, whole)) == [None]
    assert boundary_scores(1, (whole, empty)) == [0]
    assert boundary_scores(1, (empty, whole)) == [0]
    assert boundary_scores(1, (whole, part)) == [0]  # a border where there is none
    assert boundary_scores(1, (part, whole)) == [0]
    assert boundary_scores(1, (whole, whole), (part, part)) == [100]
    assert boundary_scores(1, (np.uint8([[0]]), np.uint8([[1]]))) == [0]  # one pixel, no border
    # One border pixel on either side; one in all, of the prediction.
    assert boundary_scores(1, (np.uint8([[1, 0, 0]]), np.uint8([[1, 0, 0]]))) == [100]
    assert boundary_scores(1, (np.uint8([[1, 1, 1]]), np.uint8([[1, 1, 0]]))) == [0]


def test_borders_are_counted_class_by_class_and_added_over_images():
    pairs = []
    for top in (8, 3):
        truth = np.maximum(square(30, top, 8, 10), square(30, 20, 20, 6, value=2))
        prediction = np.maximum(square(30, top, 11, 10), square(30, 20, 17, 9, value=2))
        truth[top + 1, 9], prediction[top, 11] = 255, 255
        pairs.append((truth, prediction))
    expected = []
    for value in (1, 2):
        known = [np.where(t == 255, 255, p) for t, p in pairs]
        counts = sum(
            border_counts(p == value, t == value, 2) for (t, _), p in zip(pairs, known, strict=True)
        )
        precision, recall = counts[0] / counts[1], counts[2] / counts[3]
        assert 0.3 < precision < 1 and 0.3 < recall < 1
        expected.append(200 * precision * recall / (precision + recall))
    assert boundary_scores(2, *pairs) == pytest.approx(expected)


def test_few_border_pixels_in_reach_give_a_low_score():
    truth, prediction = square(30, 4, 4, 10), square(30, 12, 12, 14)
    near_predicted, predicted, near_true, true = border_counts(prediction > 0, truth > 0, 2)
    assert 0 < near_predicted / predicted + near_true / true < 0.9
    f1 = 2 / (predicted / near_predicted + true / near_true)
    assert boundary_scores(1, (truth, prediction)) == [pytest.approx(100 * f1)]


def test_map_scores_equal_scikit_learn():
    rng = np.random.default_rng(1)
    counted, truths, maps = DetailedScores(1), [], []
    for i in range(6):
        truth = square(24, 3, 4, 8) if i % 2 else np.zeros((24, 24), np.uint8)
        score_map = np.clip(rng.random((24, 24)) * 0.7 + 0.2 * truth, 0, 1).round(3)
        truth[0, 0] = 255
        counted.update(truth, (score_map > 0.5).astype(np.uint8), score_map)
        truths.append(truth)
        maps.append(score_map)
    scores = counted.scores(rounds=2)

    known = np.concatenate([t.ravel() for t in truths]) != 255
    flat = np.concatenate([t.ravel() for t in truths])[known] == 1
    values = np.concatenate([m.ravel() for m in maps])[known]
    assert scores["pixel_auroc"] == pytest.approx(100 * roc_auc_score(flat, values))
    precision, recall, _ = precision_recall_curve(flat, values)
    best = (2 * precision * recall / (precision + recall)).max()
    assert scores["max_f1"] == pytest.approx(100 * best)
    defective = [(t == 1).any() for t in truths]
    highest = [m[t != 255].max() for t, m in zip(truths, maps, strict=True)]
    wanted = 100 * roc_auc_score(defective, highest)
    assert scores["image_auroc"] == pytest.approx(wanted)


def test_max_f1_counts_defects_of_value_zero():
    truth = np.array([[1, 1, 0]], np.uint8)
    counted = DetailedScores(1)
    counted.update(truth, truth, np.array([[1.0, 0.0, 0.0]]))
    # Of the first alone 2 / (1 + 2), of all three 4 / (3 + 2).
    assert counted.scores(rounds=2)["max_f1"] == pytest.approx(80)


def test_an_image_score_is_taken_from_scored_pixels_only():
    counted = DetailedScores(1)
    for value, high in ((0, 1.0), (1, 0.6)):  # the defect-free image is high where it is ignored
        truth = np.array([[0, value, 255]], np.uint8)
        counted.update(truth, truth, np.array([[0.1, high / 2, high]]))
    counted.update(np.array([[0, 1, 255]], np.uint8), truth, np.array([[0.1, 0.7, 0.0]]))
    # The defect-free image has 0.5, the others 0.3 and 0.7.
    assert counted.scores(rounds=2)["image_auroc"] == 50


@pytest.mark.parametrize("image_score", [None, 0.9])
def test_an_image_that_is_all_255_is_neither_defective_nor_defect_free(image_score):
    unknown, free, part = square(6, 0, 0, 6, 255), square(6, 0, 0, 0), square(6, 0, 0, 3)
    with_it, without = DetailedScores(1), DetailedScores(1)
    for counted in (with_it, without):
        counted.update(free, part, part / 4)
        counted.update(part, part, part / 2)
    with_it.update(unknown, part, part / 1.0, image_score)
    expected = without.scores(rounds=2)
    assert (expected["false_alarms"], expected["image_auroc"]) == (1, 100)
    assert with_it.scores(rounds=2) == expected


def test_aupro_weighs_a_small_region_like_a_large_one():
    truth = np.zeros((10, 20), np.uint8)
    truth[:4, :10], truth[8, 15] = 1, 1  # 40 pixels and 1 pixel
    score_map = np.where(truth == 1, 1.0, 0.0)
    score_map[8, 15] = 0.0  # the small one is found with all of the background alone
    counted = DetailedScores(1)
    counted.update(truth, truth, score_map)
    # PRO is 1/2 from the start and rises to 1 in a straight line; at 0.3 it is 0.65.
    assert counted.scores(rounds=2)["aupro"] == pytest.approx(100 * (0.5 + 0.65) / 2)


def test_aupro_counts_the_regions_of_all_images():
    counted = DetailedScores(2)
    for sure in (1.0, 0.0):  # both regions of the first image are certain, none of the second
        truth = np.zeros((10, 20), np.uint8)
        truth[:4, :10], truth[8, 15] = 1, 2
        counted.update(truth, truth, np.where(truth > 0, sure, 0.0))
    # PRO is 1/2 from the start and rises to 1 in a straight line; at 0.3 it is 0.65.
    assert counted.scores(rounds=2)["aupro"] == pytest.approx(100 * (0.5 + 0.65) / 2)


def test_area_up_to_cuts_between_points():
    x, y = np.array([0.0, 0.2, 1.0]), np.array([0.0, 1.0, 1.0])
    assert area_up_to(x, y, 0.1) == pytest.approx(0.25)
    assert area_up_to(x, y, 0.4) == pytest.approx((0.1 + 0.2) / 0.4)


def test_bootstrap_interval_holds_the_value_and_shrinks_with_images():
    rng = np.random.default_rng(2)
    confusions = rng.integers(0, 50, (200, 2, 2)) + np.diag([300, 60])
    few, many = (miou_interval(confusions[:n], 300, seed=0) for n in (10, 200))
    total = confusions.sum(axis=0)
    union = total.sum(0) + total.sum(1) - np.diag(total)
    assert many[0] < 100 * (np.diag(total) / union).mean() < many[1]
    assert many[1] - many[0] < (few[1] - few[0]) / 2
    assert miou_interval(confusions[:10], 300, seed=0) == few
    same = np.repeat(confusions[:1], 5, axis=0)
    assert np.ptp(miou_interval(same, 20, seed=0)) == pytest.approx(0)


def test_bootstrap_interval_leaves_out_a_fortieth_at_either_end():
    confusions = np.random.default_rng(1).integers(1, 50, (6, 2, 2))
    rng, values = np.random.default_rng(3), []
    for _ in range(41):
        total = sum(n * c for n, c in zip(rng.multinomial(6, [1 / 6] * 6), confusions, strict=True))
        values.append(ConfusionMatrix(1, total).miou())
    # Of 41 values, 2.5 % of the way from the lowest to the highest is the second.
    expected = sorted(values)[1], sorted(values)[-2]
    assert miou_interval(confusions, 41, seed=3) == pytest.approx(expected)


def test_bootstrap_draws_groups_of_images():
    rng = np.random.default_rng(5)
    grouped, summed, alone = DetailedScores(1), [], DetailedScores(1)
    for part in range(8):
        truth = square(20, 3, 4, 8)
        of_part = []
        for copy in range(4):
            prediction = square(20, 3, 4 + rng.integers(0, 5), 8)
            grouped.update(truth, prediction, group=f"part {part}")
            alone.update(truth, prediction, group=("", None)[copy % 2])
            confusion = ConfusionMatrix(1)
            confusion.update(truth, prediction)
            of_part.append(confusion.counts)
        summed.append(np.sum(of_part, axis=0))
    interval = grouped.scores(rounds=50)["miou_interval"]
    assert interval == miou_interval(np.stack(summed), 50, seed=0)
    assert interval != alone.scores(rounds=50)["miou_interval"]


def test_copies_of_one_picture_do_not_narrow_the_interval():
    once, copied, as_if_new = (DetailedScores(1) for _ in range(3))
    for shift in range(6):
        pair = square(20, 3, 4, 8), square(20, 3, 4 + shift, 8)
        once.update(*pair)
        for _ in range(10):
            copied.update(*pair, group=f"picture {shift}")
            as_if_new.update(*pair)
    intervals = [c.scores(rounds=200)["miou_interval"] for c in (once, copied, as_if_new)]
    assert intervals[1] == pytest.approx(intervals[0])
    assert np.ptp(intervals[2]) < np.ptp(intervals[0]) / 2


def test_bootstrap_leaves_out_images_whose_masks_are_all_255():
    confusions = np.array([[[30, 5], [3, 9]], [[10, 0], [8, 2]]])
    padded = np.concatenate([np.zeros((20, 2, 2), np.int64), confusions])
    assert miou_interval(padded, 100, seed=0) == miou_interval(confusions, 100, seed=0)
    with pytest.raises(ValueError, match="bootstrap: expected an image with a pixel to score"):
        miou_interval(padded[:20], 100, seed=0)


@pytest.mark.parametrize("num_images", [0, 2])
def test_scores_of_no_pixel_are_an_error(num_images):
    counted = DetailedScores(1)
    for _ in range(num_images):
        counted.update(square(6, 0, 0, 6, 255), square(6, 1, 1, 3))
    with pytest.raises(ValueError, match="got only 255 or no image. Check the masks."):
        counted.scores(rounds=2)


@pytest.mark.parametrize("bad", [np.nan, 1.5, -0.1])
def test_map_values_out_of_range_are_refused(bad):
    mask = np.zeros((4, 4), np.uint8)
    with pytest.raises(ValueError, match=r"expected map values in \[0, 1\]"):
        DetailedScores(1).update(mask, mask, np.full((4, 4), bad))


def test_a_map_of_another_size_is_refused():
    mask = np.zeros((4, 4), np.uint8)
    with pytest.raises(ValueError, match=r"size \(H, W\) of its mask, \(4, 4\), got \(4, 5\)"):
        DetailedScores(1).update(mask, mask, np.zeros((4, 5)))
