"""The generated sample: PASCAL VOC folders, image labels in labels.csv."""

from pathlib import Path

from datasets.layouts.common import Layout, if_there, read_labels
from datasets.record import Record
from datasets.sample import CLASS_NAMES


def read_sample(root: Path) -> Layout:
    """Read the VOC layout that `write_sample` makes, with labels.csv of image-level labels."""
    labels = read_labels(root / "labels.csv", CLASS_NAMES)
    splits = {}
    for split in ("train", "test"):
        names = (root / f"ImageSets/Segmentation/{split}.txt").read_text().split()
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
