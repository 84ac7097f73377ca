"""One reader per released layout, and the splits made from it.

A release is read where it was unpacked; nothing is converted. A split whose folder is missing is
not offered. `val` is drawn from `train` by a seeded rule, `fit` is the rest of `train`.
"""

import csv
import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from datasets.files import IMAGE_SUFFIXES, read_mask
from datasets.record import BACKGROUND, IGNORE, Record
from datasets.sample import CLASS_NAMES as SAMPLE_CLASSES
from datasets.sample import write_sample

NEU_SEG_CLASSES = ("inclusion", "patches", "scratches")
MTD_CLASSES = ("blowhole", "break", "crack", "fray", "uneven")
MTD_MASK_LEVEL = 128


class DataSettings(Protocol):
    """What `read_data` needs to know; `configs.DataConfig` has it."""

    source: str
    root: str
    val_fraction: float
    seed: int
    limit: int
    sample_train: int
    sample_test: int
    test_share: float
    train_list: str
    test_list: str


@dataclass(frozen=True)
class Data:
    """A data set: its K class names and the records of each split it offers."""

    class_names: tuple[str, ...]
    splits: dict[str, tuple[Record, ...]]

    def split(self, name: str) -> tuple[Record, ...]:
        """Return the records of train, fit, val or test.

        Raises:
            ValueError: the release lies here without that split.
        """
        if name not in self.splits:
            offered = ", ".join(self.splits)
            raise ValueError(
                f"split {name!r}: expected one of {offered}, which lie here. "
                "Add the missing folder or set data.eval_split."
            )
        return self.splits[name]


def read_data(settings: DataSettings, labels_path: Path) -> Data:
    """Read the records of a data set.

    Args:
        settings: data section of a config.
        labels_path: `labels.csv` of the run. Sources whose release has no image labels
            (NEU-Seg) take them from the masks once and keep them there; with that file
            in place no mask is opened any more.

    Raises:
        FileNotFoundError: the folder is not there or holds no image of the layout.
        ValueError: labels, names or files that do not fit.
    """
    root = Path(settings.root).expanduser()
    if settings.source == "sample":
        write_sample(root, settings.sample_train, settings.sample_test, settings.seed)
    if not root.is_dir():
        raise FileNotFoundError(
            f"{root}: expected the folder of the {settings.source} release, found none. "
            "Set data.root to where it was unpacked."
        )
    if settings.source == "sample":
        class_names, splits = SAMPLE_CLASSES, _read_sample(root)
    elif settings.source == "neu_seg":
        class_names, splits = NEU_SEG_CLASSES, _read_neu_seg(root, labels_path)
    else:
        lists = {"train": settings.train_list, "test": settings.test_list}
        class_names, splits = MTD_CLASSES, _read_mtd(root, settings.test_share, lists)
    if settings.limit:
        splits = {name: _thin(records, settings.limit) for name, records in splits.items()}
    fit, val = _hold_out(splits["train"], settings.val_fraction, settings.seed)
    return Data(class_names, {"train": splits["train"], "fit": fit, "val": val, **splits})


def _read_sample(root: Path) -> dict[str, tuple[Record, ...]]:
    """Read the VOC layout that `write_sample` makes, with labels.csv of image-level labels."""
    labels = _read_labels(root / "labels.csv", SAMPLE_CLASSES)
    splits = {}
    for split in ("train", "test"):
        names = (root / f"ImageSets/Segmentation/{split}.txt").read_text().split()
        splits[split] = tuple(
            Record(
                name,
                root / f"JPEGImages/{name}.jpg",
                labels[name],
                mask=_if_there(root / f"SegmentationClass/{name}.png"),
            )
            for name in names
        )
    return splits


def _read_neu_seg(root: Path, labels_path: Path) -> dict[str, tuple[Record, ...]]:
    """Read `images|annotations/{training,test}`.

    Both splits number their images alike, so a test image's name ends in t, as in the authors'
    lists. Image labels are the classes found in the masks, kept in `labels_path`.
    """
    images, masks = {}, {}
    for split, folder, ending in (("train", "training", ""), ("test", "test", "t")):
        if not (root / "images" / folder).is_dir():
            continue
        images[split] = {}
        for path in _images_in(root / "images" / folder):
            name = f"{path.stem}{ending}"
            if name in masks:
                raise ValueError(
                    f"{path}: expected unique names, got another {name}. Remove one of them."
                )
            images[split][name] = path
            masks[name] = root / "annotations" / folder / f"{path.stem}.png"
    if "train" not in images:
        raise FileNotFoundError(
            f"{root}: expected images/training and annotations/training of NEU-Seg, found "
            f"{_listing(root)}. Set data.root to the folder that holds images/."
        )
    labels = _read_labels(labels_path, NEU_SEG_CLASSES) if labels_path.is_file() else {}
    unlabelled = [name for name in masks if name not in labels]
    if unlabelled:
        _refuse_missing_masks(masks[name] for name in unlabelled)
        for name in unlabelled:
            values = set(np.unique(read_mask(masks[name], len(NEU_SEG_CLASSES))).tolist())
            labels[name] = tuple(sorted(v - 1 for v in values - {BACKGROUND, IGNORE}))
        _write_labels(labels_path, labels, NEU_SEG_CLASSES)
    return {
        split: tuple(
            Record(name, path, labels[name], mask=_if_there(masks[name]))
            for name, path in sorted(paths.items())
        )
        for split, paths in images.items()
    }


def _read_mtd(
    root: Path, test_share: float, lists: dict[str, str]
) -> dict[str, tuple[Record, ...]]:
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
                f"{folder}: expected a folder of MTD, found {_listing(root)}. "
                "Set data.root to the folder that holds MT_Blowhole and its five siblings."
            )
        classes = () if class_name == "free" else (MTD_CLASSES.index(class_name),)
        for path in _images_in(folder, (".jpg", ".jpeg")):
            if path.stem in records:
                raise ValueError(
                    f"{path}: expected unique names, got {path.stem} in "
                    f"{records[path.stem].image.parent} too. Remove one of them."
                )
            mask = _if_there(path.with_suffix(".png"))
            records[path.stem] = Record(
                path.stem, path, classes, mask=mask, mask_level=MTD_MASK_LEVEL
            )
    if any(lists.values()):
        splits = {split: _listed(Path(p), records) for split, p in lists.items() if p}
        both = sorted({r.name for r in splits["train"]} & {r.name for r in splits.get("test", ())})
        if both:
            raise ValueError(
                f"{lists['test']}: expected no image of {lists['train']}, got {len(both)}: "
                f"{', '.join(both[:5])}."
            )
        return splits
    splits: dict[str, list[Record]] = {"train": [], "test": []}
    for name, record in sorted(records.items()):
        tile = re.sub(r"^exp\d+_num_", "", name)
        is_test = random.Random(tile).random() < test_share
        splits["test" if is_test else "train"].append(record)
    return {s: tuple(chosen) for s, chosen in splits.items() if chosen or s == "train"}


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


def _thin(records: Sequence[Record], limit: int) -> tuple[Record, ...]:
    """Keep `limit` records, evenly spaced, so that sorted names keep every class."""
    if limit >= len(records):
        return tuple(records)
    return tuple(records[i * len(records) // limit] for i in range(limit))


def _hold_out(
    records: Sequence[Record], fraction: float, seed: int
) -> tuple[tuple[Record, ...], tuple[Record, ...]]:
    """Divide records into (rest, drawn), at least one each, in their own order."""
    if len(records) < 2:
        raise ValueError(
            f"train: expected at least 2 images, one of them for validation, got {len(records)}. "
            "Check data.root, data.limit and data.test_share."
        )
    count = min(max(1, round(fraction * len(records))), len(records) - 1)
    drawn = set(random.Random(seed).sample(range(len(records)), count))
    rest = tuple(r for i, r in enumerate(records) if i not in drawn)
    return rest, tuple(records[i] for i in sorted(drawn))


def _read_labels(path: Path, class_names: Sequence[str]) -> dict[str, tuple[int, ...]]:
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


def _write_labels(
    path: Path, labels: dict[str, tuple[int, ...]], class_names: Sequence[str]
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [(name, "|".join(class_names[k] for k in c)) for name, c in sorted(labels.items())]
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("name", "classes"), *rows])
    temporary.replace(path)


def _refuse_missing_masks(paths: Iterable[Path]) -> None:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{missing[0].parent}: expected a mask for every image, as image labels come from the "
            f"masks once; {len(missing)} are missing: {', '.join(p.name for p in missing[:5])}. "
            "Add them, or write the labels to labels.csv of the run folder."
        )


def _images_in(folder: Path, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> list[Path]:
    paths = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in suffixes and not path.name.startswith(".")
    )
    if not paths:
        raise FileNotFoundError(
            f"{folder}: expected images ({', '.join(suffixes)}), found {_listing(folder)}."
        )
    return paths


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return f"{len(names)} entries: {', '.join(names[:6])}" if names else "an empty folder"


def _if_there(path: Path) -> Path | None:
    return path if path.is_file() else None
