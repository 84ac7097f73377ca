"""A run to be scored by evaluation.py."""

import json
from pathlib import Path

import numpy as np
import pytest

import evaluation
from datasets.files import Cam, write_cam, write_image, write_mask, write_saliency


class ScoredRun:
    """A run on pictures of 4 x 5 pixels in the NEU-Seg layout: four of train, two of test.

    Train image 1: inclusion in 8 pixels; 2: patches in 12; 3 and 4: defect-free, so one of these is
    val, and fit is three images. Test image 1t: inclusion in 8 pixels; 2t: inclusion in 4 pixels,
    scratches in 4. No patches in test. CAMs, of fused with given labels, are 0.8 in the masks and
    0.2 elsewhere, saliency maps 200 and 50 of 255.
    """

    # Keys of a row of results.jsonl.
    keys = {"kind", "split", "part", "images", "labels", "threshold", "threshold_rule", "iou"}
    keys |= {"miou", "fg_iou", "fp", "fn", "config_sha", "commit", "dirty", "date", "absent"}
    saliency_keys = {"auroc", "ap", "max_f", "best_fg_iou", "best_fg_threshold", "mae", "recall"}
    saliency_keys |= {"false_alarm", "defect_free_images"}

    @staticmethod
    def columns(*values: int) -> np.ndarray:
        """Return a mask with these values, one for each column."""
        return np.repeat(np.array([values], np.uint8), 4, axis=0)

    def __init__(self, folder: Path) -> None:
        self.data, self.out = folder / "data", folder / "run"
        self.masks = {
            "1": self.columns(1, 1, 0, 0, 0),
            "2": self.columns(0, 2, 2, 2, 0),
            "3": self.columns(0, 0, 0, 0, 0),
            "4": self.columns(0, 0, 0, 0, 0),
            "1t": self.columns(1, 1, 0, 0, 0),
            "2t": self.columns(1, 0, 0, 0, 3),
        }
        for name, mask in self.masks.items():
            part = "test" if name.endswith("t") else "training"
            write_image(self.data / f"images/{part}/{name[0]}.jpg", np.zeros((4, 5, 3), np.uint8))
            write_mask(self.data / f"annotations/{part}/{name[0]}.png", mask)
            self.write_cam(name)
            write_saliency(self.out / f"saliency/{name}.png", np.where(mask, 200, 50) / 255)
        types = ['cam.types=["patchcam","fused"]', "pseudo_label.cam_type=fused"]
        self.sets = [f"data.root={self.data}", "data.source=neu_seg", *types]

    def maps(self, name: str, high: float = 0.8) -> dict[int, np.ndarray]:
        """Return the map of each class of an image."""
        mask = self.masks[name]
        return {k: np.where(mask == k + 1, high, 0.2) for k in range(3) if (mask == k + 1).any()}

    def write_cam(self, name: str, folder: str = "fused/given", high: float = 0.8) -> Path:
        maps = self.maps(name, high)
        cam = np.stack(list(maps.values())) if maps else np.zeros((0, 4, 5))
        path = self.out / f"cams/{folder}/{name}.npz"
        write_cam(path, Cam(cam, np.array(list(maps), np.int64), np.zeros(3)))
        return path

    def evaluate(self, *flags: str) -> None:
        evaluation.main([*flags, "--out", str(self.out), "--set", *self.sets])

    def rows(self) -> list[dict]:
        path = self.out / "results.jsonl"
        lines = path.read_text().splitlines() if path.is_file() else []
        return [json.loads(line) for line in lines]


@pytest.fixture
def scored(tmp_path: Path) -> ScoredRun:
    return ScoredRun(tmp_path)
