"""Pixels of what outlines and run lengths of annotation files enclose, whatever these hold.

Libraries trust such numbers: coordinates that are not finite, or far outside, and run lengths that
do not add up make them write beyond their memory. So all of it is checked and cut here first.
"""

import base64
import warnings
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pycocotools import mask as coco_mask
from pydantic import Field

from datasets import decoding

MARGIN = 1.0  # pixels beyond the edges that tools leave by rounding
FARTHEST = 1e7  # pixels; coordinates beyond it are taken for an error
Coordinate = Annotated[float, Field(ge=-FARTHEST, le=FARTHEST, allow_inf_nan=False)]
Point = tuple[Coordinate, Coordinate]  # x, y
Size = tuple[int, int]  # H, W


class BeyondImage(UserWarning):
    """An outline reaches beyond its image and is cut at the edges."""


def of_polygons(polygons: Sequence[Sequence[Point]], size: Size) -> np.ndarray:
    """Return (H, W) bool of what one of the polygons encloses.

    Args:
        polygons: each the (x, y) corners, which may lie outside; pixel (row, column) covers x from
            column to column + 1.
        size: (H, W).

    Raises:
        ValueError: a polygon with fewer than three corners, or none at all.

    Warns:
        BeyondImage: a corner lies more than `MARGIN` outside.
    """
    height, width = size
    if short := [polygon for polygon in polygons if len(polygon) < 3]:
        raise ValueError(f"outlines of three or more points, got {list(short[0])}")
    if not polygons:
        raise ValueError("outlines of three or more points, got none")
    corners = np.array([corner for polygon in polygons for corner in polygon], float)
    if (corners < -MARGIN).any() or (corners > np.array([width, height]) + MARGIN).any():
        warnings.warn("an outline beyond the image is cut at its edges", BeyondImage, stacklevel=2)
    inside = [cut(polygon, size) for polygon in polygons]
    flat = [[c for corner in polygon for c in corner] for polygon in inside if len(polygon) > 2]
    if not flat:
        return np.zeros(size, bool)
    parts = coco_mask.frPyObjects(flat, height, width)
    return coco_mask.decode(coco_mask.merge(parts)).astype(bool)


def cut(polygon: Sequence[Point], size: Size) -> list[Point]:
    """Cut a polygon at the edges of an image (Sutherland and Hodgman, 1974).

    Args:
        polygon: (x, y) corners, finite.
        size: (H, W) of the image.

    Returns:
        The corners of what lies in [0, W] x [0, H]; none if nothing does.
    """
    height, width = size
    corners = [(float(x), float(y)) for x, y in polygon]
    for axis, edge, sign in (
        (0, 0.0, 1),
        (0, float(width), -1),
        (1, 0.0, 1),
        (1, float(height), -1),
    ):
        kept: list[Point] = []
        for before, corner in zip([*corners[-1:], *corners[:-1]], corners, strict=True):
            was_in, is_in = (sign * (point[axis] - edge) >= 0 for point in (before, corner))
            if was_in != is_in:
                share = (edge - before[axis]) / (corner[axis] - before[axis])
                other = before[1 - axis] + share * (corner[1 - axis] - before[1 - axis])
                kept.append((edge, other) if axis == 0 else (other, edge))
            if is_in:
                kept.append(corner)
        corners = kept
    return corners


def of_run_lengths(counts: Sequence[int] | str | bytes, size: Size) -> np.ndarray:
    """Return (H, W) bool of COCO's run lengths, down the columns, background first.

    Args:
        counts: lengths, or COCO's text of them.
        size: (H, W).

    Raises:
        ValueError: no such text, a length below 0, or a sum that is not H * W.
    """
    lengths = _unpacked(counts) if isinstance(counts, str | bytes) else [*counts]
    total = sum(lengths)
    if min(lengths, default=0) < 0 or total != size[0] * size[1]:
        raise ValueError(
            f"run lengths from 0 up that add up to {size[0] * size[1]} pixels, got lengths from "
            f"{min(lengths, default=0)} that add up to {total}"
        )
    values = np.arange(len(lengths)) % 2 == 1
    return np.repeat(values, lengths).reshape(size[::-1]).T


def of_packed_runs(packed: bytes, size: Size) -> np.ndarray:
    """Return (H, W) bool of the runs of a brush of Label Studio, where it covers half a pixel.

    They are runs of the bytes of an RGBA picture, row by row, of which the last one, alpha, says
    what is painted. Lengths and bytes are numbers of so many bits as the head says: 32 bits count
    the bytes, 5 give the bits of a byte, less one, and four times 4 the bits of a length, less
    one. Then a bit says whether a byte is repeated or others follow, 2 choose the bits of the
    length, less one. https://github.com/thi-ng/umbrella/tree/develop/packages/rle-pack

    Args:
        packed: as the file gives it.
        size: (H, W).

    Raises:
        ValueError: runs of another picture, or cut off.
    """
    bits, place = "".join(f"{byte:08b}" for byte in packed), 0

    def number(length: int) -> int:
        nonlocal place
        place += length
        if place > len(bits):
            raise ValueError("runs of a brush, got some that are cut off")
        return int(bits[place - length : place], 2)

    total, per_byte = number(32), number(5) + 1
    lengths = [number(4) + 1 for _ in range(4)]
    if total != 4 * size[0] * size[1] or per_byte != 8:
        raise ValueError(
            f"runs of {4 * size[0] * size[1]} bytes of 8 bits, got {total} of {per_byte}"
        )
    levels = np.zeros(total, np.uint8)
    done = 0
    while done < total:
        repeated = number(1)
        count = number(lengths[number(2)]) + 1
        if done + count > total:
            raise ValueError(f"runs of {total} bytes, got {done + count}")
        values = number(8) if repeated else [number(8) for _ in range(count)]
        levels[done : done + count] = values
        done += count
    return levels.reshape(*size, 4)[..., 3] >= 128


def of_picture(text: str, left_top: Point, size: Size) -> np.ndarray:
    """Return (H, W) bool of a small picture, not 0 where it is painted, laid on an image.

    Args:
        text: of the picture file, base64.
        left_top: where its upper left pixel lies; it may reach over the edges.
        size: (H, W).

    Raises:
        ValueError: not such a picture, or one larger than the image.
    """
    try:
        with decoding.opened(base64.b64decode(text, validate=True)) as picture:
            if picture.width > size[1] or picture.height > size[0]:
                raise ValueError(f"{picture.width} x {picture.height} pixels")
            part = np.array(picture) > 0
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise ValueError(
            f"painted masks as base64 of a picture that the image holds, got: {error}"
        ) from error
    if part.ndim != 2:
        raise ValueError(f"painted masks of one channel, got {part.shape[2]}")
    area = np.zeros(size, bool)
    left, top = (round(coordinate) for coordinate in left_top)
    part = part[max(-top, 0) :, max(-left, 0) :]
    inside = area[max(top, 0) :, max(left, 0) :]
    rows, columns = (min(a, b) for a, b in zip(part.shape, inside.shape, strict=True))
    inside[:rows, :columns] = part[:rows, :columns]
    return area


def _unpacked(counts: str | bytes) -> list[int]:
    """Return the lengths of COCO's text: five bits a letter, from the third on as differences."""
    letters = counts.encode("utf-8", "replace") if isinstance(counts, str) else counts
    lengths: list[int] = []
    value = bits = 0
    for letter in letters:
        six = letter - 48
        if not 0 <= six < 64 or bits > 50:
            raise ValueError(f"COCO's text of run lengths, got {bytes(letters[:20])!r}")
        value |= (six & 31) << bits
        bits += 5
        if not six & 32:  # the last letter of this length
            value -= (six & 16) << (bits - 4)  # its sign
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = bits = 0
    if bits:
        raise ValueError("COCO's text of run lengths, got one that is cut off")
    return lengths
