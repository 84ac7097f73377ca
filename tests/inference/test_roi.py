"""Regions in which defects are looked for."""

import numpy as np
import pytest

from datasets.files import write_image
from inference.roi import Roi


def test_a_polygon_holds_its_corners():
    region = Roi("2,1 5,1 5,3 2,3").of((6, 8), "a.png")

    assert region.shape == (6, 8) and region.dtype == bool
    assert np.argwhere(region).min(axis=0).tolist() == [1, 2]
    assert np.argwhere(region).max(axis=0).tolist() == [3, 5]
    assert region.sum() == 12


def test_a_polygon_ends_with_the_picture():
    assert Roi("-9,-9 99,-9 99,99 -9,99").of((3, 4), "a.png").all()


def test_bright_pixels_of_a_picture_are_inside(tmp_path):
    grey = np.zeros((4, 5), np.uint8)
    grey[1, 2], grey[3, 4] = 128, 127
    write_image(tmp_path / "roi.png", grey)

    region = Roi(str(tmp_path / "roi.png")).of((4, 5), "a.png")

    assert np.argwhere(region).tolist() == [[1, 2]]
    with pytest.raises(ValueError, match=r"a.png: expected the size of the region .* \(5, 4\)"):
        Roi(str(tmp_path / "roi.png")).of((5, 4), "a.png")


@pytest.mark.parametrize("given", ["none.png", "1,2 3,4", "1,2 3,4 5", "1,2 3,4 x,6", "1 2 3"])
def test_what_is_no_region_is_refused(given):
    with pytest.raises(ValueError, match="roi: expected a picture, or three or more corners"):
        Roi(given)


def test_regions_without_a_pixel_are_refused(tmp_path):
    write_image(tmp_path / "black.png", np.zeros((4, 5), np.uint8))
    with pytest.raises(ValueError, match="roi: expected a pixel inside, got none in .*black.png"):
        Roi(str(tmp_path / "black.png"))
    with pytest.raises(ValueError, match="roi: expected a pixel inside"):
        Roi("90,90 95,90 95,95").of((4, 5), "a.png")
    with pytest.raises(ValueError, match="roi: expected corners in pixels"):
        Roi("1,1 2,2 nan,3")
