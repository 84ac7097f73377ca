"""What several readers share: finding pictures, naming them, lists of names, labels as CSV.

A reader returns the class names and the records of each split that lies there. Records of a release
without an official division are `UNDIVIDED`: datasets.sources draws their splits, in whole groups.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from datasets.files import IMAGE_SUFFIXES, read_csv, read_text, write_csv
from datasets.record import NO_DEFECT, Record

Splits = dict[str, tuple[Record, ...]]
UNDIVIDED = "undivided"
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
    head, *rows = read_csv(path) or [[]]
    for line, row in enumerate(rows, start=2):
        present = set(row[-1].split("|")) - {""} if row else set()
        if head != ["name", "classes"] or len(row) != 2 or present - {*class_names}:
            raise ValueError(
                f"{path}, line {line}: expected columns name, classes with classes of "
                f"{', '.join(class_names)}, got {row} under {head}. Delete the file to make it "
                "anew."
            )
        labels[row[0]] = tuple(k for k, c in enumerate(class_names) if c in present)
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


def by_lists(
    lists: Mapping[str, str], root: Path, records: Mapping[str, Record]
) -> dict[str, tuple[Record, ...]]:
    """Return the records that list files name, for each split that has one.

    Args:
        lists: {"train", "test": file with a name a line, below `root` or anywhere, or ""}.
        root: of the data set.
        records: by name.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a name that no record has, that is repeated, or that is in both lists.
    """
    paths = {split: find_file(given, root) for split, given in lists.items() if given}
    splits = {split: _listed(path, records) for split, path in paths.items()}
    names = [{record.name for record in of_split} for of_split in splits.values()]
    both = sorted(set.intersection(*names)) if len(names) > 1 else []
    if both:
        raise ValueError(
            f"{lists['test']}: expected no image of {lists['train']}, got {len(both)}: "
            f"{', '.join(both[:5])}."
        )
    return splits


def read_names(path: Path, remedy: str) -> list[str]:
    """Read a list file: a name a line.

    Raises:
        FileNotFoundError: no such file; the remedy is said.
        ValueError: it is not UTF-8.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a list file with one name a line. {remedy}")
    return read_text(path).split()


def _listed(path: Path, records: Mapping[str, Record]) -> tuple[Record, ...]:
    names = read_names(path, "Correct data.train_list or data.test_list.")
    unknown = [name for name in names if name not in records]
    if unknown:
        raise ValueError(
            f"{path}: expected names of images under data.root, got {len(unknown)} others: "
            f"{', '.join(unknown[:5])}."
        )
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ValueError(
            f"{path}: expected each name once, got {len(repeated)} repeated: "
            f"{', '.join(repeated[:5])}."
        )
    return tuple(records[name] for name in names)


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
    """Return the path of what a setting names: relative to `root`, else as it stands."""
    below = root / Path(given).expanduser()
    return below if below.exists() else Path(given).expanduser()
