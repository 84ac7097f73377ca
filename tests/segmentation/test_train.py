"""Training of the second stage: its log, its checkpoints, its resume, its errors."""

import numpy as np
import pytest
import torch

import datasets.image_maps
from datasets.crops import place_crop
from datasets.files import read_mask, write_mask
from datasets.sources import read_data
from datasets.transforms import eval_transform
from segmentation import infer, train


def test_log_checkpoint_and_best_hold_what_they_should(run):
    train.main(run.arguments())

    log = run.log()  # 5 images in batches of 2, the last one is left out: 2 steps an epoch
    assert [(line["epoch"], line["step"]) for line in log] == [(1, 2), (2, 4)]
    assert set(log[0]) == {"epoch", "step", "lr", "train", "val", "seconds"}
    assert set(log[0]["train"]) == {"total", "pixel", "dice"} and set(log[0]["val"]) == {
        "miou",
        "foreground",
    }
    mious = [line["val"]["miou"] for line in log]
    assert all(0 <= miou <= 100 for miou in mious)
    assert log[1]["lr"] == pytest.approx(1e-5)  # 1 % of segmentation.lr at the last step
    last, best = run.checkpoint(), run.checkpoint("best.pt")
    assert last["class_names"] == ["inclusion", "patches", "scratches"]
    assert last["mean"] == [0.485, 0.456, 0.406] and last["std"] == [0.229, 0.224, 0.225]
    assert last.config.segmentation.image_size == (32, 48)
    assert last["progress"]["best"] == max(mious)
    assert best["progress"]["epoch"] == (1 if mious[0] >= mious[1] else 2)
    assert set(last) - set(best) == {"optimizer", "scaler"}  # weights alone, to hand on


def test_max_steps_ends_the_training(run):
    train.main(run.arguments("segmentation.max_steps=3"))

    assert [line["step"] for line in run.log()] == [2, 3]


@pytest.mark.parametrize(("warmup_epochs", "warmup_steps"), [(1.0, 2), (1.5, 3), (9.0, 4)])
def test_the_rate_rises_over_the_warmup_epochs_at_most_half_of_the_steps(
    run, monkeypatch, warmup_epochs, warmup_steps
):
    rates = []
    monkeypatch.setattr(train, "set_lr", lambda optimizer, lr: rates.append(lr))
    more = ["segmentation.epochs=4", f"segmentation.warmup_epochs={warmup_epochs}"]
    train.main(run.arguments(*more, "segmentation.eval_every=4"))

    assert len(rates) == 8  # 2 steps an epoch
    assert rates[0] == pytest.approx(1e-5) and rates[-1] == pytest.approx(1e-5)
    assert rates.index(max(rates)) == warmup_steps and max(rates) == pytest.approx(1e-3)


def test_validation_runs_every_so_many_epochs_and_at_the_end(run):
    train.main(run.arguments("segmentation.epochs=5", "segmentation.eval_every=2"))

    assert ["val" in line for line in run.log()] == [False, True, False, True, True]


def test_training_runs_in_bfloat16_on_a_cpu(run, capsys):
    train.main(run.arguments("segmentation.amp=bf16", "segmentation.max_steps=2"))

    assert "cpu, autocast torch.bfloat16" in capsys.readouterr().out
    assert run.checkpoint()["model"]["segmentation_head.0.weight"].dtype == torch.float32


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_resume_after_an_interruption_gives_the_same_weights_bit_for_bit(run, monkeypatch, ema):
    arguments = run.arguments(f"segmentation.ema={ema}", "segmentation.copy_paste=0.5")
    train.main(arguments)
    straight, straight_log = run.checkpoint()["model"], run.log()

    original, calls = train.validate, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(train, "validate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.main(arguments)
    monkeypatch.setattr(train, "validate", original)
    assert run.checkpoint()["progress"]["epoch"] == 1
    torch.manual_seed(99)
    train.main([*arguments, "--resume"])

    resumed = run.checkpoint()["model"]
    assert all(torch.equal(resumed[key], value) for key, value in straight.items())
    without_time = [[{**x, "seconds": 0} for x in log] for log in (run.log(), straight_log)]
    assert without_time[0] == without_time[1]
    trained = run.checkpoint().get("trained", resumed)
    assert ema == 0 or any(not torch.equal(trained[key], resumed[key]) for key in resumed)


def test_training_on_crops_validates_on_them_too(run, monkeypatch):
    sides = []

    def seen(size, side, *arguments):
        sides.append(side)
        return place_crop(size, side, *arguments)

    monkeypatch.setattr(datasets.image_maps, "place_crop", seen)
    train.main(run.arguments("segmentation.crop=32", "segmentation.max_steps=2"))

    assert sides == [32] * 6  # two batches of two, the validation image, and that of the picture


def test_resume_with_other_settings_is_refused(run):
    train.main(run.arguments("segmentation.max_steps=1"))

    with pytest.raises(ValueError, match=r"--resume: expected .* segmentation settings, got oth"):
        train.main([*run.arguments("segmentation.lr=0.5"), "--resume"])


def test_resume_without_a_checkpoint_starts_anew(run):
    train.main([*run.arguments("segmentation.max_steps=1"), "--resume"])

    assert run.log()[0]["step"] == 1


def test_missing_pseudo_labels_stop_the_training(run):
    for path in (run.out / "pseudo_labels").glob("*.png"):
        path.unlink()

    with pytest.raises(FileNotFoundError, match=r"5 are missing: .* Run make_pseudo_labels\.py"):
        train.main(run.arguments())


def test_a_validation_part_without_any_label_is_refused(run):
    for path in (run.out / "pseudo_labels").glob("*.png"):
        write_mask(path, np.full(run.size, 255, np.uint8))

    with pytest.raises(ValueError, match=r"of the 1 validation images, got 255 .*val_fraction"):
        train.main(run.arguments())


def test_non_finite_loss_names_epoch_step_and_terms(run, monkeypatch):
    def broken(*tensors):
        total, terms = original(*tensors)
        return total * float("nan"), terms

    original = train.dense_loss
    monkeypatch.setattr(train, "dense_loss", broken)

    expected = "got total nan, pixel .*, dice .* in epoch 1, step 1"
    with pytest.raises(RuntimeError, match=expected):
        train.main(run.arguments())


def test_four_images_are_learnt_by_heart(make_run, monkeypatch):
    run = make_run(5)  # 4 to train on, 1 to validate on
    monkeypatch.setattr(train, "train_transform", eval_transform)
    settings = ["epochs=20", "batch_size=4", "lr=1e-2", "warmup_epochs=4.0", "eval_every=20"]
    arguments = run.arguments(*(f"segmentation.{setting}" for setting in settings))

    train.main(arguments)
    infer.main([*arguments, "--split", "fit"])

    data = read_data(run.checkpoint().config.data, run.out / "labels.csv")
    right = total = 0
    for record in data.split("fit"):
        mask = read_mask(run.out / f"pseudo_labels/{record.name}.png", 3)
        prediction = read_mask(run.out / f"predictions/{record.name}.png", 3)
        counted = mask != 255
        right += (prediction == mask)[counted].sum()
        total += counted.sum()
    assert right / total > 0.9


def test_copy_paste_changes_what_is_learnt(run):
    finals = []
    for copy_paste in (0.0, 1.0):
        train.main(
            run.arguments("segmentation.max_steps=2", f"segmentation.copy_paste={copy_paste}")
        )
        finals.append(run.checkpoint()["model"])
    assert any(not torch.equal(finals[0][key], finals[1][key]) for key in finals[0])
