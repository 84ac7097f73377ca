"""Images with their maps, ready for training, against PIL and torchvision's transforms v1."""

import random
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import functional as F

from benchmarks.measuring import Row, Step
from datasets.files import write_image, write_saliency
from datasets.image_maps import ImageMapDataset, saliency_maps
from datasets.record import Record
from datasets.transforms import JITTER, eval_transform, train_transform

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
SMALL, FULL = (3, (24, 32)), (256, (224, 224))  # images, size for the network
NATIVE = (200, 200)
BATCH_SIZE = 16


class PlainDataset(Dataset):
    """Image and map with one draw of flips, as a training script without a library does it."""

    def __init__(self, records: list[Record], maps: Path, size: tuple[int, int], is_training: bool):
        self.records = records
        self.maps = maps
        self.size = size
        self.is_training = is_training
        self.light = transforms.ColorJitter(brightness=JITTER, contrast=JITTER)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        record = self.records[index]
        image = Image.open(record.image).convert("RGB")
        saliency = Image.open(self.maps / f"{record.name}.png").convert("L")
        image, saliency = (F.resize(part, list(self.size)) for part in (image, saliency))
        if self.is_training:
            for flip in (F.hflip, F.vflip):
                if random.random() < 0.5:
                    image, saliency = flip(image), flip(saliency)
            image = self.light(image)
        image = F.normalize(F.to_tensor(image), MEAN, STD)
        return {"image": image, "map": F.to_tensor(saliency)}


def write_files(folder: Path, count: int) -> list[Record]:
    """Write smooth pictures as JPEG and maps as PNG; return the records."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(count):
        coarse = rng.integers(0, 256, (NATIVE[0] // 8, NATIVE[1] // 8), np.uint8)
        grey = np.asarray(Image.fromarray(coarse).resize(NATIVE[::-1]))
        image = folder / f"{number}.jpg"
        write_image(image, np.repeat(grey[..., None], 3, axis=2))
        write_saliency(folder / f"maps/{number}.png", grey / np.float32(255))
        records.append(Record(str(number), image, (0,)))
    return records


def step_of(is_ours: bool, small: bool, device: str) -> Step:
    """Return an epoch of loading; its result at the small size is the first image, undisturbed."""
    count, size = SMALL if small else FULL
    folder = TemporaryDirectory()
    records = write_files(Path(folder.name), count)
    maps = Path(folder.name) / "maps"
    if is_ours:
        transform = (eval_transform if small else train_transform)(size, MEAN, STD)
        dataset = ImageMapDataset(records, 1, transform, 0, *saliency_maps(records, maps))
    else:
        dataset = PlainDataset(records, maps, size, is_training=not small)
    epoch = 0

    def step(kept: TemporaryDirectory = folder) -> np.ndarray:  # the files live as long
        nonlocal epoch
        epoch += 1
        if is_ours:
            dataset.set_epoch(epoch)
        batches = list(DataLoader(dataset, BATCH_SIZE))
        return torch.cat([batches[0]["image"][0] / 4, batches[0]["map"][0]]).numpy()

    return step


ROW = Row(
    f"loading {FULL[0]} JPEG of 200 x 200 with their maps",
    "PIL and torchvision's transforms v1, as many workers",
    partial(step_of, True),
    partial(step_of, False),
    target=2.0,
    tolerance=0.01,
    devices=("cpu",),
)
