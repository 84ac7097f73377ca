"""Open every image and mask of a data set: what they hold, and what is wrong with them."""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from datasets.files import IMAGE_SUFFIXES, read_image, read_levels, read_truth
from datasets.layouts.common import ANNOTATION_SUFFIX
from datasets.record import BACKGROUND, IGNORE, NO_DEFECT, Record
from datasets.sources import Data
from execution.progress import progress

STOPS_TRAINING = "stops training"
STOPS_SCORING = "stops evaluation.py, not training"
KINDS = {  # kind of problem: what comes of it
    "unreadable image": STOPS_TRAINING,
    "duplicate name": STOPS_TRAINING,
    "left out beside the images": "not read: other kinds of files, sub-folders",
    "class without training images": "never learnt; its folder or cell may be mistyped",
    "similar class names": "two classes to the network; one may be mistyped",
    "near copies in different splits": "leakage: scores measure memory; see data.clean_test",
    "near copies in one split": "seen more than once; no draw of val or test divides them",
    "identical images in different splits": "leakage, scores come out too high",
    "identical images in one split": "trained on or scored more than once",
    "unreadable mask": STOPS_SCORING,
    "unknown mask value": STOPS_SCORING,
    "mask of another size than its image": STOPS_SCORING,
    "label without mask": "not scored, though other images of its split have masks",
    "label without mask content": "label or mask is wrong",
    "mask content without label": "label or mask is wrong",
}
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

SIMILAR = 0.85  # share of equal letters from which two class names may be one, mistyped
SHOWN = 5  # names printed of many


class Problem(NamedTuple):
    """One thing wrong: a key of KINDS, and the files it concerns."""

    kind: str
    text: str


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


def check_data(data: Data) -> tuple[list[Facts], list[Problem]]:
    """Open every image and mask; return the facts of each image and all problems."""
    places = _places(data.splits)
    with_masks = {split for split, record in places if record.mask}
    facts, problems = [], _check_classes(data)
    for split, record in progress(places, "checking"):
        one, wrong = _check_record(record, split, data.class_names)
        facts.append(one)
        problems += wrong
        if record.classes and not record.mask and split in with_masks:
            problems.append(Problem("label without mask", _place(one)))
    copies = copies_in(facts)
    problems += [*_duplicate_names(facts), *_near_copies(copies), *_identical(facts, copies)]
    return facts, problems


def _check_classes(data: Data) -> list[Problem]:
    """Find classes that cannot be learnt and those whose names differ by little but numbers."""
    names = data.class_names
    counts, *_ = count_labels(data.splits["train"], len(names))
    problems = []
    for k, name in enumerate(names):
        if not counts[k]:
            labelled = {s: sum(k in r.classes for r in rs) for s, rs in data.splits.items()}
            where = ", ".join(f"{n} in {split}" for split, n in labelled.items() if n)
            text = f"{name}: none in train, {where or 'none in any split'}"
            problems.append(Problem("class without training images", text))
    for one, other in combinations(names, 2):
        a, b = one.lower(), other.lower()
        if re.findall(r"\d+", a) != re.findall(r"\d+", b):
            continue
        if SequenceMatcher(None, a, b).ratio() >= SIMILAR:
            problems.append(Problem("similar class names", f"{one} and {other}"))
    return problems


def left_out(data: Data) -> list[Problem]:
    """Find what lies in the folders of the images but is neither a picture nor an annotation.

    For the reader `folder`; others expect more than images there. Hidden files are no matter.
    """
    folders = sorted({r.image.parent for records in data.splits.values() for r in records})
    problems = []
    for folder in folders:
        names = sorted(
            f"{path.name}/" if path.is_dir() else path.name
            for path in folder.iterdir()
            if not path.name.startswith(".")
            and (path.is_dir() or path.suffix.lower() not in (*IMAGE_SUFFIXES, ANNOTATION_SUFFIX))
        )
        if names:
            more = ", ..." if len(names) > SHOWN else ""
            text = f"{folder}: {len(names)} ({', '.join(names[:SHOWN])}{more})"
            problems.append(Problem("left out beside the images", text))
    return problems


def _places(splits: Mapping[str, Sequence[Record]]) -> list[tuple[str, Record]]:
    """Pair each record with its split; train stands for fit and val where they are made of it."""
    places = [(s, record) for s, records in splits.items() if s != "train" for record in records]
    divided = {record for split, record in places if split in ("fit", "val")}
    return places + [("train", record) for record in splits["train"] if record not in divided]


def _check_record(
    record: Record, split: str, class_names: Sequence[str]
) -> tuple[Facts, list[Problem]]:
    try:
        image = read_image(record.image)
    except (ValueError, OSError) as error:
        return Facts(record, split), [Problem("unreadable image", str(error))]
    mode = read_mode(record.image)
    if mode == "RGB" and (image == image[..., :1]).all():
        mode = "grey stored as RGB"
    size = image.shape[:2]
    digest = hashlib.sha256(repr(size).encode() + image.tobytes()).hexdigest()
    areas, problems = _check_mask(record, size, class_names) if record.mask else (None, [])
    return Facts(record, split, size, mode, digest, areas), problems


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
        if free_grey:
            truth = (read_levels(record.mask) >= record.mask_level).astype(np.uint8)
        else:
            truth = read_truth(record, num_classes=IGNORE - 1)  # all values, to name the unknown
    except (ValueError, OSError) as error:
        return None, [Problem("unreadable mask", str(error))]
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
    checks = (
        ("unknown mask value", expected, unknown),
        ("mask of another size than its image", "", sizes),
        ("label without mask content", "", unseen),
        ("mask content without label", "", surplus),
    )
    problems = [
        Problem(kind, f"{record.mask}: {start}{', '.join(what[:SHOWN])}")
        for kind, start, what in checks
        if what
    ]
    return (None if unknown or sizes else areas), problems


def _duplicate_names(facts: Iterable[Facts]) -> list[Problem]:
    by_name = defaultdict(list)
    for one in facts:
        by_name[one.record.name].append(one)
    return [
        Problem("duplicate name", f"{name}: {_places_of(group)}")
        for name, group in by_name.items()
        if len(group) > 1
    ]


def copies_in(facts: Iterable[Facts]) -> list[list[Facts]]:
    """Return the groups of two pictures or more, those in several splits first, then by size."""
    by_group = defaultdict(list)
    for one in facts:
        by_group[one.record.group].append(one)
    groups = [g for g in by_group.values() if len({one.record.name for one in g}) > 1]
    return sorted(groups, key=lambda group: (len(_splits_of(group)) < 2, -len(group)))


def _near_copies(copies: Iterable[Sequence[Facts]]) -> list[Problem]:
    """Name pictures that show the same thing, as data.group has it; one problem per group."""
    return [Problem(f"near copies in {_where(group)}", _places_of(group)) for group in copies]


def _identical(facts: Iterable[Facts], copies: Iterable[Sequence[Facts]]) -> list[Problem]:
    """Find images of the same pixels that are not of one group; one problem per picture."""
    named = {id(one) for group in copies for one in group}
    by_digest = defaultdict(list)
    for one in facts:
        if one.digest:
            by_digest[one.digest].append(one)
    return [
        Problem(f"identical images in {_where(alike)}", _places_of(alike))
        for alike in by_digest.values()
        if len(alike) > 1 and not all(id(one) in named for one in alike)
    ]


def _where(group: Sequence[Facts]) -> str:
    return "different splits" if len(_splits_of(group)) > 1 else "one split"


def _splits_of(group: Iterable[Facts]) -> set[str]:
    return {one.split for one in group}


def _places_of(group: Sequence[Facts]) -> str:
    more = f" and {len(group) - SHOWN} more" if len(group) > SHOWN else ""
    return " = ".join(_place(one) for one in group[:SHOWN]) + more


def _place(one: Facts) -> str:
    return f"{one.record.image} ({one.split})"


def _size(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size))


def area_quantiles(facts: Iterable[Facts], k: int) -> tuple[int, list[float]]:
    """Return how many masks show class k, and minimum, quartiles and maximum of its area there."""
    areas = [one.areas[k] for one in facts if one.areas and k in one.areas]
    shares = np.quantile(areas, (0, 0.25, 0.5, 0.75, 1)).tolist() if areas else []
    return len(areas), shares


def count_labels(records: Sequence[Record], num_classes: int) -> tuple[list[int], int, int]:
    """Return the images of each class, those of several classes and the defect-free ones."""
    counts = Counter(k for record in records for k in record.classes)
    several = sum(len(record.classes) > 1 for record in records)
    return [counts[k] for k in range(num_classes)], several, sum(not r.classes for r in records)
