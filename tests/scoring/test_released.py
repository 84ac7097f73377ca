"""Scores under the flags of the authors' script, by themselves; evaluation.py reads the flags."""

import argparse

import numpy as np
import pytest

from datasets.files import write_mask
from scoring.released import score_released

TRUTH = {"a": np.array([[0, 1, 1, 255]], np.uint8), "b": np.array([[0, 0, 1, 1]], np.uint8)}
FLAGS = {"list", "predict_dir", "gt_dir", "sal_dir", "logfile", "comment", "type", "t", "curve"}
FLAGS |= {"num_classes", "start", "end"}


@pytest.fixture
def score(tmp_path):
    """Score what lies in the folder: CAMs of class 0, 0.8 in the truth of a and 0.3 in that of b.

    Elsewhere they are 0.1. Masks there miss the second image. There are two classes.
    """
    for name, truth in TRUTH.items():
        write_mask(tmp_path / f"truth/{name}.png", truth)
        write_mask(tmp_path / f"{name}.png", truth if name == "a" else 0 * truth)
        cam = np.where(truth == 1, {"a": 0.8, "b": 0.3}[name], 0.1).astype(np.float32)
        np.save(tmp_path / f"{name}.npy", {0: cam}, allow_pickle=True)
    (tmp_path / "list.txt").write_text("a\nb")
    paths = {"list": "list.txt", "predict_dir": "", "gt_dir": "truth"}
    given = {name: str(tmp_path / path) for name, path in paths.items()}

    def score(**flags):
        values = dict.fromkeys(FLAGS) | given | {"num_classes": 3} | flags
        return score_released(argparse.Namespace(**values))

    return score


def test_masks_are_scored_and_printed_with_twelve_digits(score, tmp_path, capsys):
    row = score()
    # Background: 3 pixels, 5 predicted. Class 1: 4 pixels, 2 predicted.
    assert row == {
        "comment": "",
        "list": str(tmp_path / "list.txt"),
        "predict_dir": str(tmp_path),
        "images": 2,
        "threshold": None,
        "threshold_rule": "none",
        "iou": {"background": pytest.approx(60), "class 1": pytest.approx(50)},
        "miou": pytest.approx(55),
        "fg_iou": pytest.approx(50),
        "fp": pytest.approx(20),  # (2 / 5 + 0) / 2
        "fn": pytest.approx(25),  # (0 + 2 / 4) / 2
        "absent": ["class 2"],
    }
    assert capsys.readouterr().out.splitlines() == [
        "background  60.0000000000",
        "class 1     50.0000000000",
        "mIoU        55.0000000000",
        "FP          20.0000000000",
        "FN          25.0000000000",
        "neither in masks nor predicted, left out: class 2",
    ]


def test_flags_of_the_authors_without_use_are_named(score, capsys):
    assert score(sal_dir="anywhere", comment="first", num_classes=2)["comment"] == "first"
    out = capsys.readouterr().out
    assert out.startswith(
        "--sal_dir is accepted for old command lines; scoring does not use it.\nbackground "
    )
    assert "neither" not in out


def test_cams_are_cut_at_the_threshold_that_is_given(score, capsys):
    row = score(type="npy", t=0.5)
    assert (row["threshold_rule"], row["threshold"]) == ("fixed", 0.5)
    assert row["miou"] == pytest.approx(55)  # b is missed, as by the masks
    assert capsys.readouterr().out.splitlines()[0] == "t = 0.5"
    assert score(type="npy", t=0.0)["miou"] == pytest.approx(100 * 4 / 7 / 2)  # all foreground
    assert score(type="npy", t=1.0)["miou"] == pytest.approx(100 * 3 / 7 / 2)


@pytest.mark.parametrize(
    ("flags", "first", "last", "best"),
    [
        ({}, 0, 60, 0.1),
        ({"start": 2, "end": 5}, 2, 5, 0.02),
        ({"start": 31}, 31, 60, 0.31),
        ({"start": 30, "end": 100}, 30, 100, 0.3),
        ({"start": 100, "end": 100}, 100, 100, 1.0),
        ({"end": 0}, 0, 0, 0.0),
    ],
)
def test_a_curve_takes_the_best_threshold_of_its_range(score, capsys, flags, first, last, best):
    row = score(type="npy", curve=True, t=0.5, **flags)
    assert (row["threshold_rule"], row["threshold"]) == ("oracle", best)
    out = capsys.readouterr().out.splitlines()
    thresholds = [f"{percent / 100:.4f}" for percent in range(first, last + 1)]
    assert [line.split()[0] for line in out[1 : 1 + len(thresholds)]] == thresholds
    assert out[1 + len(thresholds)] == f"t = {best:g}, the best mIoU on these masks"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"list": None}, "--list: expected a path with --predict_dir, got none."),
        ({"gt_dir": None}, "--gt_dir: expected a path with --predict_dir, got none."),
        ({"num_classes": 1}, r"--num_classes: expected 2\.\.255, got 1."),
        ({"num_classes": 256}, r"--num_classes: expected 2\.\.255, got 256."),
        ({"type": "npy"}, "--t: expected a threshold from 0 to 1, got None."),
        ({"type": "npy", "t": -0.1}, "--t: expected a threshold from 0 to 1, got -0.1."),
        ({"type": "npy", "t": 1.1}, "--t: expected a threshold from 0 to 1, got 1.1."),
        ({"type": "npy", "curve": True, "start": 7, "end": 6}, "--start, --end: .* got 7, 6."),
        ({"type": "npy", "curve": True, "start": -1}, "--start, --end: .* got -1, 60."),
        ({"type": "npy", "curve": True, "end": 101}, "--start, --end: .* got 0, 101."),
    ],
)
def test_impossible_flags_are_refused(score, flags, message):
    with pytest.raises(ValueError, match=message):
        score(**flags)


def test_files_are_taken_by_type_and_missing_ones_name_the_flag(score, tmp_path, capsys):
    assert score(num_classes=255)["images"] == 2
    assert len(score(num_classes=None)["absent"]) == 21 - 2
    assert "left out: class 2, class 3, class 4, " in capsys.readouterr().out
    (tmp_path / "a.npz").write_bytes(b"no CAM")  # .npy of the authors comes first
    assert score(type="npy", t=0.5)["miou"] == pytest.approx(55)
    (tmp_path / "b.npy").unlink()
    message = r"expected a \.npy or \.npz file .* missing: b. Check --predict_dir."
    with pytest.raises(FileNotFoundError, match=message):
        score(type="npy", t=0.5)
    (tmp_path / "truth/b.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected a \.png .* missing: b. Check --gt_dir."):
        score()
