"""Masks become objects."""

import numpy as np
import pytest

from inference.objects import objects_of

CLASSES = ("crack", "dent")


def mask_of(*areas: tuple[slice, slice, int]) -> np.ndarray:
    mask = np.zeros((8, 11), np.uint8)
    for rows, columns, value in areas:
        mask[rows, columns] = value
    return mask


def test_a_mask_without_foreground_has_no_objects():
    kept, objects = objects_of(mask_of(), np.ones((8, 11), np.float32), CLASSES, 1)
    assert objects == [] and not kept.any()


def test_a_mask_of_large_objects_is_kept_as_it_is():
    mask = mask_of((slice(0, 3), slice(0, 4), 1), (slice(0, 3), slice(4, 6), 2))
    kept, objects = objects_of(mask, np.ones(mask.shape, np.float32), CLASSES, 6)
    np.testing.assert_array_equal(kept, mask)  # another class next to it does not join an object
    assert [(one["class"], one["area_px"]) for one in objects] == [("crack", 12), ("dent", 6)]


def test_the_score_is_the_mean_over_the_object_and_not_over_its_box():
    mask = mask_of((slice(0, 2), slice(0, 1), 1), (slice(1, 2), slice(0, 2), 1))  # three pixels
    confidence = np.full(mask.shape, 0.1, np.float32)
    confidence[0, 0], confidence[1, 0], confidence[1, 1] = 0.9, 0.6, 0.3
    _, (one,) = objects_of(mask, confidence, CLASSES, 1)
    assert one["score"] == pytest.approx(0.6, abs=1e-4)
