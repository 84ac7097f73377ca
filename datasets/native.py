"""Images at native size, and parts of them as batches for a network."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from datasets.files import read_image
from datasets.record import Record
from datasets.transforms import as_image


class NativeImages(Dataset):
    """Gives each record with its pixels (H, W, 3) uint8."""

    def __init__(self, records: Sequence[Record]):
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[Record, np.ndarray]:
        record = self.records[index]
        return record, read_image(record.image)


def native_loader(records: Sequence[Record], workers: int) -> DataLoader:
    """Return a loader of single (record, pixels) pairs, in order."""
    return DataLoader(
        NativeImages(records), batch_size=None, num_workers=workers, collate_fn=_as_it_is
    )


def region_batches(
    pixels: np.ndarray,
    regions: Sequence[tuple[slice, slice]],
    transforms: Sequence[v2.Transform],
    batch_size: int,
) -> Iterator[list[Tensor]]:
    """Cut regions out of an image, a batch at a time, so that memory does not grow with it.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        regions: (rows, columns) each.
        transforms: evaluation presets, one per scale, each with one size of result.
        batch_size: regions per batch.

    Yields:
        Per transform the batch (B, 3, H_s, W_s) of the next regions.
    """
    for first in range(0, len(regions), batch_size):
        images = [as_image(pixels[region]) for region in regions[first : first + batch_size]]
        yield [torch.stack([transform(image) for image in images]) for transform in transforms]


def _as_it_is(item: tuple[Record, np.ndarray]) -> tuple[Record, np.ndarray]:
    return item
