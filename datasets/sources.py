"""Reads the data set that a config names, and makes the splits that its release lacks.

A release is read where it was unpacked; nothing is converted. A split whose folder is missing is
not offered. `val` is drawn from `train` by a seeded rule and `fit` is the rest of `train`; where
the user's own files name a `val`, `fit` is all of `train`.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from configs import DataConfig
from datasets.layouts.authors import read_authors
from datasets.layouts.common import Layout, Splits, find_file
from datasets.layouts.dagm import read_dagm
from datasets.layouts.folder import read_folder
from datasets.layouts.mtd import read_mtd
from datasets.layouts.mvtec import read_mvtec
from datasets.layouts.neu_seg import read_neu_seg
from datasets.layouts.sample import read_sample
from datasets.layouts.table import read_table
from datasets.layouts.voc import read_voc
from datasets.outlines import read_coco
from datasets.record import Record, spread
from datasets.sample import write_sample


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

    def records(self, splits: Sequence[str]) -> list[Record]:
        """Return the records of several splits, each record once; errors as of `split`."""
        return list({r.name: r for name in splits for r in self.split(name)}.values())

    def default_splits(self, eval_split: str) -> list[str]:
        """Return the splits that maps are made for: train, and what lies outside it.

        That is the evaluation split, and a validation split of the data set's own; one held out of
        train is part of it.

        Raises:
            ValueError: no such evaluation split.
        """
        trained = {record.name for record in self.split("train")}
        others = {"val": self.splits.get("val", ()), eval_split: self.split(eval_split)}
        outside = (name for name, rs in others.items() if any(r.name not in trained for r in rs))
        return ["train", *outside]


def read_data(settings: DataConfig, labels_path: Path) -> Data:
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
    class_names, splits = _read_layout(root, settings, labels_path)
    _refuse_repeated_names(splits)
    if settings.annotations:
        splits = _annotate(splits, find_file(settings.annotations, root), class_names)
    if settings.limit:
        splits = {name: tuple(spread(records, settings.limit)) for name, records in splits.items()}
    if "val" in splits:
        return Data(class_names, {"fit": splits["train"], **splits})
    fit, val = _hold_out(splits["train"], settings.val_fraction, settings.seed)
    return Data(class_names, {"train": splits["train"], "fit": fit, "val": val, **splits})


def _read_layout(root: Path, settings: DataConfig, labels_path: Path) -> Layout:
    lists = {"train": settings.train_list, "test": settings.test_list}
    share, seed = settings.test_share, settings.seed
    match settings.source:
        case "sample":
            return read_sample(root)
        case "neu_seg":
            return read_neu_seg(root, labels_path)
        case "mtd":
            return read_mtd(root, share, lists)
        case "dagm":
            return read_dagm(root, settings.classes)
        case "mvtec":
            return read_mvtec(root, share, seed, settings.defect_types)
        case "voc":
            return read_voc(root, lists)
        case "authors":
            return read_authors(root, lists, settings.table, settings.classes, settings.prefix)
        case "folder":
            return read_folder(root, share, seed, settings.mask_level)
        case "csv":
            return read_table(
                root, settings.table, share, seed, settings.classes, settings.mask_level
            )
    raise ValueError(f"data.source: expected a reader, got {settings.source!r}.")


def _annotate(splits: Splits, path: Path, class_names: Sequence[str]) -> Splits:
    """Take the masks of all images that a COCO file lists from there; no outline is looked at.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a COCO file, or one that lists none of the images.
    """
    coco = read_coco(path)

    def annotated(record: Record) -> Record:
        if coco.image_of(record.image) is None:
            return record
        return replace(record, mask=path, mask_level=None, mask_names=tuple(class_names))

    replaced = {name: tuple(map(annotated, records)) for name, records in splits.items()}
    if replaced == splits:
        raise ValueError(
            f"{path}: expected file names of the images, got none of them. Correct "
            "data.annotations, or the file_name of its images."
        )
    return replaced


def _refuse_repeated_names(splits: Splits) -> None:
    """Check that no two records share a name, in one split or across them."""
    images: dict[str, Path] = {}
    for record in (record for records in splits.values() for record in records):
        if record.name in images:
            raise ValueError(
                f"{record.image}: expected unique names, got {record.name} for "
                f"{images[record.name]} too. Rename or remove one of them."
            )
        images[record.name] = record.image


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
