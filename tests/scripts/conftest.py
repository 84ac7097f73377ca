"""A run with CAMs but no mask, which becomes pseudo labels; one of untrained models; pictures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import make_pseudo_labels
from configs import from_dict, to_dict
from datasets.files import Cam, read_mask, write_cam, write_image, write_saliency
from models.stac import build_stac
from runfolder.checkpoint import save_checkpoint
from segmentation.networks import build_network

CLASSES = ("inclusion", "patches", "scratches")
SECTIONS = {
    "train": {
        "backbone": "deit_tiny_patch16_224",
        "pretrained": "none",
        "depth": 2,
        "image_size": [32, 32],
        "projection_width": 8,
        "attention_layers": 1,
        "amp": "off",
    },
    "cam": {"scales": [1.0], "label_threshold": 0.3},
    "segmentation": {
        "encoder": "tu-mobilenetv3_small_050",
        "pretrained": "none",
        "image_size": [32, 32],
        "batch_size": 2,
        "amp": "off",
    },
}


class CamRun:
    """A run on 6 x 10 images of the NEU-Seg layout, with image labels and CAMs.

    Every CAM is 0.125 but for a block of 0.875, two rows high and five columns wide: rows 0 and 1
    for class 0, 2 and 3 for class 1, 4 and 5 for class 2.
    """

    size = (6, 10)
    labels = {"a": (0,), "b": (1, 2), "c": (), "d": (2,), "e": (0,), "1t": (1,), "2t": ()}

    def __init__(self, root: Path):
        self.root, self.folder = root, root / "run"
        for name, classes in self.labels.items():
            write_image(self.image_path(name), np.zeros((*self.size, 3), np.uint8))
            write_cam(self.cam_path(name), self.cam_of(classes))
        rows = [f"{n},{'|'.join(CLASSES[k] for k in ks)}" for n, ks in self.labels.items()]
        (self.folder / "labels.csv").write_text("\n".join(["name,classes", *rows]) + "\n")
        # One of a and e, the images of class 0, is held out.
        data = f'[data]\nsource = "neu_seg"\nroot = "{root}/data"\nval_fraction = 0.02\n'
        (root / "config.toml").write_text(data)

    def make(self, *settings: str, flags: tuple[str, ...] = ()) -> None:
        """Run make_pseudo_labels.py without PAMR, unless the settings say otherwise."""
        call = ["--config", str(self.root / "config.toml"), "--out", str(self.folder), *flags]
        make_pseudo_labels.main([*call, "--set", "pseudo_label.pamr_steps=0", *settings])

    def make_fixed(self, threshold: float, *settings: str, flags: tuple[str, ...] = ()) -> None:
        """Do so with one threshold."""
        rule = ["pseudo_label.threshold_rule=fixed", f"pseudo_label.threshold={threshold}"]
        self.make(*rule, *settings, flags=flags)

    def cam_of(self, classes: tuple[int, ...], size: tuple[int, int] = size) -> Cam:
        maps = np.full((len(classes), *size), 0.125, np.float32)
        for i, k in enumerate(classes):
            maps[i, 2 * k : 2 * k + 2, :5] = 0.875
        scores = np.array([float(k in classes) for k in range(3)], np.float32)
        return Cam(maps, np.array(classes, np.int64), scores)

    def image_path(self, name: str) -> Path:
        split = "test" if name.endswith("t") else "training"
        return self.root / f"data/images/{split}/{name.removesuffix('t')}.png"

    def cam_path(self, name: str) -> Path:
        return self.folder / f"cams/fused/given/{name}.npz"

    def write_saliency(self, name: str, values: np.ndarray) -> None:
        write_saliency(self.folder / f"saliency/{name}.png", values)

    def mask_path(self, name: str) -> Path:
        return self.folder / f"pseudo_labels/{name}.png"

    def mask(self, name: str) -> np.ndarray:
        return read_mask(self.mask_path(name), 3)

    def names(self) -> set[str]:
        """Return the names of the masks that are there."""
        return {path.stem for path in (self.folder / "pseudo_labels").glob("*.png")}

    def meta_path(self) -> Path:
        return self.folder / "pseudo_labels/meta.json"

    def meta(self) -> dict:
        return json.loads(self.meta_path().read_text())

    def kept(self, maps: str = "refined") -> dict:
        """Return what thresholds.json keeps of a kind of map."""
        return json.loads((self.folder / "thresholds.json").read_text())["fused"][maps]


@pytest.fixture
def cam_run(tmp_path: Path) -> CamRun:
    return CamRun(tmp_path)


@pytest.fixture(scope="session")
def sections():
    """Return the sections of the config of `untrained_run`."""
    return SECTIONS


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Write three pictures of different sizes, in folders."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    files = ("a.png", "deep/b.JPG", "deep/down/c.bmp")
    for file, size in zip(files, ((40, 50), (64, 33), (50, 50)), strict=True):
        write_image(root / file, rng.integers(0, 255, (*size, 3), np.uint8))
    (root / "notes.txt").write_text("no picture")
    return root


@pytest.fixture(scope="session")
def untrained_run(tmp_path_factory):
    """Write untrained checkpoints of both stages."""
    out = tmp_path_factory.mktemp("run")
    config = from_dict(SECTIONS)
    content = {
        "config": to_dict(config),
        "class_names": list(CLASSES),
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "progress": {"epoch": 1, "step": 1},
    }
    torch.manual_seed(1)
    stac = build_stac(config.train, len(CLASSES))
    save_checkpoint(out / "stac/checkpoint.pt", content | {"model": stac.state_dict()})
    network = build_network("deeplabv3plus", "tu-mobilenetv3_small_050", "none", len(CLASSES) + 1)
    save_checkpoint(out / "segmentation/best.pt", content | {"model": network.state_dict()})
    return out
