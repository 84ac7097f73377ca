"""The one way images pass through a network: whole, or as overlapping tiles.

A whole image is an image of one tile.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from datasets.files import read_image
from datasets.record import Record
from datasets.transforms import as_image
from models.tiles import Tile, tiles_of

TILE_OVERLAP = 0.25  # neighbours share at least this part of their side

# A batch (B, 3, H_s, W_s) for each scale -> what the network says of each of its B items.
Forward = Callable[[list[Tensor]], Sequence]


class Cutting(NamedTuple):
    """How images are cut and batched."""

    tile: int  # side in pixels of the native image; 0 = the whole image
    batch_size: int  # tiles, of one or several images, that pass the network at a time


class Picture(NamedTuple):
    """A decoded image.

    Attributes:
        record: of the image.
        pixels: (H, W, 3) uint8 RGB.
        inputs: of the network, one per scale, if they were made with the decoding.
    """

    record: Record
    pixels: np.ndarray
    inputs: list[Tensor] | None = None


class Pictures(Dataset):
    """Decodes the image of each record; gives the reason instead where it cannot and may go on."""

    def __init__(
        self, records: Sequence[Record], transforms: Sequence[v2.Transform], goes_on: bool
    ):
        self.records = records
        self.transforms = transforms
        self.goes_on = goes_on

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Picture | tuple[str, str]:
        record = self.records[index]
        try:
            pixels = read_image(record.image)
        except (ValueError, OSError) as error:
            if not self.goes_on:
                raise
            return record.name, str(error)
        inputs = [transform(as_image(pixels)) for transform in self.transforms]
        return Picture(record, pixels, inputs or None)


def load_pictures(
    records: Sequence[Record],
    transforms: Sequence[v2.Transform] = (),
    workers: int = 0,
    problems: dict[str, str] | None = None,
) -> Iterator[Picture]:
    """Decode images, in order.

    Args:
        records: images.
        transforms: evaluation presets whose results are made with the pixels, in the loader
            processes. None for images that are cut: tiles are made when they are needed, or memory
            would grow with the image.
        workers: loader processes.
        problems: takes what is wrong with images that cannot be read, by name; without it they are
            errors.
    """
    pictures = Pictures(records, transforms, goes_on=problems is not None)
    for item in DataLoader(pictures, None, num_workers=workers, collate_fn=_as_it_is):
        if isinstance(item, Picture):
            yield item
        else:
            problems[item[0]] = item[1]


@dataclass
class _Entry:
    """An image on its way: its tiles, and the outputs of those that passed the network."""

    record: Record
    pixels: np.ndarray
    tiles: list[Tile]
    outputs: list = field(default_factory=list)


def over_images(
    pictures: Iterable[Picture],
    transforms: Sequence[v2.Transform],
    forward: Forward,
    cutting: Cutting,
) -> Iterator[tuple[Record, np.ndarray, list[tuple[Tile, Any]]]]:
    """Pass images through a network, in order.

    Args:
        pictures: decoded images.
        transforms: evaluation presets, one per scale, each with one size of result.
        forward: of a batch.
        cutting: tiles, batch size.

    Yields:
        Record, pixels (H, W, 3) uint8, and each tile with what the network says of it.
    """
    waiting: deque[_Entry] = deque()
    batch: list[tuple[_Entry, list[Tensor]]] = []
    for picture in pictures:
        tiles = tiles_of(picture.pixels.shape[:2], cutting.tile, TILE_OVERLAP)
        entry = _Entry(picture.record, picture.pixels, tiles)
        waiting.append(entry)
        for tile in tiles:
            views = picture.inputs if len(tiles) == 1 else None
            if views is None:
                region = as_image(picture.pixels[tile.rows, tile.columns])
                views = [transform(region) for transform in transforms]
            batch.append((entry, views))
            if len(batch) == cutting.batch_size:
                _run(forward, batch)
        yield from _finished(waiting)
    _run(forward, batch)
    yield from _finished(waiting)


def _run(forward: Forward, batch: list[tuple[_Entry, list[Tensor]]]) -> None:
    """Pass a batch through the network, give its outputs to their images and empty it."""
    if not batch:
        return
    scales = zip(*(views for _, views in batch), strict=True)
    outputs = forward([torch.stack(of_scale) for of_scale in scales])
    for (entry, _), output in zip(batch, outputs, strict=True):
        entry.outputs.append(output)
    batch.clear()


def _finished(
    waiting: deque[_Entry],
) -> Iterator[tuple[Record, np.ndarray, list[tuple[Tile, Any]]]]:
    while waiting and len(waiting[0].outputs) == len(waiting[0].tiles):
        entry = waiting.popleft()
        yield entry.record, entry.pixels, list(zip(entry.tiles, entry.outputs, strict=True))


def _as_it_is(item: Any) -> Any:
    return item
