"""Magnetic Tile Defects: a folder per class, grey masks beside the pictures."""

import random
import re
from collections import Counter
from pathlib import Path

from datasets.layouts.common import GREY_LEVEL, Layout, if_there, images_in, listing
from datasets.record import Record

MTD_CLASSES = ("blowhole", "break", "crack", "fray", "uneven")


def read_mtd(root: Path, test_share: float, lists: dict[str, str]) -> Layout:
    """Read `MT_<Class>/Imgs/*.jpg` with grey masks of the same name; MT_Free is defect-free.

    There is no official split. A hash of the number M in the name `expN_num_M` decides which are
    test, so that pictures of one number stay together. With list files (one name a line) those
    decide.
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
        splits = {split: _listed(Path(p), records) for split, p in lists.items() if p}
        both = sorted({r.name for r in splits["train"]} & {r.name for r in splits.get("test", ())})
        if both:
            raise ValueError(
                f"{lists['test']}: expected no image of {lists['train']}, got {len(both)}: "
                f"{', '.join(both[:5])}."
            )
        return MTD_CLASSES, splits
    splits: dict[str, list[Record]] = {"train": [], "test": []}
    for name, record in sorted(records.items()):
        tile = re.sub(r"^exp\d+_num_", "", name)
        is_test = random.Random(tile).random() < test_share
        splits["test" if is_test else "train"].append(record)
    return MTD_CLASSES, {s: tuple(r) for s, r in splits.items() if r or s == "train"}


def _listed(path: Path, records: dict[str, Record]) -> tuple[Record, ...]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a list file with one name a line.")
    names = path.read_text().split()
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
