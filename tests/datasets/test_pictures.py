"""Cells, colours and captions of the sheets."""

import numpy as np
import pytest
from PIL import ImageFont

from datasets.pictures import (
    CAPTION,
    CELL,
    GAP,
    caption_row,
    colour_legend,
    fit_cell,
    labelled_grid,
    paint_cam,
    paint_mask,
)


def test_cell_keeps_the_aspect_and_paint_the_background():
    image = np.full((20, 80, 3), 100, np.uint8)
    mask = np.zeros((20, 80), np.uint8)
    mask[:, 40:] = 2
    mask[:, 79] = 255
    painted = paint_mask(image, mask)
    # 0.4 of the image and 0.6 of green (0, 128, 0) or white.
    assert painted[0, 0] * 255 == pytest.approx([100, 100, 100])
    assert painted[0, 40] * 255 == pytest.approx([40, 116.8, 40])
    assert painted[0, 79] * 255 == pytest.approx([193, 193, 193])
    cell = fit_cell(painted)
    assert cell.shape == (CELL + GAP, CELL + GAP, 3)
    assert cell[:40, :160].all() and not cell[40:].any() and not cell[:, 160:].any()
    assert fit_cell(np.ones((2, 4000, 3)))[0, 0].tolist() == [255, 255, 255]
    assert colour_legend(["inclusion", "patches"]) == (
        "RGB of the classes: inclusion (128, 0, 0), patches (0, 128, 0)"
    )


@pytest.mark.parametrize("pillow_10_0", [False, True])
def test_captions_stand_over_their_column(monkeypatch, pillow_10_0):
    if pillow_10_0:  # its only font has one size
        load = getattr(ImageFont, "load_default_imagefont", ImageFont.load_default)
        font = load()

        def load_default() -> ImageFont.ImageFont:
            return font

        monkeypatch.setattr(ImageFont, "load_default", load_default)
    row = caption_row(["image", "", "pseudo label"])
    assert row.shape == (CAPTION, 3 * (CELL + GAP), 3) and row.dtype == np.uint8
    inked = [part.min() < 128 for part in np.split(row, 3, axis=1)]
    assert inked == [True, False, True]
    dark = np.flatnonzero(row[:, : CELL + GAP].min(axis=(0, 2)) < 128)
    assert abs((dark[0] + dark[-1]) / 2 - CELL / 2) <= 3  # in the middle


def test_a_cam_is_painted_in_the_colour_of_its_highest_class():
    image = np.full((2, 3, 3), 100, np.uint8)
    cam = np.array([[[0.0, 0.5, 1.0]] * 2, [[0.25, 0.25, 0.25]] * 2])
    painted = 255 * paint_cam(image, cam, np.array([0, 1]))
    # Red (128, 0, 0) or green (0, 128, 0) over 0.6 of the image.
    assert painted[0, 0] == pytest.approx([45, 45 + 32, 45])
    assert painted[0, 1] == pytest.approx([30 + 64, 30, 30])
    assert painted[0, 2] == pytest.approx([128, 0, 0])
    empty = 255 * paint_cam(image, np.zeros((0, 2, 3)), np.zeros(0, int))
    assert empty == pytest.approx(np.full((2, 3, 3), 60))


def test_a_grid_has_a_caption_over_each_column_and_a_name_before_each_row():
    side, pictures = CELL + GAP, [np.ones((2, 2, 3)), np.zeros((2, 2, 3))]
    grid = labelled_grid(
        ["crack, " * 20, "\u5212\u75d5"], {"image": pictures, "CAM": pictures[::-1]}
    )
    assert grid.shape == (CAPTION + 2 * side, 3 * side, 3)
    assert grid[:CAPTION, :side].all() and (grid[:CAPTION, side:] < 128).any()
    assert grid[:CAPTION, 2 * side - GAP : 2 * side].all()  # a long caption is cut
    for row in range(2):
        cells = grid[CAPTION + row * side :][:CELL]
        assert (cells[:, :side] < 128).any()  # the name
        levels = [cells[:, i * side :][:, :CELL].mean() for i in (1, 2)]
        assert levels == ([255, 0] if row == 0 else [0, 255])
