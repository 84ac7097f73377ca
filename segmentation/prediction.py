"""What a segmentation network says about images: logits at native size."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from configs import Config, SegmentationConfig, from_dict
from datasets.files import read_image
from datasets.native import native_loader, region_batches
from datasets.record import Record
from datasets.transforms import as_image
from models.device import autocast
from models.refine import pixel_adaptive_refinement
from models.tiles import blend, tiles_of
from segmentation.networks import build_network, network_size

PROBABILITY_FLOOR = 1e-8  # before a logarithm


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
            logits = averaged(model, images.to(device), config.segmentation)
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
        logits = tile_logits(model, batches, settings, device, dtype)
        parts = ((tile, resized(x, tile.size)) for tile, x in zip(tiles, logits, strict=True))
        yield record.name, blend(parts, size)


def tile_logits(
    model: nn.Module,
    batches: Iterator[list[Tensor]],
    settings: SegmentationConfig,
    device: torch.device,
    dtype: torch.dtype | None,
) -> Iterator[Tensor]:
    """Give the mean logits (K + 1, h, w) float32 of one tile after the other."""
    for (images,) in batches:
        with autocast(device, dtype):
            logits = averaged(model, images.to(device), settings)
        yield from logits


@torch.no_grad()
def averaged(model: nn.Module, images: Tensor, settings: SegmentationConfig) -> Tensor:
    """Return the logarithm of the mean probabilities over scales and mirror images.

    Args:
        model: segmentation network.
        images: (B, 3, H, W) of the size the network was trained with.
        settings: its scales and network are used.

    Returns:
        (B, K + 1, H, W) float32; its softmax are the mean probabilities.
    """
    height, width = images.shape[-2:]
    total = torch.zeros((), device=images.device)
    for scale in settings.scales:
        size = network_size((round(height * scale), round(width * scale)), settings.network)
        scaled = images
        if size != (height, width):
            scaled = F.interpolate(images, size, mode="bilinear", antialias=True)
        for logits in (model(scaled), model(scaled.flip(-1)).flip(-1)):
            shares = logits.float().softmax(dim=1)
            total = total + F.interpolate(shares, (height, width), mode="bilinear")
    return (total / (2 * len(settings.scales))).clamp(min=PROBABILITY_FLOOR).log()


def sharpened(logits: Tensor, image: np.ndarray, steps: int) -> Tensor:
    """Move what is predicted to the edges of the image.

    Args:
        logits: (K + 1, H, W).
        image: (H, W, 3) uint8.
        steps: of `pixel_adaptive_refinement` on the probabilities; 0 changes nothing.

    Returns:
        (K + 1, H, W), the logarithm of probabilities.
    """
    if not steps:
        return logits
    pixels = torch.from_numpy(image).to(logits.device).permute(2, 0, 1).float()
    refined = pixel_adaptive_refinement(pixels, logits.softmax(dim=0), steps)
    return refined.clamp(min=PROBABILITY_FLOOR).log()


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
