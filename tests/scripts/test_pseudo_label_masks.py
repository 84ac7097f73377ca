"""Masks from CAMs: thresholds, the uncertain band, and what contradicts the labels."""

import numpy as np

from make_pseudo_labels import doubted, pseudo_label

HALF = (0.5, 0.5, 0.5)


def test_band_and_threshold_equal_the_hand_calculation():
    # Highest CAM:  .25 .5 .625 .75 1   distance to .5:  .25 0 .125 .25 .5
    first = [0.25, 0.5, 0.625, 0.25, 0.0]
    second = [0.0, 0.25, 0.5, 0.75, 1.0]
    maps, classes = np.array([[first], [second]], np.float32), (0, 2)

    # Ties (.5 at .5) are background; class 0 is value 1, class 2 is value 3.
    assert pseudo_label(maps, classes, HALF, 0).tolist() == [[0, 0, 1, 3, 3]]
    # Band .25 takes the distances 0 and .125; .25 is not less than .25.
    assert pseudo_label(maps, classes, HALF, 0.25).tolist() == [[0, 255, 255, 3, 3]]
    assert pseudo_label(maps, classes, HALF, 0.26).tolist() == [[255, 255, 255, 255, 3]]


def test_what_contradicts_the_labels_is_ignored():
    mask = np.array([[0, 0, 1, 1], [0, 0, 1, 1]], np.uint8)

    assert np.array_equal(doubted(mask, (0,), 0.5), mask)
    # Class 1 must be somewhere, so the background is doubtful; what is of class 0 stays.
    assert doubted(mask, (0, 1), 0.5).tolist() == [[255, 255, 1, 1]] * 2
    # Class 0 is too large to be right; the background stays.
    assert doubted(mask, (0,), 0.4).tolist() == [[0, 0, 255, 255]] * 2
    assert doubted(mask * 0, (), 0.4).max() == 0


def test_defect_free_image_is_all_background():
    mask = pseudo_label(np.zeros((0, 4, 7), np.float32), (), HALF, 0.4)

    assert mask.shape == (4, 7) and mask.dtype == np.uint8
    assert not mask.any()


def test_each_class_has_its_own_threshold_and_band():
    # Thresholds .25 and .75 become .5: class 0 is .5, .667, .4 there, class 2 .667, .5, .833.
    maps = np.array([[[0.25, 0.5, 0.2]], [[1.0, 0.75, 0.1]]], np.float32)
    thresholds = (0.25, 0.9, 0.75)

    assert pseudo_label(maps, (0, 2), thresholds, 0).tolist() == [[3, 1, 0]]
    assert pseudo_label(maps[1:], (2,), thresholds, 0).tolist() == [[3, 0, 0]]
    assert pseudo_label(maps, (0, 2), thresholds, 0.11).tolist() == [[3, 1, 255]]
    assert pseudo_label(maps, (0, 2), thresholds, 0.2).tolist() == [[3, 255, 255]]
