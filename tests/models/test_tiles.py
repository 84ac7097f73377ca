"""Tiles cover an image once in weight, and blending gives back what was cut."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.tiles import blend, tiles_of

GRIDS = given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    side=st.integers(0, 40),
    overlap=st.floats(0, 0.5),
)


def spans(tiles, axis):
    found = sorted({(tile[axis].start, tile[axis].stop) for tile in tiles})
    return [range(*span) for span in found]


@settings(max_examples=100, deadline=None)
@GRIDS
def test_weights_of_every_pixel_sum_to_one(size, side, overlap):
    total = torch.zeros(size)
    for tile in tiles_of(size, side, overlap):
        assert tile.row_weights.min() > 0 and tile.column_weights.min() > 0
        total[tile.rows, tile.columns] += tile.row_weights[:, None] * tile.column_weights
    torch.testing.assert_close(total, torch.ones(size), rtol=0, atol=1e-5)


@settings(max_examples=100, deadline=None)
@GRIDS
def test_tiles_are_equal_inside_the_image_and_overlap_enough(size, side, overlap):
    tiles = tiles_of(size, side, overlap)
    for axis, length in enumerate(size):
        expected = min(side or length, length)
        found = spans(tiles, axis)
        assert found[0].start == 0 and found[-1].stop == length
        assert all(len(span) == expected for span in found)
        shared = min(round(overlap * expected), expected - 1)
        assert all(a.stop - b.start >= shared for a, b in zip(found, found[1:], strict=False))
    assert len(tiles) == len(spans(tiles, 0)) * len(spans(tiles, 1))


@settings(max_examples=50, deadline=None)
@GRIDS
def test_parts_of_a_map_blend_to_the_map_in_any_order(size, side, overlap):
    whole = torch.rand(2, *size, generator=torch.Generator().manual_seed(0))
    tiles = tiles_of(size, side, overlap)
    random.Random(0).shuffle(tiles)
    parts = ((tile, whole[:, tile.rows, tile.columns]) for tile in tiles)
    torch.testing.assert_close(blend(parts, size), whole, rtol=0, atol=1e-5)


@pytest.mark.parametrize("side", [0, 31, 50])
def test_a_small_image_is_one_tile_and_comes_back_bit_for_bit(side):
    whole = torch.randn(3, 19, 31, generator=torch.Generator().manual_seed(1))
    (tile,) = tiles_of((19, 31), side, 0.4)
    assert tile.size == (19, 31)
    assert torch.equal(blend([(tile, whole)], (19, 31)), whole)


def test_a_strip_by_hand():
    # 1600 columns in tiles of 256 that share 64: (1600 - 64) / (256 - 64) = 8 tiles, 192 apart.
    tiles = tiles_of((256, 1600), 256, 0.25)
    assert [tile.columns.start for tile in tiles] == [192 * i for i in range(8)]
    assert all(tile.rows == slice(0, 256) and (tile.row_weights == 1).all() for tile in tiles)
    first, second = (tile.column_weights for tile in tiles[:2])
    assert (first[:192] == 1).all()
    assert (first[192:].diff() < 0).all()
    torch.testing.assert_close(first[192:], 1 - second[:64])
    assert first[-1] < 1e-3  # no step where the tile ends


def test_blending_fades_from_one_tile_to_the_next():
    # 6 columns in two tiles of 4, 2 in common: rise of sin(pi/8)^2 and sin(3 pi/8)^2.
    tiles = tiles_of((1, 6), 4, 0.5)
    parts = [(tile, torch.full((1, *tile.size), float(i))) for i, tile in enumerate(tiles)]
    low, high = 0.14644661, 0.85355339
    expected = torch.tensor([[[0, 0, low, high, 1, 1]]])
    torch.testing.assert_close(blend(parts, (1, 6)), expected)


def test_maps_keep_their_type():
    tiles = tiles_of((40, 90), 32, 0.25)
    parts = ((tile, torch.ones(1, *tile.size, dtype=torch.float64)) for tile in tiles)
    assert blend(parts, (40, 90)).dtype == torch.float64
