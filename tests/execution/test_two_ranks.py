"""Two processes on two cores do what one does: same losses, weights, maps and tables."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from configs import load
from configs.command_line import ROOT
from datasets.files import read_image, read_saliency, write_saliency
from datasets.sources import read_data
from runfolder.checkpoint import load_checkpoint

SETTINGS = (
    "data.sample_train=12",
    "data.sample_test=5",
    "data.val_fraction=0.2",
    "data.workers=0",
    "train.backbone=deit_tiny_patch16_224",
    "train.pretrained=none",
    "train.image_size=[48,64]",
    "train.pixel_block=3",
    "train.batch_size=4",
    "train.epochs=2",
    "train.eval_every=1",
    "train.drop_path=0",
    "train.amp=off",
    "loss.num_anchors=8",
    "loss.num_negatives=8",
    'cam.types=["pixel","fused"]',
    'cam.labels=["given","predicted"]',
    "cam.batch_size=2",
    "saliency.generator=contrast",
    "saliency.backbone=deit_tiny_patch16_224",
    "saliency.weights=none",
    "refinement.steps=3",
    "refinement.image_size=[64,64]",
    "pseudo_label.cam_type=pixel",
    "pseudo_label.pamr_steps=1",
    "segmentation.encoder=resnet18",
    "segmentation.pretrained=none",
    "segmentation.image_size=[64,64]",
    "segmentation.batch_size=5",
    "segmentation.epochs=1",
    "segmentation.amp=off",
    "segmentation.copy_paste=0",
)
TRAININGS = ("train_stac", "segmentation.train")


def command(ranks: int, *words: str) -> list[str]:
    """Return the command line of stages on some ranks, each with one thread."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    return [
        sys.executable,
        *launcher * (ranks > 1),
        str(ROOT / "tests/execution/stages.py"),
        *words,
    ]


def call(ranks: int, *words: str, **environment: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} | environment
    return subprocess.run(
        command(ranks, *words), cwd=ROOT, capture_output=True, text=True, env=environment
    )


def run(ranks: int, *words: str) -> None:
    done = call(ranks, *words)
    assert done.returncode == 0, done.stderr[-3000:]


def flags(root: Path, out: Path) -> list[str]:
    settings = ["--set", *SETTINGS, f"data.root={root}/data"]
    return ["--config", "configs/sample.toml", "--out", str(out), *settings]


def in_turn(*stages: list[str]) -> list[str]:
    """Return the words of stages, parted by --."""
    return [word for stage in stages for word in (*stage, "--")][:-1]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Write images and random saliency maps, without masks of training images."""
    root = tmp_path_factory.mktemp("ranks")
    config = load("configs/sample.toml", [*SETTINGS, f"data.root={root}/data"])
    data = read_data(config.data, root / "labels.csv")
    rng = np.random.default_rng(0)
    for record in (*data.split("train"), *data.split("test")):
        maps = rng.random(read_image(record.image).shape[:2])
        write_saliency(root / f"maps/{record.name}.png", maps)
    return root


def run_folder(root: Path, name: str, *linked: Path) -> list[str]:
    """Make a run folder with links to what others made; return the flags of its stages."""
    out = root / name
    out.mkdir()
    (out / "saliency").symlink_to(root / "maps")
    for path in linked:
        (out / path.name).symlink_to(path)
    return flags(root, out)


@pytest.fixture(scope="module")
def runs(root) -> Path:
    """Run the stages with one process, and with two, which begin each from what one has made.

    In two/, maps/ and masks/ is what two processes trained, what they made of one's localiser, and
    what they made of one's segmentation network.
    """
    one, done = run_folder(root, "one"), root / "one"
    stages = ("train_stac", "make_cams", "make_pseudo_labels", "segmentation.train")
    later = [
        ["segmentation.infer"],
        ["evaluation", "--kind", "segmentation", "--detailed"],
        ["evaluation", "--kind", "cam", "--threshold-rule", "class", "agreement"],
    ]
    new = ["--run", str(done), "--format", "coco", "--device", "cpu", "--to"]
    predict = ["predict", str(root / "data/JPEGImages"), *new]
    run(
        1,
        *in_turn(*([stage, *one] for stage in stages), *([*stage, *one] for stage in later)),
        *("--", *predict, str(root / "new_one")),
        *("--", "make_saliency", "--refine", "1", *flags(root, root / "refined_one")),
    )
    maps = run_folder(root, "maps_two", done / "stac")
    linked = (done / part for part in ("stac", "cams", "pseudo_labels", "segmentation"))
    masks = run_folder(root, "masks_two", *linked)
    run(
        2,
        *in_turn(
            ["train_stac", *run_folder(root, "two")],
            *([stage, *maps] for stage in stages[1:]),
            *([*stage, *masks] for stage in later),
        ),
        *("--", *predict, str(root / "new_two")),
        *("--", "make_saliency", "--refine", "1", *flags(root, root / "refined_two")),
    )
    return root


def losses(path: Path) -> list[float]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [value for line in lines for part in ("train", "val") for value in line[part].values()]


def require_the_same_training(one: Path, two: Path, num_values: int) -> None:
    assert len(losses(one / "log.jsonl")) == num_values
    assert losses(two / "log.jsonl") == pytest.approx(losses(one / "log.jsonl"), abs=1e-5)
    first, second = (load_checkpoint(folder / "checkpoint.pt", "") for folder in (one, two))
    for name, value in first["model"].items():
        torch.testing.assert_close(second["model"][name], value, rtol=1e-5, atol=1e-5, msg=name)


def require_the_same_bytes(one: Path, two: Path, pattern: str, least: int) -> None:
    names = sorted(str(path.relative_to(one)) for path in one.glob(pattern))
    assert len(names) >= least
    assert names == sorted(str(path.relative_to(two)) for path in two.glob(pattern))
    assert [n for n in names if (one / n).read_bytes() != (two / n).read_bytes()] == []


def test_two_ranks_train_the_same_localiser(runs):
    require_the_same_training(runs / "one/stac", runs / "two/stac", 2 * (7 + 8))


def test_two_ranks_train_the_same_segmentation_network(runs):
    one, two = (runs / f"{name}/segmentation" for name in ("one", "maps_two"))
    require_the_same_training(one, two, 3 + 2)


def test_two_ranks_write_the_same_cams_and_pseudo_labels(runs):
    one, two = runs / "one", runs / "maps_two"
    require_the_same_bytes(one, two, "cams/*/*/*.npz", 4 * 17)
    require_the_same_bytes(one, two, "pseudo_labels/*.png", 12)
    require_the_same_bytes(one, two, "pseudo_labels/meta.json", 1)


def test_two_ranks_write_the_same_predictions_and_results(runs):
    one, two = runs / "one", runs / "masks_two"
    require_the_same_bytes(one, two, "predictions/*", 5 + 2)
    rows = [
        [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
        for out in (one, two)
    ]
    for row in (*rows[0], *rows[1]):
        del row["date"], row["commit"], row["dirty"]
    assert len(rows[0]) == 3
    assert rows[0] == rows[1]


def test_two_ranks_write_the_same_files_of_new_images(runs):
    one, two = runs / "new_one", runs / "new_two"
    require_the_same_bytes(one, two, "*/*", 3 * 17)
    require_the_same_bytes(one, two, "*.*", 2)


def test_two_ranks_refine_saliency_maps_alike(runs):
    paths = sorted((runs / "refined_one/saliency").glob("*.png"))
    assert len(paths) == 17
    for path in paths:
        other = read_saliency(runs / "refined_two/saliency" / path.name)
        np.testing.assert_allclose(other, read_saliency(path), atol=2 / 255, err_msg=path.name)


def test_a_killed_rank_ends_the_call_with_a_line_and_any_number_of_ranks_resumes(runs):
    words = ["train_stac", "--resume", *run_folder(runs, "killed")]
    checkpoint = runs / "killed/stac/checkpoint.pt"
    killed = call(2, *words, KILL_RANK_1_AFTER=str(checkpoint))

    assert killed.returncode
    said = [line for line in killed.stderr.splitlines() if line.startswith("error: ")]
    assert said == [
        "error: rank 0 of 2: another process of this call has ended; its own message, if any, says "
        "why. The same command continues, a training with --resume."
    ]
    assert load_checkpoint(checkpoint, "")["progress"]["epoch"] == 1
    run(1, *words)
    require_the_same_training(runs / "one/stac", runs / "killed/stac", 2 * (7 + 8))
