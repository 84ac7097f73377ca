"""Overlapping tiles of a large image, and the way back from a map per tile to one map."""

import itertools
import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Tile(NamedTuple):
    """A part of an image and its share in the pixels that it has in common with other tiles.

    The weight of pixel (y, x) is row_weights[y] * column_weights[x]; those of all tiles that
    cover a pixel of the image sum to 1. It falls smoothly to 0 where another tile takes over.
    """

    rows: slice
    columns: slice
    row_weights: Tensor  # (h,) float32 in (0, 1]
    column_weights: Tensor  # (w,) float32 in (0, 1]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return len(self.row_weights), len(self.column_weights)


def tiles_of(size: tuple[int, int], side: int, overlap: float) -> list[Tile]:
    """Cover an image with equal, evenly spread tiles.

    Args:
        size: (H, W) of the image.
        side: height and width of a tile in pixels, cut to the image where that is smaller; 0 for
            one tile, the image.
        overlap: neighbours share at least this part of their side, in [0, 0.5].

    Returns:
        The tiles row by row; one with all weights exactly 1 if it holds the image.
    """
    rows, columns = (_spans(length, side or length, overlap) for length in size)
    return [
        Tile(row, column, row_weights, column_weights)
        for row, row_weights in rows
        for column, column_weights in columns
    ]


def blend(parts: Iterable[tuple[Tile, Tensor]], size: tuple[int, int]) -> Tensor:
    """Join maps of tiles into maps of the image; tiles are taken one at a time, in any order.

    Args:
        parts: every tile of the image once, with its maps (C, h, w).
        size: (H, W) of the image.

    Returns:
        (C, H, W), the weighted mean of the tiles at each pixel.
    """
    total = None
    for tile, maps in parts:
        if total is None:
            total = maps.new_zeros(len(maps), *size)
        weights = tile.row_weights[:, None] * tile.column_weights  # (h, w)
        total[:, tile.rows, tile.columns] += maps * weights.to(maps)
    return total


def _spans(length: int, side: int, overlap: float) -> list[tuple[slice, Tensor]]:
    """Cover one axis: the spans of the tiles and the weights of their pixels."""
    side = min(side, length)
    shared = min(round(overlap * side), side - 1)
    count = math.ceil((length - shared) / (side - shared))
    starts = np.linspace(0, length - side, count).round().astype(int).tolist()
    windows = np.zeros((count, length))
    for window, start in zip(windows, starts, strict=True):
        window[start : start + side] = 1
    for i, (first, second) in enumerate(itertools.pairwise(starts)):
        common = first + side - second
        rise = np.sin((np.arange(common) + 0.5) / common * math.pi / 2) ** 2 if common else 0.0
        windows[i, second : first + side] *= 1 - rise
        windows[i + 1, second : first + side] *= rise
    windows /= windows.sum(0)  # not 1 yet where three tiles meet
    return [
        (slice(start, start + side), torch.from_numpy(w[start : start + side].astype(np.float32)))
        for w, start in zip(windows, starts, strict=True)
    ]
