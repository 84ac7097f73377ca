"""Images with image-level labels and saliency: all that training sees."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from datasets.crops import crop_generator, draw_crop
from datasets.files import read_image, read_saliency
from datasets.record import Record, label_vector
from datasets.transforms import transform_together


class WeakSample(TypedDict):
    """One item; batches add the leading dimension B, and a list of names."""

    image: Tensor  # (3, H, W) float32, normalised
    label: Tensor  # (K,) float32 multi-hot
    saliency: Tensor  # (1, H, W) float32 in [0, 1]; as many maps as `read_maps` gives
    name: str


class WeakDataset(Dataset):
    """Reads image and saliency of each record and moves both by the same random draw.

    The draw depends on seed, epoch and index alone, not on the number of loader processes.
    """

    def __init__(
        self,
        records: Sequence[Record],
        num_classes: int,
        transform: v2.Transform,
        seed: int,
        read_maps: Callable[[Record], np.ndarray] = lambda record: read_saliency(record.saliency),
        crop: int = 0,
        crop_support: float = 0.0,
    ):
        """Take the records as they are.

        Args:
            records: images, with saliency maps unless `read_maps` finds others.
            num_classes: K.
            transform: of datasets.transforms.
            seed: of the random draws.
            read_maps: gives the map (H, W), or maps (C, H, W), float32 in [0, 1] of a record.
            crop: side in pixels of a random crop of each image before the transform, by the rule
                of datasets.crops; it needs saliency maps. 0 for whole images.
            crop_support: share of a crop that must be salient to keep the labels.

        Raises:
            ValueError: crops of records without a saliency map.
        """
        without = [record.name for record in records if record.saliency is None]
        if crop and without:
            raise ValueError(
                f"train.crop: expected a saliency map for each of {len(records)} images, as only "
                f"these tell the label of a crop; {len(without)} have none: "
                f"{', '.join(without[:5])}. Make the maps, or set train.crop to 0."
            )
        self.records = records
        self.num_classes = num_classes
        self.transform = transform
        self.seed = seed
        self.read_maps = read_maps
        self.crop = crop
        self.crop_support = crop_support
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the random draws of an epoch; call it before iterating."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> WeakSample:
        record = self.records[index]
        image = read_image(record.image)
        saliency = self.read_maps(record)
        if saliency.shape[-2:] != image.shape[:2]:
            raise ValueError(
                f"{record.saliency or record.name}: expected the size of its image, "
                f"{image.shape[:2]}, got {saliency.shape[-2:]}. Make the saliency maps anew."
            )
        label = torch.tensor(label_vector(record, self.num_classes))
        if self.crop:
            generator = crop_generator(self.seed, self.epoch, index)
            crop, keeps_label = draw_crop(
                saliency, len(record.classes), self.crop, self.crop_support, generator
            )
            image, saliency, label = image[crop], saliency[crop], label * keeps_label
        image, saliency = transform_together(
            self.transform, image, saliency, self.seed, self.epoch, index
        )
        return WeakSample(image=image, label=label, saliency=saliency, name=record.name)


def with_saliency(records: Sequence[Record], saliency_dir: Path) -> list[Record]:
    """Return the records with the path of their saliency map.

    Raises:
        FileNotFoundError: maps are missing; names the first five and the total.
    """
    found = [replace(r, saliency=saliency_dir / f"{r.name}.png") for r in records]
    missing = [r.saliency.name for r in found if not r.saliency.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{saliency_dir}: expected a saliency map for each of {len(found)} images, "
            f"{len(missing)} are missing: {', '.join(missing[:5])}. Run make_saliency.py first."
        )
    return found


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
