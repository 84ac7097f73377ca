"""Training end to end on a handful of generated images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import datasets.files
import datasets.image_maps
import train_stac
from configs import load
from datasets.files import read_image, write_saliency
from datasets.sources import read_data
from models.stac import stac_from_checkpoint
from runfolder.checkpoint import load_checkpoint

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
    """The masks of the fixture are deleted, and to read one would be an error of its own."""

    def refuse(*_):
        raise AssertionError("a mask was opened")

    for module in (datasets.files, datasets.image_maps):
        monkeypatch.setattr(module, "read_mask", refuse)
    monkeypatch.setattr(datasets.files, "read_truth", refuse)
    log = train(sample_dir, sample_dir / "maskless", "--resume", "train.max_steps=1")
    assert log[0]["step"] == 1


def test_log_and_checkpoints_hold_what_later_stages_need(straight_run):
    log = [json.loads(line) for line in (straight_run / "stac/log.jsonl").read_text().splitlines()]
    assert [(line["epoch"], line["step"]) for line in log] == [(1, 2), (2, 4)]
    terms = {"total", "classification", "patch", "token", "saliency", "contrast", "pixel"}
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


def test_resume_equals_an_unbroken_run(sample_dir, straight_run, tmp_path, monkeypatch):
    save = train_stac.save_checkpoint

    def stop_after_first_epoch(path, content):
        save(path, content)
        if path.name == "checkpoint.pt":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train_stac, "save_checkpoint", stop_after_first_epoch)
        with pytest.raises(KeyboardInterrupt):
            train(sample_dir, tmp_path / "halves", "--resume")
    log = train(sample_dir, tmp_path / "halves", "--resume")
    assert [line["epoch"] for line in log] == [1, 2]  # the line was there before the checkpoint
    resumed = load_checkpoint(tmp_path / "halves/stac/checkpoint.pt", "")
    whole = load_checkpoint(straight_run / "stac/checkpoint.pt", "")
    for name, value in whole["model"].items():
        assert torch.equal(value, resumed["model"][name]), name


def test_a_resume_hides_no_epoch_and_misses_no_best_one(sample_dir, tmp_path, monkeypatch):
    save, written = train_stac.save_checkpoint, []

    def stop_in_second_epoch(path, content):
        if "checkpoint.pt" in written:
            raise KeyboardInterrupt
        save(path, content)
        written.append(path.name)

    with monkeypatch.context() as patch:
        patch.setattr(train_stac, "save_checkpoint", stop_in_second_epoch)
        with pytest.raises(KeyboardInterrupt):
            train(sample_dir, tmp_path / "run", "--resume")
    assert written == ["best.pt", "checkpoint.pt"]
    train(sample_dir, tmp_path / "run", "--resume")
    events = EventAccumulator(str(tmp_path / "run/stac/tensorboard")).Reload()
    assert [event.step for event in events.Scalars("lr")] == [1, 2]


def test_warmup_leaves_half_of_the_steps_to_the_decay(sample_dir, tmp_path):
    log = train(sample_dir, tmp_path / "run", "--resume", "train.warmup_epochs=50")
    assert log[0]["lr"] > 0.5 * 0.02 * 4 / 512 and log[-1]["lr"] == pytest.approx(1e-6)


def test_resume_refuses_other_settings(sample_dir, straight_run):
    with pytest.raises(ValueError, match="--resume: expected stac/checkpoint.pt of the same"):
        train(sample_dir, straight_run, "--resume", "train.drop_path=0.1")


def test_non_finite_loss_stops_with_its_place(sample_dir, monkeypatch):
    def broken(*_):
        return torch.tensor(float("nan")), {"saliency": torch.tensor(float("nan"))}

    monkeypatch.setattr(train_stac, "stac_loss", broken)
    with pytest.raises(RuntimeError, match="got total nan, saliency nan in epoch 1, step 1"):
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


def test_weights_to_hand_on_rebuild_the_model(straight_run):
    shared = load_checkpoint(straight_run / "stac/model.safetensors", "train_stac.py")
    own = load_checkpoint(straight_run / "stac/checkpoint.pt", "train_stac.py")
    left, right = stac_from_checkpoint(shared), stac_from_checkpoint(own)
    for name, value in left.state_dict().items():
        assert torch.equal(value, right.state_dict()[name]), name
    for fact in ("config", "class_names", "mean", "std", "progress"):
        assert shared[fact] == own[fact]


SWITCHES = ["train.frozen_blocks=2", "train.balance=0.9", "loss.saliency_threshold=0.5"]
SWITCHES += ["train.scale_pooling=false", "train.head_padding=replicate", "train.head_lr_scale=5.0"]
SWITCHES += ["train.augment_defects=0.5"]
WITHOUT_HEAD = ["train.pixel_block=0", 'cam.types=["fused"]', "pseudo_label.cam_type=fused"]


@pytest.mark.parametrize("switches", [SWITCHES, WITHOUT_HEAD], ids=["all", "without a head"])
def test_every_switch_trains(sample_dir, tmp_path, switches):
    log = train(sample_dir, tmp_path / "run", "--resume", "train.epochs=1", *switches)
    assert np.isfinite(log[-1]["val"]["total"])
    assert ("pixel" in log[-1]["train"]) == (switches is SWITCHES)


def test_defects_are_augmented_in_training_alone(sample_dir, tmp_path, monkeypatch):
    asked = []

    def augment(images, saliency, labels, probability, norm):
        asked.append((len(images), probability))
        return images, saliency, torch.ones_like(labels)

    monkeypatch.setattr(train_stac, "augment_defects", augment)
    switches = ["train.epochs=1", "train.augment_defects=0.25"]
    log = train(sample_dir, tmp_path / "run", "--resume", *switches)

    assert asked == [(4, 0.25), (2, 0.25)]  # the six images of `fit`, not the two of `val`
    without = train(sample_dir, tmp_path / "other", "--resume", "train.epochs=1")
    assert log[0]["train"]["classification"] != without[0]["train"]["classification"]


def test_training_on_crops_trains_and_validates_on_them(sample_dir, monkeypatch):
    shapes = []

    def seen(saliency, *arguments):
        crop, keeps_label = draw_crop(saliency, *arguments)
        shapes.append(saliency[crop].shape)
        return crop, keeps_label

    draw_crop = datasets.image_maps.draw_crop
    monkeypatch.setattr(datasets.image_maps, "draw_crop", seen)
    log = train(sample_dir, sample_dir / "crops", "--resume", "train.crop=64", "train.epochs=2")
    assert len(shapes) == 2 * (6 + 2) + 2  # to fit, to validate, and once for all pictures
    assert set(shapes) == {(64, 64)}  # random maps: half of every crop is salient
    assert np.isfinite(log[-1]["val"]["total"])
