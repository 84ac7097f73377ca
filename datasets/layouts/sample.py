"""The generated sample: PASCAL VOC folders, image labels in labels.csv."""

from pathlib import Path

from datasets.files import read_text
from datasets.layouts.common import Layout, if_there, read_labels
from datasets.record import Record
from datasets.sample import CLASS_NAMES


def read_sample(root: Path) -> Layout:
    """Read the VOC layout that `write_sample` makes, with labels.csv of image-level labels.

    Raises:
        ValueError: an image of a list has no labels, or a name that no file can have.
    """
    labels_path = root / "labels.csv"
    labels = read_labels(labels_path, CLASS_NAMES)
    splits = {}
    for split in ("train", "test"):
        list_path = root / f"ImageSets/Segmentation/{split}.txt"
        names = read_text(list_path).split()
        if unlabelled := [name for name in names if name not in labels]:
            raise ValueError(
                f"{labels_path}: expected a line for every image of {list_path}, {len(unlabelled)} "
                f"lack one: {unlabelled[:5]}. Delete the sample to make it anew."
            )
        splits[split] = tuple(
            Record(
                name,
                root / f"JPEGImages/{name}.jpg",
                labels[name],
                mask=if_there(root / f"SegmentationClass/{name}.png"),
            )
            for name in names
        )
    return CLASS_NAMES, splits
