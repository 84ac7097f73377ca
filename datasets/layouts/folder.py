"""The user's own pictures, a folder per class."""

from pathlib import Path

from datasets.layouts.common import (
    DEFECT_FREE,
    UNDIVIDED,
    Layout,
    folders_in,
    images_in,
    listing,
    make_record,
    with_names,
)
from datasets.problems import Problem, Refused
from datasets.record import Record

MASKS = "masks"


def read_folder(root: Path, mask_level: int, skipped: frozenset[Path] = frozenset()) -> Layout:
    """Read `<class>/*`, or `{train,val,test}/<class>/*` where train/ exists.

    A folder of one of the names DEFECT_FREE holds defect-free images. Names are the folders and
    the file, joined by _. `masks/` is optional and mirrors the folders: the mask of
    train/crack/7.jpg is masks/train/crack/7.png, or 7.json, a LabelMe file, which may lie beside
    the image instead. Where there are masks, the truth of a defect-free image without one is
    background everywhere.

    Args:
        root: folder that holds the folders.
        mask_level: grey level from which a mask pixel is a defect; 0 = masks of class indices.
        skipped: pictures and folders that are passed over.

    Raises:
        FileNotFoundError: no folder of a defect.
        Refused: folders without images, and pictures with names that no file can have.
    """
    official = (root / "train").is_dir()
    parts = {split: root / split for split in ("train", "val", "test") if (root / split).is_dir()}
    folders = {
        split: [f for f in folders_in(part) if f.name != MASKS and f not in skipped]
        for split, part in (parts if official else {UNDIVIDED: root}).items()
    }
    names = {folder.name for of_split in folders.values() for folder in of_split}
    class_names = tuple(sorted(name for name in names if name.lower() not in DEFECT_FREE))
    if not class_names:
        raise FileNotFoundError(
            f"{root}: expected a folder of images for each class of defect, found {listing(root)}. "
            "Set data.root to the folder that holds them."
        )
    has_masks = (root / MASKS).is_dir() or any(
        any(folder.glob("*.json")) for of_split in folders.values() for folder in of_split
    )

    refused: list[Problem] = []

    def records(folder: Path) -> tuple[Record, ...]:
        free = folder.name not in class_names
        classes = () if free else (class_names.index(folder.name),)
        listed = []
        for path in _pictures(folder, skipped, refused):
            mirrored = root / MASKS / path.relative_to(root)
            places = (mirrored.with_suffix(".png"), mirrored.with_suffix(".json"))
            mask = next(filter(Path.is_file, (*places, path.with_suffix(".json"))), None)
            try:
                record = make_record(path, root, classes, mask, mask_level or None, has_masks)
                listed.append(with_names(record, class_names))
            except ValueError as error:
                refused.append(Problem("unusable name", str(error), (path,)))
        return tuple(listed)

    splits = {
        split: tuple(record for folder in of_split for record in records(folder))
        for split, of_split in folders.items()
    }
    if refused:
        raise Refused(refused)
    return class_names, splits


def _pictures(folder: Path, skipped: frozenset[Path], refused: list[Problem]) -> list[Path]:
    """Return the pictures of a folder that are not skipped; without any it is refused."""
    try:
        return [path for path in images_in(folder) if path not in skipped]
    except FileNotFoundError as error:
        refused.append(Problem("folder without pictures", str(error), (folder,)))
        return []
