"""What the project knows about one image."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

BACKGROUND = 0  # mask value of everything that is no defect
IGNORE = 255  # mask value of pixels nobody is trained or scored on
MAX_CLASSES = IGNORE - 1  # mask values are bytes; class k has the value k + 1
MAX_NAME = 250  # bytes; file systems take 255, and endings come after it
NO_DEFECT = 256  # mask level that no pixel reaches


@dataclass(frozen=True, slots=True)  # a third less memory in lists of a million
class Record:
    """One image with its image-level label and where its maps lie.

    Attributes:
        name: unique in the data set; names every file made from the image, so it has no / in it.
        image: picture file.
        classes: ascending foreground indices in [0, K); empty means defect-free.
        mask: pixel ground truth, or None; evaluation only, training never opens it.
        mask_level: None for a mask of class indices; else the mask is a grey picture, and
            pixels of at least this level belong to the image's only class. NO_DEFECT says that
            no pixel is one: a defect-free image without a mask file names itself as mask.
        mask_names: class names by which `mask`, if it is an annotation file (.json), calls what it
            outlines (datasets.outlines); empty for pictures.
        group: pictures of one part, or copies of one picture, share it, and no draw divides it
            (datasets.groups); empty means the image is a group of its own, which takes its name.
    """

    name: str
    image: Path
    classes: tuple[int, ...]
    mask: Path | None = None
    mask_level: int | None = None
    mask_names: tuple[str, ...] = ()
    group: str = ""

    def __post_init__(self) -> None:
        _check_name(self.name)
        if not self.group:
            object.__setattr__(self, "group", self.name)
        if list(self.classes) != sorted(set(self.classes)):
            raise ValueError(f"{self.name}: expected ascending classes, got {self.classes}.")
        if self.mask_level == NO_DEFECT and self.classes:
            raise ValueError(f"{self.name}: expected no classes without a defect.")
        if self.mask_level is not None and len(self.classes) > 1:
            raise ValueError(
                f"{self.name}: a grey mask cannot tell {len(self.classes)} classes apart. "
                "Give a mask of class indices."
            )


def _check_name(name: str) -> None:
    """Refuse a name under which no file can be written, or one elsewhere.

    Raises:
        ValueError: empty, too long, with / or control characters, or not in UTF-8.
    """
    is_plain = name.isprintable() and "/" not in name and name not in ("", ".", "..")
    if not is_plain or len(name.encode()) > MAX_NAME:
        raise ValueError(
            f"{name!r:.300}: expected a name that files can have, of at most {MAX_NAME} bytes, "
            "without / and control characters, got another. Rename the picture, or correct the "
            "list that names it."
        )


def check_num_classes(num_classes: int, where: object) -> None:
    """Refuse more classes than mask values can tell apart.

    Args:
        num_classes: K foreground classes.
        where: file or thing that says so, named in the error.

    Raises:
        ValueError: K is above `MAX_CLASSES`.
    """
    if num_classes > MAX_CLASSES:
        raise ValueError(
            f"{where}: expected at most {MAX_CLASSES} classes, as a mask has one byte for each "
            f"pixel and {IGNORE} is ignored, got {num_classes}. Merge classes or leave some out."
        )


def label_vector(record: Record, num_classes: int) -> list[float]:
    """Return the multi-hot image label, (K,) values 0.0 or 1.0."""
    return [float(k in record.classes) for k in range(num_classes)]


def label_matrix(records: Sequence[Record], num_classes: int) -> np.ndarray:
    """Return the image labels of N records, (N, K) bool."""
    vectors = [label_vector(record, num_classes) for record in records]
    return np.array(vectors).reshape(-1, num_classes) > 0


def balanced(records: Sequence[Record], count: int, seed: int) -> list[Record]:
    """Draw at most `count` records, of each class in turn; defect-free ones count as a class.

    Returns:
        Those drawn, in the order of `records`.
    """
    left = list(records)
    random.Random(seed).shuffle(left)
    wanted = sorted({k for record in records for k in record.classes or (-1,)})
    drawn: set[str] = set()
    while len(drawn) < min(count, len(records)):
        for k in wanted:
            one = next((r for r in left if k in (r.classes or (-1,))), None)
            if one and len(drawn) < count:
                left.remove(one)
                drawn.add(one.name)
    return [record for record in records if record.name in drawn]


def spread(records: Sequence[Record], limit: int) -> list[Record]:
    """Keep at most `limit` records, evenly spaced, so that sorted names keep every class."""
    count = min(limit, len(records))
    return [records[i * len(records) // count] for i in range(count)]
