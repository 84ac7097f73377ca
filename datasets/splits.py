"""Draws that keep groups of pictures together: of val, of test, and of the folds of a training.

A draw depends on the seed and on names and groups alone, not on the order of files.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence

from datasets.record import Record


def draw(
    records: Sequence[Record], share: float, seed: int
) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """Draw a share of the images, of each label about the same, in whole groups.

    A class whose share is an image or more is among the drawn if it has two groups, and each class
    stays among the rest: of a class with one group nothing is drawn. Defect-free images count as a
    class.

    Args:
        records: images; both results keep their order.
        share: in [0, 1).
        seed: other seeds draw others.

    Returns:
        The rest, and what was drawn; nothing is drawn with share 0.
    """
    groups = by_group(records)
    classes = {
        name: {c for r in of_group for c in _classes(r)} for name, of_group in groups.items()
    }
    left = Counter(c for of_group in classes.values() for c in of_group)  # groups among the rest
    order = sorted(groups, key=lambda name: (_label(groups[name]), _hash(seed, name)))
    drawn: set[str] = set()

    def take(name: str) -> bool:
        if name in drawn or any(left[c] < 2 for c in classes[name]):
            return False
        drawn.add(name)
        left.subtract(classes[name])
        return True

    # One label after the other, a group is drawn as soon as it is owed half of its size.
    owed = 0.0
    for name in order if share else ():
        size = len(groups[name])
        owed += share * size
        if owed >= size / 2 and take(name):
            owed -= size
    smallest = sorted(order, key=lambda name: len(groups[name]))
    for c, count in sorted(Counter(c for record in records for c in _classes(record)).items()):
        if share * count >= 1 and not any(c in classes[name] for name in drawn):
            any(take(name) for name in smallest if c in classes[name])
    if share and not drawn:
        any(map(take, smallest))
    rest = tuple(record for record in records if record.group not in drawn)
    return rest, tuple(record for record in records if record.group in drawn)


def by_group(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Return the images of each group."""
    groups = defaultdict(list)
    for record in records:
        groups[record.group].append(record)
    return groups


def single_groups(records: Sequence[Record], class_names: Sequence[str]) -> list[str]:
    """Return the names of classes that have images, but of one group only."""
    groups = [set() for _ in class_names]
    for record in records:
        for k in record.classes:
            groups[k].add(record.group)
    return [name for name, of_class in zip(class_names, groups, strict=True) if len(of_class) == 1]


def folds(records: Sequence[Record], count: int) -> dict[str, int]:
    """Divide images into folds of about the same size and labels, groups kept together.

    Args:
        records: images.
        count: of folds.

    Returns:
        Name of each image -> its fold, 0..count - 1.
    """
    groups = by_group(records)
    sizes = [0] * count
    fold_of = {}
    for name in sorted(groups, key=lambda name: (_label(groups[name]), name)):
        fold = sizes.index(min(sizes))
        sizes[fold] += len(groups[name])
        fold_of |= {record.name: fold for record in groups[name]}
    return fold_of


def _classes(record: Record) -> tuple[int, ...]:
    return record.classes or (-1,)  # defect-free


def _label(group: Sequence[Record]) -> tuple[int, ...]:
    """Return the label of most images of a group, the least of equals."""
    labels = Counter(_classes(record) for record in group)
    return min(labels, key=lambda label: (-labels[label], label))


def _hash(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()
