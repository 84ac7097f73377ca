"""What stac_onnx.py computes with NumPy: resizing, tiles, refinement, regions.

Each function does what PyTorch and OpenCV do in predict.py. Arrays are (H, W), top left first.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

BLOCK = 800  # side of the parts in which larger images are refined, to bound memory
THRESHOLD_FLOOR = 1e-8  # thresholds nearer to 0 or 1 count as this far away
SCORE_FLOOR = 1e-4  # and so do scores
OFFSETS = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
# Steps (x, y) around a pixel, counter-clockwise from the right.
AROUND = ((1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1))


class Tile(NamedTuple):
    """A part of an image; the weights of all tiles sum to 1 at each pixel."""

    rows: slice
    columns: slice
    weights: np.ndarray  # (h, w) float32


class Regions(NamedTuple):
    """Pixels that touch at a side or a corner, n regions in reading order.

    Attributes:
        numbers: (H, W) int, 0 outside and 1..n inside.
        boxes: (n, 4) int, x, y, width, height.
        areas: (n,) int, in pixels.
    """

    numbers: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray

    def inside(self, region: int, margin: int = 0) -> tuple[tuple[slice, slice], np.ndarray]:
        """Return the box of a region, from 0, grown by a margin, and its pixels there."""
        x, y, width, height = self.boxes[region].tolist()
        box = (
            slice(max(y - margin, 0), y + height + margin),
            slice(max(x - margin, 0), x + width + margin),
        )
        return box, self.numbers[box] == region + 1


def network_input(pixels: np.ndarray, size: list[int], mean: list, std: list) -> np.ndarray:
    """Return what a network takes, (1, 3, H, W) float32, of (h, w, 3) uint8 RGB pixels."""
    values = resized_levels(pixels, size).astype(np.float32) / np.float32(255)
    values = (values - np.float32(mean)) / np.float32(std)
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None])


def resized_levels(pixels: np.ndarray, size: list[int]) -> np.ndarray:
    """Resize (h, w, 3) uint8 to (H, W, 3), bilinearly, and averaging where it shrinks.

    In whole numbers, as PyTorch does on CPUs with AVX2: columns first, then rows, each rounded to
    8 bit, with weights of 16 bit. Pillow's weights are finer: a level more or less in places.
    """
    for axis in (1, 0):
        given, wanted = pixels.shape[axis], size[axis]
        if given == wanted:
            continue
        scale = given / wanted
        reach = max(scale, 1.0)
        centres = scale * (np.arange(wanted) + 0.5)
        first = np.maximum((centres - reach + 0.5).astype(np.int64), 0)
        counts = np.minimum((centres + reach + 0.5).astype(np.int64), given) - first
        taps = np.arange(counts.max())[:, None]
        weights = np.maximum(1 - np.abs((taps + first - centres + 0.5) / reach), 0)
        weights *= taps < counts
        weights /= weights.sum(axis=0)
        # The largest weight just fits.
        bits = next(b for b in range(22) if int(0.5 + weights.max() * 2 ** (b + 1)) >= 2**15)
        whole = (weights * 2**bits + 0.5).astype(np.int32)
        shape = (1, -1, 1) if axis else (-1, 1, 1)
        total = np.int32(2 ** (bits - 1))  # rounds
        for tap, of_tap in enumerate(whole):
            chosen = pixels.take(np.minimum(first + tap, given - 1), axis)
            total = total + chosen * of_tap.reshape(shape)
        pixels = np.clip(total >> bits, 0, 255).astype(np.uint8)
    return pixels


def resized_maps(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize (C, h, w) float32 to (C, H, W), bilinearly between the centres of pixels."""
    for axis, length in ((1, size[0]), (2, size[1])):
        given = maps.shape[axis]
        if given == length:
            continue
        place = (np.arange(length, dtype=np.float32) + np.float32(0.5)) * np.float32(given / length)
        place = np.maximum(place - np.float32(0.5), 0)
        first = np.minimum(place.astype(np.int64), given - 1)
        second = np.minimum(first + 1, given - 1)
        share = (place - first).astype(np.float32)
        share = share[:, None] if axis == 1 else share
        maps = maps.take(first, axis) * (1 - share) + maps.take(second, axis) * share
    return maps


def shifted(logits: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Move the logits of classes so that each beats the background from its threshold on.

    Args:
        logits: (K + 1, H, W), background first.
        thresholds: K in [0, 1]: the share p of the class in p + that of the background; 0.5 changes
            nothing.
    """
    levels = np.clip([0.5, *thresholds], THRESHOLD_FLOOR, 1 - THRESHOLD_FLOOR)
    return logits + np.log((1 - levels) / levels).astype(logits.dtype)[:, None, None]


def probabilities(scores: np.ndarray, slope: float, offsets: Sequence[float]) -> np.ndarray:
    """Return the probabilities (K,) of classes by their scores (K,), both in [0, 1].

    Args:
        scores: of the models, averaged.
        slope: of the logit.
        offsets: K, added to the logits.
    """
    inside = np.clip(scores, SCORE_FLOOR, 1 - SCORE_FLOOR)
    return 1 / (1 + np.exp(-slope * np.log(inside / (1 - inside)) - np.array(offsets)))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return probabilities over the first axis."""
    powers = np.exp(logits - logits.max(axis=0))
    return powers / powers.sum(axis=0)


def tiles_of(size: tuple[int, int], side: int, overlap: float) -> list[Tile]:
    """Cover an image of (H, W) with equal tiles; a side of 0 makes one, the image.

    Neighbours share at least the part `overlap` of their side.
    """
    rows, columns = (_spans(length, side or length, overlap) for length in size)
    return [
        Tile(row, column, of_rows[:, None] * of_columns)
        for row, of_rows in rows
        for column, of_columns in columns
    ]


def _spans(length: int, side: int, overlap: float) -> list[tuple[slice, np.ndarray]]:
    """Cover one axis: spans, and the weights of their pixels, which fall smoothly to 0."""
    side = min(side, length)
    shared = min(round(overlap * side), side - 1)
    count = math.ceil((length - shared) / (side - shared))
    starts = np.linspace(0, length - side, count).round().astype(int).tolist()
    windows = np.zeros((count, length))
    for window, start in zip(windows, starts, strict=True):
        window[start : start + side] = 1
    for i, (first, second) in enumerate(pairwise(starts)):
        common = first + side - second
        rise = np.sin((np.arange(common) + 0.5) / max(common, 1) * math.pi / 2) ** 2
        windows[i, second : first + side] *= 1 - rise
        windows[i + 1, second : first + side] *= rise
    windows /= windows.sum(0)  # not 1 yet where three tiles meet
    return [
        (slice(start, start + side), window[start : start + side].astype(np.float32))
        for window, start in zip(windows, starts, strict=True)
    ]


def refined(pixels: np.ndarray, maps: np.ndarray, settings: dict) -> np.ndarray:
    """Average map values with neighbours of like colour (PAMR, Araslanov and Roth, CVPR 2020).

    Args:
        pixels: (H, W, 3) uint8.
        maps: (C, H, W) float32.
        settings: steps, dilations and sharpness, of model.json.

    Returns:
        (C, H, W), within the range of `maps`.
    """
    if not settings["steps"]:
        return maps
    image = pixels.transpose(2, 0, 1).astype(np.float32)
    reach = settings["steps"] * max(settings["dilations"])  # no pixel beyond it matters
    result = np.empty_like(maps)
    for y in range(0, maps.shape[1], BLOCK):
        for x in range(0, maps.shape[2], BLOCK):
            top, left = max(y - reach, 0), max(x - reach, 0)
            seen = (..., slice(top, y + BLOCK + reach), slice(left, x + BLOCK + reach))
            part = _refined_part(image[seen], maps[seen], settings)
            kept = part[:, y - top :, x - left :][:, :BLOCK, :BLOCK]
            result[:, y : y + BLOCK, x : x + BLOCK] = kept
    return result


def _refined_part(image: np.ndarray, maps: np.ndarray, settings: dict) -> np.ndarray:
    dilations = settings["dilations"]
    neighbours = _neighbours(image, dilations)
    total, squares = np.zeros_like(image), np.zeros_like(image)
    for neighbour in neighbours:
        difference = neighbour - image
        total += difference
        squares += difference * difference
    count = len(neighbours) + 1
    variance = (squares - total * total / np.float32(count)) / np.float32(count - 1)
    deviation = np.sqrt(np.maximum(variance, 0))
    scale = 1 / (np.float32(settings["sharpness"]) * deviation + np.float32(1e-8))
    distances = [(np.abs(n - image) * scale).mean(axis=0) for n in neighbours]
    weights = softmax(-np.stack(distances))  # (n, H, W)
    for _ in range(settings["steps"]):
        result = np.zeros_like(maps)
        for weight, neighbour in zip(weights, _neighbours(maps, dilations), strict=True):
            result += weight * neighbour
        maps = result
    return maps


def _neighbours(values: np.ndarray, dilations: list[int]) -> list[np.ndarray]:
    """Return each pixel's 8 neighbours at each distance as views; the border goes on outside."""
    height, width = values.shape[1:]
    reach = max(dilations)
    padded = np.pad(values, ((0, 0), (reach, reach), (reach, reach)), mode="edge")
    corners = [(reach + y * d, reach + x * d) for d in dilations for y, x in OFFSETS]
    return [padded[:, top : top + height, left : left + width] for top, left in corners]


def regions_of(pixels: np.ndarray) -> Regions:
    """Divide the True pixels of (H, W) into regions.

    Runs of pixels in a row are joined with those that they touch in the next row: the higher name
    gives way to the lower one until neighbours have one name.
    """
    change = np.diff(np.pad(pixels, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(change == 1)
    ends = np.nonzero(change == -1)[1]  # behind the last pixel
    stride = pixels.shape[1] + 2  # rows * stride + column ascends through all runs
    below = (rows + 1) * stride
    first = np.searchsorted(rows * stride + ends, below + starts, side="left")
    last = np.searchsorted(rows * stride + starts, below + ends, side="right")
    counts = last - first  # of runs below that touch
    upper = np.repeat(np.arange(len(rows)), counts)
    lower = np.arange(len(upper)) + np.repeat(first - np.cumsum(counts) + counts, counts)
    names = np.arange(len(rows))
    while (names[upper] != names[lower]).any():
        a, b = names[upper], names[lower]
        np.minimum.at(names, np.maximum(a, b), np.minimum(a, b))
        while (names[names] != names).any():
            names = names[names]
    found, number = np.unique(names, return_inverse=True)
    numbers = np.zeros(pixels.shape, np.int64)
    numbers[pixels] = np.repeat(number + 1, ends - starts)
    corners = np.full((2, len(found)), max(pixels.shape), np.int64)
    opposite = np.zeros((2, len(found)), np.int64)
    for i, (low, high) in enumerate(((starts, ends), (rows, rows + 1))):
        np.minimum.at(corners[i], number, low)
        np.maximum.at(opposite[i], number, high)
    areas = np.bincount(number, ends - starts, minlength=len(found)).astype(np.int64)
    return Regions(numbers, np.concatenate((corners, opposite - corners)).T, areas)


def without_specks(mask: np.ndarray, least_areas: list[float]) -> np.ndarray:
    """Return a mask whose specks have become what most of their border touches.

    Args:
        mask: (H, W) uint8, background 0, class k is k + 1.
        least_areas: K shares of the image; smaller regions are specks.
    """
    kept = mask.copy()
    for k, share in enumerate(least_areas):
        found = regions_of(mask == k + 1)
        for region in np.flatnonzero(found.areas < share * mask.size * (1 - 1e-9)):
            box, inside = found.inside(region, margin=1)
            padded = np.pad(inside, 1)
            height, width = inside.shape
            grown = np.zeros_like(inside)
            for y, x in OFFSETS:
                grown |= padded[1 + y : 1 + y + height, 1 + x : 1 + x + width]
            around = grown & ~inside
            kept[box][inside] = np.bincount(kept[box][around]).argmax() if around.any() else 0
    return kept


def surest(shares: np.ndarray, least_areas: list[float]) -> np.ndarray:
    """Return how surely each class is in an image, (K,), of probabilities (K, H, W).

    That is the probability that so many pixels exceed as the smallest region of the class has.
    """
    flat = shares.reshape(len(shares), -1)
    counts = [max(1, math.ceil(a * flat.shape[1])) for a in least_areas or [0.0] * len(flat)]
    ranked = zip(flat, counts, strict=True)
    return np.array([np.partition(values, -n)[-n] for values, n in ranked], np.float32)


def outline(inside: np.ndarray) -> list[list[int]]:
    """Return the corners [x, y] of the outer border of one region, as OpenCV lists them.

    Args:
        inside: (h, w) bool of a region within its box.
    """
    padded = np.pad(inside, 1).tolist()
    start = x, y = padded[1].index(True), 1
    turns = [(3 - i) % 8 for i in range(7)]
    turn = next((t for t in turns if padded[y + AROUND[t][1]][x + AROUND[t][0]]), None)
    if turn is None:
        return [[x - 1, y - 1]]
    second = x + AROUND[turn][0], y + AROUND[turn][1]
    corners, before = [], turn ^ 4
    while True:
        turn = next(
            t % 8 for t in range(turn + 1, turn + 9)
            if padded[y + AROUND[t % 8][1]][x + AROUND[t % 8][0]]
        )  # fmt: skip
        if turn != before:
            corners.append([x - 1, y - 1])
            before = turn
        here, (x, y) = (x, y), (x + AROUND[turn][0], y + AROUND[turn][1])
        if (x, y) == start and here == second:
            return corners
        turn = (turn + 4) % 8
