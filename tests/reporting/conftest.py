"""A run whose files and figures are known, made without any network."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import evaluation
import report
from datasets.files import Cam, write_cam, write_csv, write_image, write_mask, write_saliency

CLASSES = ("<script>alert(1)</script>", "a|b", "dent")
SIZE = (20, 30)
# Label, true pixels and predicted pixels of each class, by image. The images are 20 x 30 pixels;
# classes fill rows from the top, 30 pixels each: class 0 rows 0 to 4, class 1 5 to 9, 2 10 to 14.
TEST = {
    "script_hit": ((0,), {0: 90}, {0: 90}),
    "script_half": ((0,), {0: 90}, {0: 45}),
    "pipe_as_dent": ((1,), {1: 60}, {2: 60}),
    "pipe_missed": ((1,), {1: 120}, {}),
    "both": ((0, 2), {0: 30, 2: 60}, {0: 30, 2: 90}),
    "dent_hit": ((2,), {2: 150}, {2: 150}),
    "good_right": ((), {}, {}),
    "good_alarm": ((), {}, {1: 30}),
}
SURE = 0.95  # score of a class that the prediction shows; others have 1 - SURE
LEAST_SURE = "dent_hit"  # whose class 0 has a score of 0.45
CONFIG = """
[data]
source = "csv"
root = "{root}"
table = "table.csv"
mask_level = 0
eval_split = "test"
[cam]
types = ["fused"]
[pseudo_label]
threshold_rule = "fixed"
threshold = 0.4
"""


def mask_of(pixels: dict[int, int]) -> np.ndarray:
    """Return the mask in which each class fills so many pixels of its rows."""
    mask = np.zeros(SIZE, np.uint8)
    for k, count in pixels.items():
        rows = mask[5 * k : 5 * k + 5].reshape(-1)
        rows[:count] = k + 1
    return mask


def write_run(out: Path, root: Path, masks: bool = True, better: bool = False) -> Path:
    """Write images and everything that stages would have made of them.

    Args:
        out: the run folder.
        root: of the images.
        masks: whether there is ground truth.
        better: whether the predictions are the truth.
    """
    rows = []
    extra = {f"train_{k}": ((k,), {k: 60}, {}) for k in range(3)}
    extra |= {f"val_{k}": ((k,), {k: 60}, {}) for k in range(3)}
    for name, (label, true, _) in {**TEST, **extra}.items():
        split = name.split("_")[0] if name in extra else "test"
        image = np.random.default_rng(len(rows)).integers(90, 120, (*SIZE, 3)).astype(np.uint8)
        write_image(root / f"{name}.png", image)
        write_mask(root / f"masks/{name}.png", mask_of(true))
        flags = [int(k in label) for k in range(3)]
        rows.append([f"{name}.png", split, *flags, *([f"masks/{name}.png"] if masks else [])])
    head = ["image", "split", *CLASSES, *(["mask"] if masks else [])]
    write_csv(root / "table.csv", [head, *rows])
    scores = []
    for name, (label, true, said) in TEST.items():
        prediction = mask_of(true if better else said)
        write_mask(out / f"predictions/{name}.png", prediction)
        write_mask(out / f"pseudo_labels/{name}.png", mask_of(true))
        write_saliency(out / f"saliency/{name}.png", 0.8 * (mask_of(true) > 0))
        cams = np.stack([0.9 * (mask_of(true) == k + 1) for k in label] or [np.zeros(SIZE)])
        of_image = [SURE if (prediction == k + 1).any() else 1 - SURE for k in range(3)]
        of_image[0] = 0.45 if name == LEAST_SURE else of_image[0]
        cam = Cam(cams[: len(label)], np.array(label, np.int64), np.array(of_image, np.float32))
        write_cam(out / f"cams/fused/given/{name}.npz", cam)
        scores.append([name, *(f"{score:.4f}" for score in of_image)])
    write_csv(out / "predictions/scores.csv", [["name", *CLASSES], *scores])
    for folder, term in (("stac", "classification"), ("segmentation", "pixel")):
        lines = [
            {"epoch": e, "step": e, "lr": 0.1 / e, "train": {"total": 2 / e, term: 1 / e}}
            | {"seconds": 90.0, "val": {"miou": 30.0 + e}}
            for e in (1, 2)
        ]
        (out / folder).mkdir(exist_ok=True)
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (out / folder / "log.jsonl").write_text(text)
    (out / "config.toml").write_text(CONFIG.format(root=root))
    return out


def score(run: Path) -> None:
    """Let evaluation.py score the predictions, and the CAMs where there are masks."""
    evaluation.main(["--out", str(run), "--kind", "segmentation"])
    if "mask" in (run.parent / "parts/table.csv").read_text().splitlines()[0]:
        evaluation.main(["--out", str(run), "--kind", "pseudo_label", "--split", "test"])
        rules = ["--threshold-rule", "fixed", "oracle"]
        evaluation.main(["--out", str(run), "--kind", "cam", *rules])


@pytest.fixture(scope="session")
def make_run(tmp_path_factory) -> Callable[..., Path]:
    """Return what writes, scores and reports a run: make_run(masks=True, better=False)."""

    def make(masks: bool = True, better: bool = False) -> Path:
        folder = tmp_path_factory.mktemp("report")
        run = write_run(folder / "run", folder / "parts", masks, better)
        score(run)
        report.main(["--out", str(run)])
        return run

    return make


@pytest.fixture(scope="session")
def reported(make_run) -> Path:
    """Return a run with masks and its report; tests leave it as it is."""
    return make_run()


@pytest.fixture(scope="session")
def without_masks(make_run) -> Path:
    """Return a run without masks and its report; tests leave it as it is."""
    return make_run(masks=False)
