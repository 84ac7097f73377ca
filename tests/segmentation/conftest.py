"""A run with pseudo labels but no true mask, which a segmentation network is trained on."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.files import write_image, write_mask
from runfolder.checkpoint import Checkpoint, load_checkpoint

CLASSES = ("inclusion", "patches", "scratches")
LEVELS = np.array([120, 20, 220, 170], np.uint8)  # grey value of background and the classes
SMALL = "tu-mobilenetv3_small_050"  # 1.1 M parameters with the decoder


class LabelledRun:
    """A run folder with images of the NEU-Seg layout and pseudo labels, without any true mask."""

    size = (37, 50)  # H != W, neither a multiple of 16

    def __init__(self, root: Path, num_images: int):
        self.root, self.out = root, root / "run"
        rows = ["name,classes"]
        for i in range(num_images):
            self.add("training", f"{i:03d}", i)
            rows.append(f"{i:03d},{CLASSES[i % 3]}")
        for i in range(2):
            self.add("test", f"9{i}", i)
            rows.append(f"9{i}t,{CLASSES[i % 3]}")
        (self.out / "labels.csv").write_text("\n".join(rows) + "\n")
        self.config = root / "config.toml"
        self.config.write_text(
            f'[data]\nsource = "neu_seg"\nroot = "{root / "data"}"\nval_fraction = 0.2\n'
            f'[segmentation]\nencoder = "{SMALL}"\npretrained = "none"\nimage_size = [32, 48]\n'
            'batch_size = 2\nepochs = 2\nwarmup_epochs = 0.5\namp = "off"\n'
        )

    def add(self, split: str, stem: str, index: int) -> None:
        mask = np.zeros(self.size, np.uint8)
        top = 3 * index  # of no two images the same
        mask[top : top + 18, 13:37] = index % 3 + 1
        image = np.repeat(LEVELS[mask][..., None], 3, axis=2)
        write_image(self.root / f"data/images/{split}/{stem}.png", image)
        mask[top] = 255
        if split == "training":
            write_mask(self.out / f"pseudo_labels/{stem}.png", mask)

    def arguments(self, *settings: str) -> list[str]:
        flags = ["--config", str(self.config), "--out", str(self.out), "--device", "cpu"]
        return [*flags, *(["--set", *settings] if settings else [])]

    def log(self) -> list[dict]:
        return [json.loads(x) for x in (self.out / "segmentation/log.jsonl").open()]

    def checkpoint(self, name: str = "checkpoint.pt") -> Checkpoint:
        return load_checkpoint(self.out / "segmentation" / name, "segmentation/train.py")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Several threads on pictures this small only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[[int], LabelledRun]:
    """Make a run of so many training images."""
    return lambda num_images: LabelledRun(tmp_path, num_images)


@pytest.fixture
def run(make_run) -> LabelledRun:
    return make_run(6)  # 5 to train on, 1 to validate on
