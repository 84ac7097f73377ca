"""Images with image-level labels and the map on each: all that both trainings see.

The map is a saliency map for the localiser and a pseudo label for the second stage. A record's own
mask, the ground truth, is never opened.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from datasets.crops import Crop, aim, crop_generator, draw_crop, place_crop
from datasets.files import read_image, read_mask, read_saliency
from datasets.record import BACKGROUND, IGNORE, Record, label_vector
from datasets.transforms import transform_together

# Of a record: its map (H, W) or maps (C, H, W).
ReadMap = Callable[[Record], np.ndarray]
# Of a record, its map and random numbers: rows and columns, and whether they keep the label.
ChooseCrop = Callable[[Record, np.ndarray, np.random.Generator], tuple[Crop, bool]]


class Sample(TypedDict):
    """One item; batches add the leading dimension B, and a list of names."""

    image: Tensor  # (3, H, W) float32, normalised
    label: Tensor  # (K,) float32 multi-hot
    map: Tensor  # (C, H, W), of the type that was read: saliency in [0, 1], or mask values
    name: str


class ImageMapDataset(Dataset):
    """Reads image and map of each record and moves both by the same random draw.

    The draw depends on seed, epoch and index alone, not on the number of loader processes.
    """

    def __init__(
        self,
        records: Sequence[Record],
        num_classes: int,
        transform: v2.Transform,
        seed: int,
        read_map: ReadMap,
        choose_crop: ChooseCrop | None = None,
    ):
        """Take the records as they are.

        Args:
            records: images.
            num_classes: K.
            transform: of datasets.transforms.
            seed: of the random draws.
            read_map: gives the map of a record, of the size of its image.
            choose_crop: draws a part of the native image before the transform; None for all.
        """
        self.records = records
        self.num_classes = num_classes
        self.transform = transform
        self.seed = seed
        self.read_map = read_map
        self.choose_crop = choose_crop
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the random draws of an epoch; call it before iterating."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        image, values = read_image(record.image), self.read_map(record)
        if values.shape[-2:] != image.shape[:2]:
            raise ValueError(
                f"map of {record.name} (saliency map or pseudo label, {record.name}.png): expected "
                f"the size of its image, {image.shape[:2]}, got {values.shape[-2:]}. Make it anew."
            )
        label = torch.tensor(label_vector(record, self.num_classes))
        if self.choose_crop:
            generator = crop_generator(self.seed, self.epoch, index)
            crop, keeps_label = self.choose_crop(record, values, generator)
            image, values, label = image[crop], values[crop], label * keeps_label
        place = (self.seed, self.epoch, index)
        image, values = transform_together(self.transform, image, values, *place)
        return Sample(image=image, label=label, map=values, name=record.name)


def saliency_maps(
    records: Sequence[Record], folder: Path, crop: int = 0
) -> tuple[ReadMap, ChooseCrop | None]:
    """Return how the localiser's training reads the saliency maps of a folder, and crops.

    Args:
        records: images, each with its map <name>.png.
        folder: of the maps.
        crop: side in pixels of a random crop, by the rule of datasets.crops; 0 for whole images.

    Raises:
        FileNotFoundError: maps are missing; names the first five and the total.
    """
    require_files(records, folder, ".png", ("a saliency map", "make_saliency.py"))

    def choose(
        record: Record, saliency: np.ndarray, generator: np.random.Generator
    ) -> tuple[Crop, bool]:
        return draw_crop(saliency, len(record.classes), crop, generator)

    return lambda record: read_saliency(folder / f"{record.name}.png"), choose if crop else None


def pseudo_labels(
    records: Sequence[Record], folder: Path, num_classes: int, crop: int = 0
) -> tuple[ReadMap, ChooseCrop | None]:
    """Return how the second stage reads the pseudo labels of a folder, and crops.

    Args:
        records: images, each with its mask <name>.png.
        folder: of the masks, values 0..num_classes and 255.
        num_classes: K.
        crop: side in pixels of a random crop, half of them around a pixel of a class; 0 for whole
            images.

    Raises:
        FileNotFoundError: masks are missing; names the first five and the total.
    """
    require_files(records, folder, ".png", ("a pseudo label", "make_pseudo_labels.py"))

    def choose(
        record: Record, mask: np.ndarray, generator: np.random.Generator
    ) -> tuple[Crop, bool]:
        foreground = np.flatnonzero((mask != BACKGROUND) & (mask != IGNORE))
        return place_crop(mask.shape, crop, generator, aim(foreground, generator)), True

    def read(record: Record) -> np.ndarray:
        return read_mask(folder / f"{record.name}.png", num_classes)

    return read, choose if crop else None


def require_files(
    records: Sequence[Record], folder: Path, suffix: str, what: tuple[str, str]
) -> None:
    """Check that every record has its file in a folder.

    Args:
        records: images.
        folder: with <name><suffix>.
        suffix: of the files, with its dot.
        what: what a file is, and the script that makes it.

    Raises:
        FileNotFoundError: some are missing; names the first five and the total.
    """
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    missing = [f"{r.name}{suffix}" for r in records if f"{r.name}{suffix}" not in there]
    if missing:
        raise FileNotFoundError(
            f"{folder}: expected {what[0]} for each of {len(records)} images, {len(missing)} are "
            f"missing: {', '.join(missing[:5])}. Run {what[1]} first."
        )


def balance(records: Sequence[Record], share: float = 0.5) -> list[Record]:
    """List defective images so many times that they are about a share of all that are listed.

    Among many empty images a network learns that nothing is a defect: on MTD, where three of four
    images are defect-free, refined saliency kept nothing and the localiser stayed at chance.

    Args:
        records: all are listed at least once.
        share: in [0, 1).
    """
    defective = [record for record in records if record.classes]
    num_free = len(records) - len(defective)
    repeats = round(share / (1 - share) * num_free / max(len(defective), 1))
    return [*records, *defective * (repeats - 1)]
