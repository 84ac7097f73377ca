"""Strips and 12-megapixel parts pass through every stage but training in bounded memory."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from configs import load, to_dict
from configs.command_line import ROOT
from datasets.files import (
    Cam,
    read_cam,
    read_mask,
    read_saliency,
    write_cam,
    write_image,
    write_saliency,
)
from models.stac import build_stac
from runfolder.checkpoint import save_checkpoint
from segmentation.networks import build_network

SIZES = {"strip": (256, 1600), "part": (3000, 4000)}
MAX_MEMORY = 3 * 10**9  # bytes
CLASSES = ("inclusion", "patches", "scratches")
CONFIG = """
[data]
source = "neu_seg"
root = "{root}"
group = "none"
[train]
backbone = "deit_tiny_patch16_224"
pretrained = "none"
depth = 2
projection_width = 16
image_size = [64, 64]
attention_layers = 1
amp = "off"
[cam]
scales = [1.0, 1.5]
batch_size = 4
tile = 1000
[pseudo_label]
pamr_steps = 1
[segmentation]
encoder = "tu-mobilenetv3_small_050"
pretrained = "none"
image_size = [64, 64]
batch_size = 4
amp = "off"
tile = 1000
"""
# The peak of a process alone: ru_maxrss of a child starts at what its parent held.
MEASURED = """
import sys
from {module} import main
main(sys.argv[1:])
peak = [line for line in open("/proc/self/status") if line.startswith("VmHWM")][0]
print("peak", int(peak.split()[1]) * 1024)
"""


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """Write a strip, a part and untrained checkpoints of both stages."""
    out = tmp_path_factory.mktemp("large")
    rows, columns = np.indices((3000, 4000))
    surface = (90 + 40 * np.sin(rows / 40) + 20 * np.sin(columns / 90)).astype(np.uint8)
    for name, (height, width) in SIZES.items():
        write_image(out / f"data/images/test/{name}.jpg", surface[:height, :width])
    for i in range(2):  # without a training split there is no data set
        write_image(out / f"data/images/training/{i}.jpg", surface[:32, :32])
    labels = ["name,classes", "0,patches", "1,patches"]
    labels += ["stript,patches", "partt,inclusion|patches|scratches"]
    (out / "labels.csv").write_text("\n".join(labels) + "\n")
    (out / "large.toml").write_text(CONFIG.format(root=out / "data"))
    config = load(out / "large.toml")
    content = {
        "config": to_dict(config),
        "class_names": list(CLASSES),
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "progress": {"epoch": 1, "step": 1},
    }
    torch.manual_seed(0)
    stac = build_stac(config.train, len(CLASSES))
    save_checkpoint(out / "stac/checkpoint.pt", content | {"model": stac.state_dict()})
    network = build_network("deeplabv3plus", "tu-mobilenetv3_small_050", "none", len(CLASSES) + 1)
    save_checkpoint(out / "segmentation/checkpoint.pt", content | {"model": network.state_dict()})
    return out


def peak_of(module: str, run_dir: Path) -> int:
    """Run a stage in its own process and return the most memory it held, in bytes."""
    flags = ["--config", str(run_dir / "large.toml"), "--out", str(run_dir), "--split", "test"]
    code = MEASURED.format(module=module)
    done = subprocess.run(
        [sys.executable, "-c", code, *flags, "--device", "cpu"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1])


linux_only = pytest.mark.skipif(
    not Path("/proc/self/status").is_file(), reason="reads the peak memory from /proc"
)


@linux_only
def test_cams_of_large_images_fit_into_3_gb(run_dir):
    assert peak_of("make_cams", run_dir) < MAX_MEMORY
    for name, size in SIZES.items():
        cam = read_cam(run_dir / f"cams/fused/given/{name}t.npz")
        assert cam.cam.shape == ({"strip": 1, "part": 3}[name], *size)
        assert [(m.min(), m.max()) for m in cam.cam] == [(0, 1)] * len(cam.cam)


@linux_only
def test_predictions_of_large_images_fit_into_3_gb(run_dir):
    assert peak_of("segmentation.infer", run_dir) < MAX_MEMORY
    for name, size in SIZES.items():
        assert read_mask(run_dir / f"predictions/{name}t.png", len(CLASSES)).shape == size


@linux_only
def test_saliency_of_large_images_fits_into_3_gb(run_dir):
    assert peak_of("make_saliency", run_dir) < MAX_MEMORY
    for name, size in SIZES.items():
        assert read_saliency(run_dir / f"saliency/{name}t.png").shape == size


@linux_only
def test_pseudo_labels_of_large_images_fit_into_3_gb(run_dir):
    present = {"0": [1], "1": [1], "stript": [1], "partt": [0, 1, 2]}
    for name, classes in present.items():
        size = SIZES.get(name.removesuffix("t"), (32, 32))
        bands = np.arange(size[0]) * len(classes) // size[0]  # of rows, one for each class
        ramp = (bands == np.arange(len(classes))[:, None])[..., None] * np.linspace(0, 1, size[1])
        cam = Cam(ramp, np.array(classes), np.ones(len(CLASSES), np.float32))
        write_cam(run_dir / f"cams/fused/given/{name}.npz", cam)
        write_saliency(run_dir / f"saliency/{name}.png", ramp.max(axis=0))
    assert peak_of("make_pseudo_labels", run_dir) < MAX_MEMORY
    for name, size in SIZES.items():
        mask = read_mask(run_dir / f"pseudo_labels/{name}t.png", len(CLASSES))
        assert mask.shape == size
        assert (mask[:, 0] == 0).all() and (mask[:, -1] > 0).all()
