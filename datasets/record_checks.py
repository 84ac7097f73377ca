"""Open the picture and the mask of one record: what they hold, and what is wrong with them."""

import hashlib
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from datasets import decoding
from datasets.areas import BeyondImage
from datasets.files import in_colour, read_levels, read_truth
from datasets.problems import SHOWN, Problem
from datasets.record import BACKGROUND, IGNORE, NO_DEFECT, Record

MODE_NAMES = {  # of Pillow's modes; others go by their own name
    "1": "1-bit grey",
    "L": "grey",
    "LA": "grey with transparency",
    "I": "16-bit grey",  # also Pillow's mode of 32 bit, which read_image refuses
    "I;16": "16-bit grey",
    "I;16B": "16-bit grey",
    "P": "palette",
    "RGBA": "RGB with transparency",
}
MIN_SIDE, MAX_ASPECT = 4, 50  # pixels; times as long as wide: nothing can be seen beyond
DARK_LEVEL = 4095  # of 65,535: pictures of 12 bit reach it
LONG_NAME = 200  # bytes


class Facts(NamedTuple):
    """What the files of one record hold.

    Attributes:
        record: the image.
        split: the part it is in: fit, val, test, or train if in neither fit nor val.
        size: (H, W), or None if the image cannot be read.
        mode: how the file stores pixels, or None.
        digest: hash of the decoded pixels, or None.
        areas: share of the image that each class in its mask covers, or None without a mask
            that can be scored.
    """

    record: Record
    split: str
    size: tuple[int, int] | None = None
    mode: str | None = None
    digest: str | None = None
    areas: dict[int, float] | None = None


def check_record(
    record: Record, split: str, class_names: Sequence[str]
) -> tuple[Facts, list[Problem]]:
    """Open the files of a record; return what they hold, and what is wrong with them."""
    try:
        levels = decoding.read_colour(record.image)
        image = in_colour(levels, record.image)
        mode = read_mode(record.image)
    except (ValueError, OSError) as error:
        return Facts(record, split), [Problem("unreadable image", str(error), (record.image,))]
    wrong = [
        Problem(kind, f"{record.image}: {text}", (record.image,))
        for kind, text in _check_picture(record.image, levels, mode)
    ]
    if mode == "RGB" and (image == image[..., :1]).all():
        mode = "grey stored as RGB"
    size = image.shape[:2]
    digest = hashlib.sha256(repr(size).encode() + image.tobytes()).hexdigest()
    areas, problems = _check_mask(record, size, class_names) if record.mask else (None, [])
    return Facts(record, split, size, mode, digest, areas), wrong + problems


def _check_picture(path: Path, levels: np.ndarray, mode: str) -> list[tuple[str, str]]:
    """Return kind and text of what is odd about a picture that can be read."""
    problems = []
    height, width = levels.shape[:2]
    if min(height, width) < MIN_SIDE or max(height, width) > MAX_ASPECT * min(height, width):
        problems.append(("picture too small or too narrow", f"{height} x {width}"))
    if levels.dtype == np.uint16 and levels.max() < DARK_LEVEL:
        problems.append(("nearly black 16-bit picture", f"0..{levels.max()} of 65,535"))
    if mode == "CMYK":
        problems.append(("CMYK picture", mode))
    name_length = len(os.fsencode(path.name))
    if name_length > LONG_NAME:
        problems.append(("long name", f"{name_length} bytes"))
    return problems


def read_mode(path: Path) -> str:
    """Say how a picture that `read_image` reads stores its pixels; only its head is read."""
    try:
        with Image.open(path) as picture:
            return MODE_NAMES.get(picture.mode, picture.mode)
    except UnidentifiedImageError:
        return "16-bit colour"  # what OpenCV reads in Pillow's stead


def _check_mask(
    record: Record, size: tuple[int, int], class_names: Sequence[str]
) -> tuple[dict[int, float] | None, list[Problem]]:
    """Return the area of each class in a mask, None if it cannot be scored, and its problems."""
    # The grey mask of a defect-free image names no class; taken as the first one where not empty.
    free_grey = record.mask_level not in (None, NO_DEFECT) and not record.classes
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", BeyondImage)
            if free_grey:
                truth = (read_levels(record.mask) >= record.mask_level).astype(np.uint8)
            else:
                truth = read_truth(record, num_classes=IGNORE - 1)  # all, to name the unknown
    except (ValueError, OSError) as error:
        return None, [Problem("unreadable mask", str(error), (record.image,))]
    values, counts = np.unique(truth, return_counts=True)
    shares = dict(zip(values.tolist(), (counts / truth.size).tolist(), strict=True))
    areas = {v - 1: share for v, share in shares.items() if v not in (BACKGROUND, IGNORE)}
    if free_grey:
        surplus = [f"{100 * share:.3f} % of a defect-free image" for share in areas.values()]
        areas = {}
    else:
        surplus = [c for k, c in enumerate(class_names) if k in areas and k not in record.classes]
    unknown = [str(k + 1) for k in areas if k >= len(class_names)]
    unseen = [class_names[k] for k in record.classes if k not in areas]
    sizes = [] if truth.shape == size else [f"{_size(truth.shape)}, image {_size(size)}"]
    expected = f"expected 0..{len(class_names)} and {IGNORE}, got "
    where = f"{record.mask}, {record.name}" if record.mask_names else f"{record.mask}"
    checks = (
        ("unknown mask value", expected, unknown),
        ("mask of another size than its image", "", sizes),
        ("outline beyond the image", "", [str(one.message) for one in told][:1]),
        ("label without mask content", "", unseen),
        ("mask content without label", "", surplus),
    )
    problems = [
        Problem(kind, f"{where}: {start}{', '.join(what[:SHOWN])}", (record.image,))
        for kind, start, what in checks
        if what
    ]
    return (None if unknown or sizes else areas), problems


def _size(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))
