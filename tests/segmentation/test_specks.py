"""What is too small to be a region of its class is learnt, and left out."""

import numpy as np
import pytest

from segmentation.specks import least_areas, without_specks


def mask_of(*rows: str) -> np.ndarray:
    return np.array([list(row.replace(".", "0")) for row in rows]).astype(np.uint8)


def test_a_speck_has_half_of_the_least_area_that_is_not_small():
    mask = np.zeros((100, 100), np.uint8)
    mask[:, :10] = 1  # 1,000 pixels; regions of 1, 3 and 6 are together 1 % and less
    mask[0, 20], mask[10, 20:23], mask[20, 20:26], mask[30, 20:48] = 1, 1, 1, 1
    mask[40:44, 50:54] = 2  # one region alone is no speck

    areas = least_areas([mask], 3)

    assert areas == pytest.approx([28 / 2 / 10_000, 16 / 2 / 10_000, 0])
    kept = without_specks(mask, areas)
    assert [(kept == k).sum() for k in (1, 2)] == [1028, 16]


def test_areas_are_shares_of_images_of_any_size():
    small, large = np.zeros((10, 10), np.uint8), np.zeros((100, 100), np.uint8)
    small[:5], large[0, :50] = 1, 1  # half of the image, and half of a percent of it: small

    assert least_areas([small, large], 1) == pytest.approx([0.5 / 2])


def test_a_speck_becomes_what_surrounds_it():
    mask = mask_of(
        "1111......",
        "12113.....",  # a 2 within 1; a 3 that touches 1 at three pixels, background at five
        "1111......",
        "..........",
        "......22..",
        ".......2..",
        "2.........",
        ".2........",  # joined at a corner
    )

    kept = without_specks(mask, [0, 2 / 80, 2 / 80])

    expected = mask.copy()
    expected[1, 1], expected[1, 4] = 1, 0
    assert kept.tolist() == expected.tolist()
    assert without_specks(mask, [0, 3 / 80, 0])[6:, :2].sum() == 0


def test_without_areas_and_in_a_mask_of_one_speck_nothing_fails():
    mask = np.ones((2, 2), np.uint8)

    assert without_specks(mask, []).tolist() == mask.tolist()
    assert not without_specks(mask, [1.1]).any()
