"""The layout of the authors' released code: VOC-like folders, list files, labels in a `.npy`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets.files import IMAGE_SUFFIXES
from datasets.layouts.common import Layout, find_file, if_there, listing, refuse_missing
from datasets.record import Record, check_num_classes
from released.arrays import read_released_labels, read_released_list

MASKS = ("SegmentationMASK", "SegmentationClass")  # folders; the first that is there
ABSENT = 0.1  # label values up to this belong to absent classes ("soft" label files)


def read_authors(
    root: Path, lists: dict[str, str], table: str, class_names: Sequence[str], prefix: str
) -> Layout:
    """Read `JPEGImages`, `SegmentationMASK` (or `SegmentationClass`) and `cls_labels*.npy`.

    The saliency maps of `SALmapsALL` are read by make_saliency.py --from-dir.

    Args:
        root: folder that holds JPEGImages.
        lists: {"train", "test": list file}, under root or anywhere; both empty: train.txt and, if
            it is there, test.txt under root.
        table: label file, under root or anywhere; empty: the only cls_labels*.npy under root.
        class_names: in the order of the labels; empty: class_1, class_2, ...
        prefix: of the folders of images and masks, as r in rJPEGImages and rSegmentationMASK.

    Raises:
        FileNotFoundError: folders, lists, the label file or images are not there.
        ValueError: an unsafe or foreign label file, or labels, names and classes that do not fit.
    """
    images_dir = root / f"{prefix}JPEGImages"
    if not images_dir.is_dir():
        raise FileNotFoundError(
            f"{images_dir}: expected the images, found {listing(root)}. Set data.root to the "
            "folder that holds it, and data.prefix where it has one."
        )
    labels_path = _labels_path(root, table)
    labels, num_classes = _read_label_file(labels_path)
    class_names = tuple(class_names) or tuple(f"class_{k + 1}" for k in range(num_classes))
    if len(class_names) != num_classes or not labels:
        raise ValueError(
            f"{labels_path}: expected labels of {len(class_names)} classes, got {num_classes}. "
            "Correct data.classes."
        )
    images = {p.stem: p for p in images_dir.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES}
    mask_dirs = [root / f"{prefix}{kind}" for kind in MASKS]
    mask_dir = next((folder for folder in mask_dirs if folder.is_dir()), mask_dirs[0])
    splits = {}
    for split, given in lists.items():
        path = find_file(given, root) if given else root / f"{split}.txt"
        if split == "test" and not given and (lists["train"] or not path.is_file()):
            continue
        names = [_bare(name) for name in read_released_list(path)]
        refuse_missing([images.get(name, images_dir / f"{name}.jpg") for name in names], path)
        unlabelled = [name for name in names if name not in labels]
        if unlabelled:
            raise ValueError(
                f"{labels_path}: expected a label for every image of {path}, {len(unlabelled)} "
                f"lack one: {', '.join(unlabelled[:5])}. Give the label file of this list."
            )
        splits[split] = tuple(
            Record(
                name,
                images[name],
                tuple(np.flatnonzero(labels[name] > ABSENT).tolist()),
                mask=if_there(mask_dir / f"{name}.png"),
            )
            for name in names
        )
    return class_names, splits


def _labels_path(root: Path, table: str) -> Path:
    if table:
        return find_file(table, root)
    label_files = sorted(root.glob("cls_labels*.npy"))
    if len(label_files) != 1:
        raise FileNotFoundError(
            f"{root}: expected one file cls_labels*.npy, found {len(label_files)}: "
            f"{', '.join(path.name for path in label_files)}. Set data.table to the one to use."
        )
    return label_files[0]


def _read_label_file(path: Path) -> tuple[dict[str, np.ndarray], int]:
    """Return labels (C,) by the bare name of their image, and C, which masks can tell apart."""
    labels = {_bare(name): label for name, label in read_released_labels(path).items()}
    num_classes = next(iter(labels.values())).size if labels else 0
    check_num_classes(num_classes, path)
    return labels, num_classes


def _bare(name: str) -> str:
    """Return a name without the ending of a picture; dots elsewhere stay."""
    return name[: -len(Path(name).suffix)] if Path(name).suffix.lower() in IMAGE_SUFFIXES else name
