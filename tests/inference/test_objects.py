"""Masks become objects, and objects COCO annotations."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from inference.objects import coco_annotation, objects_of

CLASSES = ("crack", "dent")
SIZE = (8, 11)


def mask_of(*areas: tuple[slice, slice, int]) -> np.ndarray:
    mask = np.zeros((8, 11), np.uint8)
    for rows, columns, value in areas:
        mask[rows, columns] = value
    return mask


def objects_in(mask: np.ndarray, min_area: int = 1) -> list[dict]:
    return objects_of(mask, np.ones(mask.shape, np.float32), CLASSES, min_area)[1]


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


def test_run_lengths_give_back_the_pixels_of_the_object():
    mask = mask_of((slice(1, 6), slice(2, 9), 2), (slice(3, 4), slice(4, 6), 0))  # with a hole
    (one,) = objects_in(mask)
    entry = coco_annotation(one, SIZE, "coco", CLASSES)
    assert isinstance(entry["segmentation"]["counts"], str)  # JSON holds no bytes
    np.testing.assert_array_equal(coco_mask.decode(entry["segmentation"]), mask == 2)
    del entry["segmentation"]
    assert entry == {
        "category_id": 2,
        "area": 5 * 7 - 2,
        "bbox": [2, 1, 7, 5],
        "score": 1.0,
        "iscrowd": 0,
    }


def test_polygons_go_through_the_centres_of_border_pixels():
    (one,) = objects_in(mask_of((slice(2, 5), slice(3, 7), 1)))
    entry = coco_annotation(one, SIZE, "coco-polygons", CLASSES)
    (polygon,) = entry["segmentation"]
    corners = set(zip(polygon[::2], polygon[1::2], strict=True))
    # Columns 3 to 6 and rows 2 to 4, whose centres lie half a pixel further.
    assert corners == {(3.5, 2.5), (6.5, 2.5), (3.5, 4.5), (6.5, 4.5)}
    assert (entry["category_id"], entry["bbox"], entry["area"]) == (1, [3, 2, 4, 3], 12)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (2, 2), (6, 2)])
def test_the_polygon_of_a_thin_object_is_its_box(height, width):
    (one,) = objects_in(mask_of((slice(2, 2 + height), slice(3, 3 + width), 1)))
    (polygon,) = coco_annotation(one, SIZE, "coco-polygons", CLASSES)["segmentation"]
    x, y = 3 + width, 2 + height
    assert polygon == [3, 2, x, 2, x, y, 3, y]


def test_annotations_do_not_change_the_object():
    (one,) = objects_in(mask_of((slice(2, 5), slice(3, 7), 1)))
    before = one["pixels"].copy(), list(one["box"]), [list(map(list, c)) for c in one["contours"]]
    for form in ("coco", "coco-polygons"):
        coco_annotation(one, SIZE, form, CLASSES)
    np.testing.assert_array_equal(one["pixels"], before[0])
    assert (one["box"], one["contours"]) == before[1:]
