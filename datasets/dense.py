"""Images with pseudo labels: all that the second stage is trained on."""

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from datasets.crops import aim, crop_generator, place_crop
from datasets.files import read_image, read_mask
from datasets.record import BACKGROUND, IGNORE, Record, label_vector
from datasets.transforms import transform_together


class DenseSample(TypedDict):
    """One item; batches add the leading dimension B, and a list of names."""

    image: Tensor  # (3, H, W) float32, normalised
    mask: Tensor  # (H, W) int64, 0..K and 255
    label: Tensor  # (K,) float32 multi-hot, of the whole image
    name: str


class DenseDataset(Dataset):
    """Reads image and pseudo label of each record and moves both by the same random draw.

    The draw depends on seed, epoch and index alone, not on the number of loader processes.
    A record's own mask, the ground truth, is never opened.
    """

    def __init__(
        self,
        records: Sequence[Record],
        mask_dir: Path,
        num_classes: int,
        transform: v2.Transform,
        seed: int,
        crop: int = 0,
    ):
        """Check that every image has its mask.

        Args:
            records: images.
            mask_dir: folder with <name>.png, mask values 0..num_classes and 255.
            num_classes: K foreground classes.
            transform: of datasets.transforms.
            seed: of the random draws.
            crop: side in pixels of a random crop of each image before the transform, half of
                them around a pixel of a class; 0 for whole images.

        Raises:
            FileNotFoundError: masks are missing; names the first five and the total.
        """
        missing = [r.name for r in records if not (mask_dir / f"{r.name}.png").is_file()]
        if missing:
            raise FileNotFoundError(
                f"{mask_dir}: expected a pseudo label for each of {len(records)} images, "
                f"{len(missing)} are missing: {', '.join(missing[:5])}. "
                "Run make_pseudo_labels.py first."
            )
        self.records = records
        self.mask_dir = mask_dir
        self.num_classes = num_classes
        self.transform = transform
        self.seed = seed
        self.crop = crop
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the random draws of an epoch; call it before iterating."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> DenseSample:
        record = self.records[index]
        path = self.mask_dir / f"{record.name}.png"
        image = read_image(record.image)
        mask = read_mask(path, self.num_classes)
        if mask.shape != image.shape[:2]:
            raise ValueError(
                f"{path}: expected the size of its image, {image.shape[:2]}, got {mask.shape}. "
                "Run make_pseudo_labels.py again."
            )
        if self.crop:
            generator = crop_generator(self.seed, self.epoch, index)
            foreground = np.flatnonzero((mask != BACKGROUND) & (mask != IGNORE))
            crop = place_crop(mask.shape, self.crop, generator, aim(foreground, generator))
            image, mask = image[crop], mask[crop]
        image, mask = transform_together(self.transform, image, mask, self.seed, self.epoch, index)
        label = torch.tensor(label_vector(record, self.num_classes))
        return DenseSample(image=image, mask=mask[0].long(), label=label, name=record.name)
