"""NEU-Seg: hot-rolled steel, 200 x 200, masks of class indices."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from datasets.files import read_mask
from datasets.layouts.common import (
    Layout,
    by_lists,
    if_there,
    images_in,
    listing,
    read_labels,
    write_labels,
)
from datasets.record import BACKGROUND, IGNORE, Record

NEU_SEG_CLASSES = ("inclusion", "patches", "scratches")


def read_neu_seg(root: Path, labels_path: Path, lists: dict[str, str]) -> Layout:
    """Read `images|annotations/{training,test}`.

    Both splits number their images alike, so a test image's name ends in t, as in the authors'
    lists. Image labels are the classes found in the masks, kept in `labels_path`. List files (one
    name a line) replace the split that they are of.
    """
    images, masks = {}, {}
    for split, folder, ending in (("train", "training", ""), ("test", "test", "t")):
        if not (root / "images" / folder).is_dir():
            continue
        images[split] = {}
        for path in images_in(root / "images" / folder):
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
            f"{listing(root)}. Set data.root to the folder that holds images/."
        )
    labels = read_labels(labels_path, NEU_SEG_CLASSES) if labels_path.is_file() else {}
    unlabelled = [name for name in masks if name not in labels]
    if unlabelled:
        _refuse_missing_masks(masks[name] for name in unlabelled)
        for name in unlabelled:
            values = set(np.unique(read_mask(masks[name], len(NEU_SEG_CLASSES))).tolist())
            labels[name] = tuple(sorted(v - 1 for v in values - {BACKGROUND, IGNORE}))
        write_labels(labels_path, labels, NEU_SEG_CLASSES)
    splits = {
        split: tuple(
            Record(name, path, labels[name], mask=if_there(masks[name]))
            for name, path in sorted(paths.items())
        )
        for split, paths in images.items()
    }
    by_name = {record.name: record for records in splits.values() for record in records}
    return NEU_SEG_CLASSES, splits | by_lists(lists, root, by_name)


def _refuse_missing_masks(paths: Iterable[Path]) -> None:
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{missing[0].parent}: expected a mask for every image, as image labels come from the "
            f"masks once; {len(missing)} are missing: {', '.join(p.name for p in missing[:5])}. "
            "Add them, or write the labels to labels.csv of the run folder."
        )
