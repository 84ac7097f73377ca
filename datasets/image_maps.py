"""Images with image-level labels and the map on each: all that both trainings see.

The map is a saliency map for the localiser and a pseudo label for the second stage. A record's own
mask, the ground truth, is never opened.
"""

import math
import mmap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

from datasets.crops import Crop, aim, crop_generator, draw_crop, place_crop
from datasets.files import read_image, read_mask, read_saliency
from datasets.record import BACKGROUND, IGNORE, Record, label_vector
from datasets.transforms import as_image, as_map, transform_together

KEPT_BYTES = 2 * 2**30  # most memory for resized images and maps; more are decoded in every epoch

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
        self.resize, *rest = transform.transforms
        self.transform = v2.Compose(rest)
        self.seed = seed
        self.read_map = read_map
        self.choose_crop = choose_crop
        self.kept = None if choose_crop else Kept(len(records))
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the random draws of an epoch; call it before iterating."""
        self.epoch = epoch
        if self.kept and self.kept.images is None and len(self.records):
            pixels, maps = self._read(self.records[0])
            self.kept.make_room(*self.resize(as_image(pixels), as_map(maps)))

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        label = torch.tensor(label_vector(record, self.num_classes))
        pair = self.kept.get(index) if self.kept else None
        if pair is None:
            pixels, maps = self._read(record)
            if self.choose_crop:
                generator = crop_generator(self.seed, self.epoch, index)
                crop, keeps_label = self.choose_crop(record, maps, generator)
                pixels, maps, label = pixels[crop], maps[crop], label * keeps_label
            pair = self.resize(as_image(pixels), as_map(maps))
            if self.kept:
                self.kept.put(index, *pair)
        place = (self.seed, self.epoch, index)
        image, values = transform_together(self.transform, *pair, place)
        return Sample(image=image, label=label, map=values, name=record.name)

    def _read(self, record: Record) -> tuple[np.ndarray, np.ndarray]:
        pixels, maps = read_image(record.image), self.read_map(record)
        if maps.shape[-2:] != pixels.shape[:2]:
            raise ValueError(
                f"map of {record.name} (saliency map or pseudo label, {record.name}.png): expected "
                f"the size of its image, {pixels.shape[:2]}, got {maps.shape[-2:]}. Make it anew."
            )
        return pixels, maps


class Kept:
    """Keeps resized images and maps in memory that loader processes share, from the first epoch on.

    Decoding and resizing take more than half of the time of an item.
    """

    def __init__(self, count: int):
        self.count = count
        self.done = _shared((count,), torch.bool)
        self.images: Tensor | None = None
        self.maps: Tensor | None = None

    def __reduce__(self) -> tuple:
        return Kept, (self.count,)  # processes that are not forked keep items of their own

    def make_room(self, image: Tensor, maps: Tensor) -> None:
        """Take the memory that all items need, if it is below `KEPT_BYTES`; before any fork.

        Args:
            image: one item's (3, H, W), of the size and type of all.
            maps: its (C, H, W).
        """
        if self.count * (image.nbytes + maps.nbytes) <= KEPT_BYTES:
            self.images = _shared((self.count, *image.shape), image.dtype)
            self.maps = _shared((self.count, *maps.shape), maps.dtype)

    def get(self, index: int) -> tuple[tv_tensors.Image, tv_tensors.Mask] | None:
        """Return image and maps of an item; None if they are not kept."""
        if not self.done[index]:
            return None
        return tv_tensors.Image(self.images[index]), tv_tensors.Mask(self.maps[index])

    def put(self, index: int, image: Tensor, maps: Tensor) -> None:
        """Keep an item, if there is room."""
        if self.images is not None:
            self.images[index], self.maps[index] = image, maps
            self.done[index] = True


def _shared(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return zeros that forked processes share; unlike PyTorch's, not in /dev/shm, often small."""
    num_bytes = math.prod(shape) * dtype.itemsize
    return (
        torch.frombuffer(mmap.mmap(-1, max(num_bytes, 1)), dtype=torch.uint8)[:num_bytes]
        .view(dtype)
        .view(shape)
    )


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
