"""The user's own pictures, listed in a CSV file."""

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from datasets.layouts.common import (
    ANNOTATION_SUFFIX,
    DEFECT_FREE,
    UNDIVIDED,
    Layout,
    find_file,
    make_record,
    refuse_missing,
    with_names,
)
from datasets.record import Record

SPLITS = ("train", "val", "test")
RESERVED = ("image", "classes", "mask", "split", "group")


def read_table(root: Path, table: str, classes: Sequence[str], mask_level: int) -> Layout:
    """Read a CSV file with a line per image.

    Columns: image (path under root), then either classes (names joined by |; empty, or one of the
    names DEFECT_FREE alone = defect-free) or a column of 0 and 1 per class; optional mask (picture
    or LabelMe file under root, may be empty), split (train, val, test) and group (pictures of one
    part have the same text; may be empty). Names are the folders and the file, joined by _. If
    there is a mask column, the truth of a defect-free image without a mask is background
    everywhere.

    Args:
        root: folder the paths start from.
        table: the CSV file, under root or anywhere.
        classes: names in the order of the classes. Empty: the names found, sorted, or the
            columns that are none of image, mask, split and group.
        mask_level: grey level from which a mask pixel is a defect; 0 = masks of class indices.

    Raises:
        FileNotFoundError: no such table, or images or masks that are not there.
        ValueError: columns or lines that do not fit; names the first five and the total.
    """
    path = find_file(table, root)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a CSV file, found none. Correct data.table.")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or ())
            rows = [(reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: expected CSV in UTF-8, got: {error}. Save it so.") from error
    class_names = _class_names(path, columns, [row for _, row in rows], classes)
    problems, splits = [], {}
    for line, row in rows:
        try:
            split, record = _read_row(root, row, class_names, mask_level)
        except ValueError as error:
            problems.append(f"line {line}: {error}")
        else:
            splits.setdefault(split, []).append(record)
    if problems:
        raise ValueError(
            f"{path}: expected lines that fit, {len(problems)} of {len(rows)} do not: "
            f"{' '.join(problems[:5])}"
        )
    records = [record for of_split in splits.values() for record in of_split]
    refuse_missing([record.image for record in records], path)
    refuse_missing([record.mask for record in records if record.mask], path)
    if not records:
        raise ValueError(f"{path}: expected a line for each image, got none. Add them.")
    if "split" not in columns:
        return class_names, {UNDIVIDED: tuple(records)}
    if "train" not in splits:
        raise ValueError(f"{path}: expected lines of split train, got none. Mark some as train.")
    return class_names, {split: tuple(splits[split]) for split in SPLITS if split in splits}


def _class_names(
    path: Path, columns: list[str], rows: list[dict[str, str]], classes: Sequence[str]
) -> tuple[str, ...]:
    if "classes" in columns:
        cells = [cell for row in rows if not _is_free(cell := row["classes"] or "")]
        names = sorted({name.strip() for cell in cells for name in cell.split("|")} - {""})
    else:
        names = [column for column in columns if column and column not in RESERVED]
    missing = [] if "classes" in columns else [name for name in classes if name not in names]
    if "image" not in columns or missing or not (classes or names):
        raise ValueError(
            f"{path}: expected the column image, and classes or a column per class "
            f"({', '.join(classes) or 'any name'}), separated by commas, got "
            f"{', '.join(columns) or 'nothing'}. Correct the first line, or name the classes in "
            "data.classes."
        )
    return tuple(classes) or tuple(names)


def _read_row(
    root: Path, row: dict[str, str], class_names: tuple[str, ...], mask_level: int
) -> tuple[str, Record]:
    """Return split and record of a line.

    Raises:
        ValueError: a cell that does not fit, without file and line.
    """
    if None in row or None in row.values():
        raise ValueError("expected as many cells as in the first line.")
    image = _path_under(root, row["image"])
    present = _present(row, class_names)
    split = row.get("split", "train").strip()
    if split not in SPLITS:
        raise ValueError(f"expected split {', '.join(SPLITS)}, got {split!r}.")
    mask = _path_under(root, row["mask"]) if row.get("mask", "").strip() else None
    drawn = mask is not None and mask.suffix.lower() == ANNOTATION_SUFFIX
    if mask and not drawn and len(present) > 1 and mask_level:
        raise ValueError(
            "expected one class for a grey mask, got "
            f"{len(present)}. Give masks of class indices and set data.mask_level=0."
        )
    level = mask_level if mask_level and len(present) < 2 else None
    record = make_record(image, root, present, mask, level, has_masks="mask" in row)
    record = replace(record, group=row.get("group", "").strip())
    return split, with_names(record, class_names)


def _is_free(cell: str) -> bool:
    return cell.strip().lower() in DEFECT_FREE


def _present(row: dict[str, str], class_names: tuple[str, ...]) -> tuple[int, ...]:
    if "classes" in row:
        names = {name.strip() for name in row["classes"].split("|")} - {""}
        unknown = sorted(names - set(class_names))
        if unknown and _is_free(row["classes"]):
            return ()
        if unknown:
            raise ValueError(
                f"expected classes of {', '.join(class_names)}, got {', '.join(unknown)}."
            )
        return tuple(k for k, name in enumerate(class_names) if name in names)
    cells = [row[name].strip() for name in class_names]
    wrong = [cell for cell in cells if cell not in ("0", "1")]
    if wrong:
        raise ValueError(f"expected 0 or 1 for each class, got {wrong[0]!r}.")
    return tuple(k for k, cell in enumerate(cells) if cell == "1")


def _path_under(root: Path, cell: str) -> Path:
    relative = Path(cell.strip().replace("\\", "/"))
    if relative.is_absolute() or ".." in relative.parts or not relative.name:
        raise ValueError(f"expected a path under data.root, got {cell!r}.")
    return root / relative
