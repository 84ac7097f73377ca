"""What train_stac.py and segmentation/train.py have in common: their files and their logs."""

import io
import json
import math
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import segmentation.train
import train_stac
from configs import load
from datasets.examples import Examples
from datasets.files import read_image, write_mask, write_saliency
from datasets.pictures import CAPTION, CELL, GAP
from execution import pauses
from models.stac import build_stac
from runfolder.checkpoint import load_checkpoint
from runfolder.run import Run

SETTINGS = [
    "data.sample_train=8",
    "data.sample_test=2",
    "data.val_fraction=0.25",
    "train.depth=2",
    "train.image_size=[32,48]",
    "train.batch_size=4",
    "train.epochs=3",
    "train.eval_every=2",
    "train.amp=off",
    "loss.num_anchors=4",
    "loss.num_negatives=4",
    "segmentation.encoder=tu-test_efficientnet",
    "segmentation.image_size=[32,48]",
    "segmentation.batch_size=4",
    "segmentation.epochs=3",
    "segmentation.eval_every=2",
    "segmentation.amp=off",
]
STAGES = {"stac": train_stac, "segmentation": segmentation.train}
TERMS = {"stac": {"classification", "patch", "token", "saliency", "contrast", "pixel"}}
TERMS["segmentation"] = {"pixel", "dice"}
MEASURES = {"stac": TERMS["stac"] | {"total", "map"}, "segmentation": {"miou", "foreground"}}


def run_in(root: Path) -> Run:
    config = load("configs/sample.toml", [*SETTINGS, f"data.root={root}/data"])
    return Run(root / "run", config)


def train(root: Path, stage: str, *settings: str, resume: bool = False) -> list[dict]:
    call = ["--config", "configs/sample.toml", "--out", str(root / "run"), "--device", "cpu"]
    call += ["--resume"] * resume
    STAGES[stage].main([*call, "--set", *SETTINGS, f"data.root={root}/data", *settings])
    lines = (root / f"run/{stage}/log.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Write images with random saliency maps and pseudo labels, and train both networks."""
    root, rng = tmp_path_factory.mktemp("both"), np.random.default_rng(0)
    run = run_in(root)
    for record in run.data.split("train"):
        size = read_image(record.image).shape[:2]
        write_saliency(run.saliency_dir / f"{record.name}.png", rng.random(size))
        mask = rng.integers(0, 4, size, np.uint8)
        write_mask(run.pseudo_label_dir / f"{record.name}.png", mask)
    for stage in STAGES:
        train(root, stage)
    return root


@pytest.mark.parametrize("stage", STAGES)
def test_a_log_has_one_line_an_epoch_with_the_same_keys(root, stage):
    lines = (root / f"run/{stage}/log.jsonl").read_text().splitlines()
    log = [json.loads(line) for line in lines]
    assert [(line["epoch"], line["step"]) for line in log] == [(1, 2), (2, 4), (3, 6)]
    for line in log:
        keys = ["epoch", "step", "lr", "train", "seconds"]
        keys[4:4] = [] if line["epoch"] == 1 else ["val"]  # every second epoch, and the last
        assert list(line) == keys
        assert set(line["train"]) == TERMS[stage] | {"total"}
        assert set(line.get("val", MEASURES[stage])) == MEASURES[stage]
        assert line["seconds"] >= 0


@pytest.mark.parametrize("stage", STAGES)
def test_the_files_of_a_training_are_the_same(root, stage):
    names = {path.name for path in (root / "run" / stage).iterdir()}
    more = {"model.safetensors", "model.json"} if stage == "stac" else set()
    assert names == {"checkpoint.pt", "best.pt", "log.jsonl", "tensorboard", *more}
    last, best = (
        load_checkpoint(root / f"run/{stage}/{name}", "") for name in ("checkpoint.pt", "best.pt")
    )
    learnt = "label_thresholds" if stage == "stac" else "least_areas"
    facts = {"config", "class_names", "mean", "std", "masked", learnt}
    assert all(len(checkpoint[learnt]) == 3 for checkpoint in (last, best))
    assert set(best) == {"model", "progress", *facts}
    assert set(last) - set(best) - {"trained"} == {"optimizer", "scaler"}  # of a resume
    assert set(last["progress"]) == {"epoch", "step", "best"}
    assert (last["progress"]["epoch"], last["progress"]["step"]) == (3, 6)
    assert best["progress"]["epoch"] in (2, 3)  # those with a validation


@pytest.mark.parametrize("stage", STAGES)
def test_curves_have_the_numbers_of_the_log(root, stage):
    lines = (root / f"run/{stage}/log.jsonl").read_text().splitlines()
    log = [json.loads(line) for line in lines]
    events = EventAccumulator(str(root / f"run/{stage}/tensorboard")).Reload()
    tags = {f"{name}/train" for name in log[0]["train"]} | {f"{name}/val" for name in log[1]["val"]}
    assert set(events.Tags()["scalars"]) == tags | {"lr"}
    for tag, values in (
        ("lr", {line["epoch"]: line["lr"] for line in log}),
        ("total/train", {line["epoch"]: line["train"]["total"] for line in log}),
    ):
        curve = {event.step: event.value for event in events.Scalars(tag)}
        assert curve == pytest.approx(values, rel=1e-5)


def pictures(out: Path, stage: str) -> dict[int, np.ndarray]:
    """Return what TensorBoard shows of the held-out images, by epoch."""
    events = EventAccumulator(str(out / stage / "tensorboard")).Reload()
    shown = events.Images("held-out images")
    assert len({event.step for event in shown}) == len(shown)
    return {
        event.step: np.array(Image.open(io.BytesIO(event.encoded_image_string))) for event in shown
    }


@pytest.mark.parametrize("stage", STAGES)
def test_pictures_show_the_held_out_images_and_what_the_model_makes_of_them(root, stage):
    shown = pictures(root / "run", stage)
    side, count = CELL + GAP, len(run_in(root).data.split("val"))
    assert list(shown) == [1, 2, 3]
    for picture in shown.values():
        assert picture.shape == (CAPTION + 3 * side, (1 + count) * side, 3)
    first, last = (shown[epoch][CAPTION:].reshape(3, side, -1, 3) for epoch in (1, 3))
    changed = (first[:, :, side:] != last[:, :, side:]).any(axis=(1, 2, 3))
    assert changed.tolist()[:2] == [False, False]  # images and maps
    assert changed[2] or stage == "segmentation"  # whose averaged weights hardly move here
    assert (last[:, :, side:].std(axis=(1, 2, 3)) > 1).all()


def test_a_picture_of_the_first_stage_has_saliency_and_the_cams_of_the_label(root):
    run, (mean, std) = run_in(root), ((0.5,) * 3, (0.25,) * 3)
    model = build_stac(run.config.train, run.num_classes)
    dataset = train_stac._datasets(run, model, mean, std)[1]
    defective, other = dataset.records
    dataset.records = [defective, replace(other, classes=())]
    examples = Examples(dataset, run.data.class_names, (mean, std))

    picture = train_stac.draw_examples(model, examples, run.config, torch.device("cpu"), None)
    side, height = CELL + GAP, round(CELL * 32 / 48)
    for number, place in enumerate(examples.places, start=1):
        cells = picture[CAPTION:, number * side :][:, :CELL].reshape(3, side, CELL, 3)[:, :height]
        assert abs(cells[1].mean() - 255 * dataset[place]["map"].mean()) < 1
        is_coloured = np.ptp(cells[2], axis=-1).max() > 10
        assert is_coloured == bool(dataset.records[place].classes)


def test_a_picture_of_the_second_stage_has_pseudo_labels_and_predictions(root):
    run, (mean, std) = run_in(root), ((0.5,) * 3, (0.25,) * 3)
    dataset = segmentation.train._datasets(run, mean, std)[1]
    examples = Examples(dataset, run.data.class_names, (mean, std))

    class SaysTwo(torch.nn.Module):
        def forward(self, images):
            assert not self.training
            return torch.eye(4)[2][None, :, None, None].expand(len(images), 4, *images.shape[2:])

    picture = segmentation.train.draw_examples(SaysTwo(), examples, torch.device("cpu"), None)
    side, height = CELL + GAP, round(CELL * 32 / 48)
    for number, place in enumerate(examples.places, start=1):
        cells = picture[CAPTION:, number * side :][:, :CELL].reshape(3, side, CELL, 3)[:, :height]
        shown = dataset[place]["image"].movedim(0, -1).numpy() * std + mean  # (32, 48, 3)
        assert abs(cells[0].mean() - 255 * shown.mean()) < 1
        green = 0.4 * cells[0] + 0.6 * np.array([0, 128, 0])
        assert np.abs(cells[2] - green).max() <= 2
        assert np.abs(cells[1] - green).max() > 20  # the pseudo labels say other things


@pytest.mark.parametrize("stage", STAGES)
def test_a_training_without_held_out_images_has_no_picture(root, tmp_path, stage, monkeypatch):
    copy = shutil.copytree(root, tmp_path / "copy")
    shutil.rmtree(copy / f"run/{stage}")
    choose = Examples.__init__

    def choose_none(examples, *args):
        choose(examples, *args)
        examples.places = []

    monkeypatch.setattr(Examples, "__init__", choose_none)
    train(copy, stage)
    events = EventAccumulator(str(copy / f"run/{stage}/tensorboard")).Reload()
    assert events.Tags()["images"] == []


def test_a_measure_that_is_no_number_is_null_in_the_log(root, tmp_path, monkeypatch):
    monkeypatch.setattr(train_stac, "mean_average_precision", lambda *_: math.nan)
    copy = shutil.copytree(root, tmp_path / "copy")
    (line,) = train(copy, "stac", "train.epochs=1")  # without --resume, the log begins anew
    assert line["val"]["map"] is None
    assert line["val"]["total"] > 0


@pytest.mark.parametrize(
    ("stage", "section"), [("stac", "train"), ("segmentation", "segmentation")]
)
def test_a_learning_rate_that_breaks_the_weights_ends_with_a_line(root, tmp_path, stage, section):
    shutil.copytree(root, tmp_path / "copy")
    shutil.rmtree(tmp_path / f"copy/run/{stage}")
    broken = [f"{section}.lr=1e30", f"{section}.epochs=1", f"{section}.max_steps=1"]
    with pytest.raises(
        RuntimeError, match=r"(validation|loss): expected finite .* Lower the learn"
    ):
        train(tmp_path / "copy", stage, *broken, f"{section}.warmup_epochs=0.0")


def resumed_equals(root: Path, copy: Path, stage: str) -> None:
    """Continue a training of a copy and compare it with the one that was never stopped."""
    log = train(copy, stage, resume=True)
    straight = [json.loads(x) for x in (root / f"run/{stage}/log.jsonl").read_text().splitlines()]
    assert [{**line, "seconds": 0} for line in log] == [{**line, "seconds": 0} for line in straight]
    paths = [at / f"run/{stage}/checkpoint.pt" for at in (root, copy)]
    wanted, found = (load_checkpoint(path, "") for path in paths)
    assert found["progress"] == wanted["progress"]
    assert "begun" not in found
    for name, value in wanted["model"].items():
        assert torch.equal(found["model"][name], value), name
    wanted, found = (pictures(at / "run", stage) for at in (root, copy))
    assert {epoch: p.tolist() for epoch, p in found.items()} == {
        epoch: p.tolist() for epoch, p in wanted.items()
    }


@pytest.fixture
def untrained(root, tmp_path) -> Path:
    copy = shutil.copytree(root, tmp_path / "copy")
    for stage in STAGES:
        shutil.rmtree(copy / f"run/{stage}")
    return copy


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("stopped_at", [1, 2])
def test_a_training_killed_within_an_epoch_goes_on_with_the_next_step(
    root, untrained, monkeypatch, stage, stopped_at
):
    save, begun = STAGES[stage].save_checkpoint, []

    def kill(path, content):
        save(path, content)
        begun.extend([len(content["begun"])] if "begun" in content else [])
        if len(begun) == stopped_at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pauses, "SAVE_EVERY", 0.0)
        patch.setattr(STAGES[stage], "save_checkpoint", kill)
        with pytest.raises(KeyboardInterrupt):
            train(untrained, stage)
    assert begun == [1] * stopped_at  # an epoch has two steps
    resumed_equals(root, untrained, stage)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("step", [3, 4])
def test_a_training_that_is_told_to_end_saves_after_the_step(
    root, untrained, monkeypatch, capsys, stage, step
):
    set_lr, steps = STAGES[stage].set_lr, []

    def told(*args):
        set_lr(*args)
        steps.append(1)
        if len(steps) == step:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(STAGES[stage], "set_lr", told)
        with pytest.raises(SystemExit) as ended:
            train(untrained, stage)
    assert ended.value.code == 143
    assert "ended by SIGTERM; the same command with --resume continues" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGTERM) == before
    assert len(steps) == step
    path = untrained / f"run/{stage}/checkpoint.pt"
    assert load_checkpoint(path, "")["progress"]["step"] == step
    resumed_equals(root, untrained, stage)
