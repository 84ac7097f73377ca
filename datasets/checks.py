"""Open every image and mask of a data set: what they hold, and what is wrong with them."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from itertools import combinations

import numpy as np

from datasets.files import IMAGE_SUFFIXES
from datasets.layouts.common import ANNOTATION_SUFFIX
from datasets.problems import SHOWN, Problem
from datasets.record import Record
from datasets.record_checks import Facts, check_record
from datasets.sources import Data
from execution.cores import on_cores
from execution.progress import progress

SIMILAR = 0.85  # share of equal letters from which two class names may be one, mistyped


def check_data(data: Data) -> tuple[list[Facts], list[Problem]]:
    """Open every image and mask; return the facts of each image and all problems."""
    places = _places(data.splits)
    with_masks = {split for split, record in places if record.mask}
    facts, problems = [], _check_classes(data)

    def check(place: tuple[str, Record]) -> tuple[Facts, list[Problem]]:
        return check_record(place[1], place[0], data.class_names)

    checked = progress(on_cores(check, places), "checking", len(places))
    for (split, record), (one, wrong) in zip(places, checked, strict=True):
        facts.append(one)
        problems += wrong
        if record.classes and not record.mask and split in with_masks:
            problems.append(Problem("label without mask", _place(one)))
    copies = copies_in(facts)
    problems += [*_duplicate_names(facts), *_case_only(facts), *_two_labels(facts)]
    problems += [*_near_copies(copies), *_identical(facts, copies)]
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


def _duplicate_names(facts: Iterable[Facts]) -> list[Problem]:
    by_name = defaultdict(list)
    for one in facts:
        by_name[one.record.name].append(one)
    return [
        Problem("duplicate name", f"{name}: {_places_of(group)}")
        for name, group in by_name.items()
        if len(group) > 1
    ]


def _case_only(facts: Iterable[Facts]) -> list[Problem]:
    by_name = defaultdict(dict)
    for one in facts:
        by_name[one.record.name.lower()][one.record.name] = one
    return [
        Problem("names that differ in case only", _places_of([*group.values()]))
        for group in by_name.values()
        if len(group) > 1
    ]


def _two_labels(facts: Iterable[Facts]) -> list[Problem]:
    """Find pictures of the same pixels whose labels differ; one problem per picture."""
    kind = "one picture under different labels"
    return [
        Problem(kind, _places_of(alike), tuple(one.record.image for one in alike))
        for alike in _by_pixels(facts)
        if len({one.record.classes for one in alike}) > 1
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
    return [
        Problem(f"identical images in {_where(alike)}", _places_of(alike))
        for alike in _by_pixels(facts)
        if len(alike) > 1 and not all(id(one) in named for one in alike)
    ]


def _by_pixels(facts: Iterable[Facts]) -> list[list[Facts]]:
    """Return the readable images, those of the same pixels together."""
    by_digest = defaultdict(list)
    for one in facts:
        if one.digest:
            by_digest[one.digest].append(one)
    return list(by_digest.values())


def _where(group: Sequence[Facts]) -> str:
    return "different splits" if len(_splits_of(group)) > 1 else "one split"


def _splits_of(group: Iterable[Facts]) -> set[str]:
    return {one.split for one in group}


def _places_of(group: Sequence[Facts]) -> str:
    more = f" and {len(group) - SHOWN} more" if len(group) > SHOWN else ""
    return " = ".join(_place(one) for one in group[:SHOWN]) + more


def _place(one: Facts) -> str:
    return f"{one.record.image} ({one.split})"


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
