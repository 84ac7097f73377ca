"""Magnetic Tile Defects: a folder per class, grey masks beside the pictures."""

from pathlib import Path

from datasets.layouts.common import (
    GREY_LEVEL,
    UNDIVIDED,
    Layout,
    by_lists,
    if_there,
    images_in,
    listing,
)
from datasets.record import Record

MTD_CLASSES = ("blowhole", "break", "crack", "fray", "uneven")


def read_mtd(root: Path, lists: dict[str, str]) -> Layout:
    """Read `MT_<Class>/Imgs/*.jpg` with grey masks of the same name; MT_Free is defect-free.

    There is no official split; list files (one name a line) may give one. A tile was photographed
    in up to six exposures with numbers near each other (exp1_num_3191, exp2_num_3211).
    """
    records: dict[str, Record] = {}
    for class_name in (*MTD_CLASSES, "free"):
        folder = root / f"MT_{class_name.capitalize()}" / "Imgs"
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{folder}: expected a folder of MTD, found {listing(root)}. "
                "Set data.root to the folder that holds MT_Blowhole and its five siblings."
            )
        classes = () if class_name == "free" else (MTD_CLASSES.index(class_name),)
        for path in images_in(folder, (".jpg", ".jpeg")):
            if path.stem in records:
                raise ValueError(
                    f"{path}: expected unique names, got {path.stem} in "
                    f"{records[path.stem].image.parent} too. Remove one of them."
                )
            mask = if_there(path.with_suffix(".png"))
            records[path.stem] = Record(path.stem, path, classes, mask=mask, mask_level=GREY_LEVEL)
    if any(lists.values()):
        return MTD_CLASSES, by_lists(lists, root, records)
    return MTD_CLASSES, {UNDIVIDED: tuple(record for _, record in sorted(records.items()))}
