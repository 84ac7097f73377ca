"""What a segmentation network says about images: logits at native size."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from configs import Config, from_dict
from datasets.files import read_image
from datasets.native import native_loader, region_batches
from datasets.record import Record
from datasets.transforms import as_image
from models.device import autocast
from models.tiles import blend, tiles_of
from segmentation.networks import build_network


class NamedImages(Dataset):
    """Gives each record's name, native size and network input."""

    def __init__(self, records: Sequence[Record], transform: v2.Transform):
        self.records = records
        self.transform = transform

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> tuple[str, tuple[int, int], Tensor]:
        record = self.records[index]
        pixels = read_image(record.image)
        return record.name, pixels.shape[:2], self.transform(as_image(pixels))


def network_from_checkpoint(checkpoint: dict[str, Any]) -> nn.Module:
    """Rebuild the trained network, in evaluation mode, from a checkpoint alone."""
    settings = from_dict(checkpoint["config"]).segmentation
    num_mask_classes = len(checkpoint["class_names"]) + 1
    model = build_network(settings.network, settings.encoder, "none", num_mask_classes)
    model.load_state_dict(checkpoint["model"])
    return model.eval()


def predict_whole(
    model: nn.Module,
    records: Sequence[Record],
    transform: v2.Transform,
    config: Config,
    device: torch.device,
    dtype: torch.dtype | None,
) -> Iterator[tuple[str, Tensor]]:
    """Give name and logits (K + 1, H, W) of each image; segmentation.batch_size at a time."""
    loader = DataLoader(
        NamedImages(records, transform),
        config.segmentation.batch_size,
        num_workers=config.data.workers,
        collate_fn=_collate,
    )
    for names, sizes, images in loader:
        with autocast(device, dtype):
            logits = flip_averaged(model, images.to(device))
        for name, size, of_image in zip(names, sizes, logits, strict=True):
            yield name, resized(of_image, size)


def predict_tiles(
    model: nn.Module,
    records: Sequence[Record],
    transform: v2.Transform,
    config: Config,
    device: torch.device,
    dtype: torch.dtype | None,
) -> Iterator[tuple[str, Tensor]]:
    """Give name and logits (K + 1, H, W) of each image; segmentation.batch_size tiles a time."""
    settings = config.segmentation
    for record, pixels in native_loader(records, config.data.workers):
        size = pixels.shape[:2]
        tiles = tiles_of(size, settings.tile, settings.tile_overlap)
        regions = [(tile.rows, tile.columns) for tile in tiles]
        batches = region_batches(pixels, regions, [transform], settings.batch_size)
        logits = tile_logits(model, batches, device, dtype)
        parts = ((tile, resized(x, tile.size)) for tile, x in zip(tiles, logits, strict=True))
        yield record.name, blend(parts, size)


def tile_logits(
    model: nn.Module,
    batches: Iterator[list[Tensor]],
    device: torch.device,
    dtype: torch.dtype | None,
) -> Iterator[Tensor]:
    """Give the mean logits (K + 1, h, w) float32 of one tile after the other."""
    for (images,) in batches:
        with autocast(device, dtype):
            logits = flip_averaged(model, images.to(device))
        yield from logits


@torch.no_grad()
def flip_averaged(model: nn.Module, images: Tensor) -> Tensor:
    """Return the mean logits (B, K + 1, H, W) float32 of images (B, 3, H, W) and their mirrors."""
    mirrored = model(images.flip(-1)).flip(-1)
    return (model(images).float() + mirrored.float()) / 2


def resized(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize logits (K + 1, h, w) bilinearly to (H, W)."""
    return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]


def best_class(logits: Tensor) -> np.ndarray:
    """Return the mask values (H, W) uint8 of logits (K + 1, H, W)."""
    return logits.argmax(0).to(torch.uint8).cpu().numpy()


def _collate(
    items: list[tuple[str, tuple[int, int], Tensor]],
) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...], Tensor]:
    names, sizes, images = zip(*items, strict=True)
    return names, sizes, torch.stack(images)
