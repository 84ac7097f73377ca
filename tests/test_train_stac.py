"""Training end to end on a handful of generated images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import datasets.files
import train_stac
from configs import load
from datasets.files import read_image, write_saliency
from datasets.sources import read_data
from models.checkpoint import load_checkpoint

TINY = [
    "data.sample_train=8",
    "data.sample_test=2",
    "data.val_fraction=0.25",
    "train.backbone=deit_tiny_patch16_224",
    "train.pretrained=none",
    "train.image_size=[48,64]",
    "train.projection_width=16",
    "train.batch_size=4",
    "train.epochs=2",
    "train.warmup_epochs=0.5",
    "train.lr=0.02",
    "train.eval_every=1",
    "train.amp=off",
    "loss.num_anchors=8",
    "loss.num_negatives=8",
]


@pytest.fixture(scope="module")
def sample_dir(tmp_path_factory) -> Path:
    """Write ten sample images with their masks taken away, and random saliency maps."""
    root = tmp_path_factory.mktemp("sample")
    config = load("configs/sample.toml", [*TINY, f"data.root={root}/data"])
    data = read_data(config.data, root / "labels.csv")
    rng = np.random.default_rng(0)
    for record in (*data.split("train"), *data.split("test")):
        size = read_image(record.image).shape[:2]
        write_saliency(root / f"run/saliency/{record.name}.png", rng.random(size))
        record.mask.unlink()  # training must do without
    return root


def train(root: Path, out: Path, *arguments: str) -> list[dict]:
    """Train with the given overrides and return the lines of the log."""
    if not (out / "saliency").exists():
        out.mkdir(parents=True)
        (out / "saliency").symlink_to(root / "run/saliency")
    overrides = [*TINY, f"data.root={root}/data"]
    flags = ["--config", "configs/sample.toml", "--out", str(out), "--device", "cpu"]
    train_stac.main([*flags, *arguments[:1], "--set", *overrides, *arguments[1:]])
    return [json.loads(line) for line in (out / "stac/log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def straight_run(sample_dir) -> Path:
    out = sample_dir / "straight"
    train(sample_dir, out)
    return out


def test_training_never_opens_a_mask(sample_dir, monkeypatch):
    """The masks of the fixture are deleted; the readers of masks would be an error besides."""

    def refuse(*_):
        raise AssertionError("a mask was opened")

    monkeypatch.setattr(datasets.files, "read_mask", refuse)
    monkeypatch.setattr(datasets.files, "read_truth", refuse)
    log = train(sample_dir, sample_dir / "maskless", "--resume", "train.max_steps=1")
    assert log[0]["step"] == 1


def test_log_and_checkpoints_hold_what_later_stages_need(straight_run):
    log = [json.loads(line) for line in (straight_run / "stac/log.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["step"]) for line in log] == [(1, 2), (2, 4)]
    terms = {"total", "classification", "patch", "token", "saliency", "contrast"}
    assert terms == set(log[0]["train"])
    assert terms | {"map"} == set(log[0]["val"])
    # Rate of the last step of a cosine that ends there.
    assert log[-1]["lr"] == pytest.approx(1e-6)
    checkpoint = load_checkpoint(straight_run / "stac/checkpoint.pt", "train_stac.py")
    assert checkpoint["progress"]["epoch"] == 2
    assert checkpoint["class_names"] == ["inclusion", "patches", "scratches"]
    assert checkpoint["config"]["train"]["epochs"] == 2
    best = load_checkpoint(straight_run / "stac/best.pt", "train_stac.py")
    totals = [line["val"]["total"] for line in log]
    assert best["progress"]["epoch"] == 1 + totals.index(min(totals))
    assert load(straight_run / "config.toml").train.epochs == 2


def test_resume_equals_an_unbroken_run(sample_dir, straight_run, monkeypatch):
    out = sample_dir / "resumed"
    save = train_stac.save_checkpoint

    def stop_after_first_epoch(path, content):
        save(path, content)
        if path.name == "checkpoint.pt":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train_stac, "save_checkpoint", stop_after_first_epoch)
        with pytest.raises(KeyboardInterrupt):
            train(sample_dir, out)
    train(sample_dir, out, "--resume")
    whole = load_checkpoint(straight_run / "stac/checkpoint.pt", "")["model"]
    resumed = load_checkpoint(out / "stac/checkpoint.pt", "")["model"]
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_resume_refuses_other_settings(sample_dir, straight_run):
    with pytest.raises(ValueError, match="--resume: expected stac/checkpoint.pt of the same"):
        train(sample_dir, straight_run, "--resume", "train.weight_decay=0.1")


def test_non_finite_loss_stops_with_its_place(sample_dir, monkeypatch):
    def broken(**_):
        return torch.tensor(float("nan")), {"saliency": torch.tensor(float("nan"))}

    monkeypatch.setattr(train_stac, "stac_loss", broken)
    with pytest.raises(RuntimeError, match="epoch 1, step 1 .saliency nan"):
        train(sample_dir, sample_dir / "broken")


def test_missing_saliency_is_counted(sample_dir):
    (sample_dir / "bare/saliency").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="6 are missing.*Run make_saliency.py first"):
        train(sample_dir, sample_dir / "bare")


def test_mean_average_precision_by_hand():
    # Class 0: ranking 1, 0, 1 -> (1/1 + 2/3) / 2 = 5/6; class 1 is in no image: left out.
    labels = np.array([[1, 0], [0, 0], [1, 0]])
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
    assert train_stac.mean_average_precision(labels, scores) == pytest.approx(500 / 6)
    assert np.isnan(train_stac.mean_average_precision(labels * 0, scores))
