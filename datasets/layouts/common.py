"""What several readers share: finding pictures, naming them, dividing them, labels as CSV.

A reader returns the class names and the records of each split that lies there; `train` is always
among them.
"""

import csv
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from datasets.files import IMAGE_SUFFIXES, write_csv
from datasets.record import NO_DEFECT, Record

Splits = dict[str, tuple[Record, ...]]
Layout = tuple[tuple[str, ...], Splits]
ANNOTATION_SUFFIX = ".json"
# Names of folders and in tables, in any case.
DEFECT_FREE = ("good", "normal", "ok", "free", "background")
DEFECT_FREE += ("defect-free", "defect_free", "no-defect", "no_defect")
GREY_LEVEL = 128  # from which a pixel of a black and white mask is a defect


def images_in(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Return the pictures of a folder, sorted, hidden files left out.

    Raises:
        FileNotFoundError: there is none.
    """
    paths = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and not path.name.startswith(".")
    )
    if not paths:
        raise FileNotFoundError(
            f"{folder}: expected images ({', '.join(suffixes)}), found {listing(folder)}."
        )
    return paths


def listing(folder: Path) -> str:
    """Return the number of entries and the first six, for errors."""
    names = sorted(path.name for path in folder.iterdir())
    return f"{len(names)} entries: {', '.join(names[:6])}" if names else "an empty folder"


def if_there(path: Path) -> Path | None:
    """Return the path of a file, or None where there is none."""
    return path if path.is_file() else None


def read_labels(path: Path, class_names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Read a CSV with columns name and classes; classes are joined by |, empty = defect-free."""
    labels = {}
    with path.open(newline="", encoding="utf-8") as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            present = (row.get("classes") or "").split("|")
            unknown = set(present) - {*class_names, ""}
            complete = list(row) == ["name", "classes"] and row["classes"] is not None
            if not complete or unknown:
                raise ValueError(
                    f"{path}, line {line}: expected columns name, classes with classes of "
                    f"{', '.join(class_names)}, got {dict(row)}. Delete the file to make it anew."
                )
            labels[row["name"]] = tuple(k for k, c in enumerate(class_names) if c in present)
    return labels


def write_labels(
    path: Path, labels: dict[str, tuple[int, ...]], class_names: Sequence[str]
) -> None:
    """Write what `read_labels` reads."""
    rows = [(name, "|".join(class_names[k] for k in c)) for name, c in sorted(labels.items())]
    write_csv(path, [("name", "classes"), *rows])


def make_record(
    image: Path,
    root: Path,
    classes: tuple[int, ...],
    mask: Path | None,
    mask_level: int | None,
    has_masks: bool,
) -> Record:
    """Return a record named by its folders from `root` on: test/hole/0.png is test_hole_0.

    Where the data set has masks, the truth of a defect-free image without one is background.
    """
    if has_masks and mask is None and not classes:
        mask, mask_level = image, NO_DEFECT
    name = "_".join(image.relative_to(root).with_suffix("").parts)
    return Record(name, image, classes, mask=mask, mask_level=mask_level)


def with_names(record: Record, class_names: Sequence[str]) -> Record:
    """Give a record whose mask is an annotation file the names by which it is read."""
    if record.mask is None or record.mask.suffix.lower() != ANNOTATION_SUFFIX:
        return record
    return replace(record, mask_level=None, mask_names=tuple(class_names))


def folders_in(folder: Path) -> list[Path]:
    """Return the sorted sub-folders that are not hidden; none where `folder` does not exist."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def divide(groups: Mapping[str, Sequence[Record]], share: float, seed: int) -> Splits:
    """Draw a share of each group into test; the rest is train.

    Of n records round(share * n) are drawn, at least one of two or more and never all. The draw
    depends on the seed, the group's name and its records, not on other groups. With share 0, or
    where nothing was drawn, test is not offered.
    """
    splits: dict[str, list[Record]] = {"train": [], "test": []}
    for group, records in sorted(groups.items()):
        count = min(max(1, round(share * len(records))), len(records) - 1) if share else 0
        generator = random.Random(f"{seed}/{group}")
        drawn = set(generator.sample(range(len(records)), count))
        for i, record in enumerate(records):
            splits["test" if i in drawn else "train"].append(record)
    return {split: tuple(records) for split, records in splits.items() if records}


def refuse_missing(paths: Sequence[Path], listed_in: Path) -> None:
    """Check that the pictures a list or table names are there.

    Raises:
        FileNotFoundError: names the first five and the total.
    """
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{listed_in}: expected pictures that are there, {len(missing)} of {len(paths)} are "
            f"missing: {', '.join(map(str, missing[:5]))}. Add them or correct {listed_in.name}."
        )


def find_file(given: str, root: Path) -> Path:
    """Return the path of a file a setting names: relative to `root`, else as it stands."""
    below = root / Path(given).expanduser()
    return below if below.is_file() else Path(given).expanduser()
