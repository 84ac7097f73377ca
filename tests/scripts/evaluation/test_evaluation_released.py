"""evaluation.py with the flags of the authors' released script, and on their released CAMs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import evaluation
from configs.command_line import ROOT
from datasets.files import read_mask, write_mask
from released.arrays import read_released_cam
from scoring.confusion import ConfusionMatrix, ThresholdSweep
from scoring.thresholds import seed_mask

RELEASED = Path(os.environ.get("STAC_SHARED", ROOT.parent / "shared")) / "published_cams"
needs_released = pytest.mark.skipif(
    not RELEASED.is_dir(), reason="no released CAMs; STAC_SHARED names the folder that holds them"
)


class Released:
    """Files and flags of the authors' script, for the test images of a run."""

    def __init__(self, scored) -> None:
        self.folder = scored.data.parent / "released"
        self.masks = self.folder / "masks"
        for name in ("1t", "2t"):
            write_mask(self.masks / f"{name}.png", scored.masks[name])
            maps = {k: np.where(scored.masks[name] == k + 1, 0.8, 0.2) for k in (0, 2)}
            np.save(self.folder / f"{name}.npy", maps, allow_pickle=True)
            write_mask(self.folder / f"{name}.png", scored.columns(1, 0, 0, 0, 3 * (name == "2t")))
        (self.folder / "test.txt").write_text("1t\n2t")

    def evaluate(self, *flags: str) -> None:
        paths = {"list": "test.txt", "predict_dir": ".", "gt_dir": "masks"}
        inputs = [x for k, v in paths.items() for x in (f"--{k}", str(self.folder / v))]
        evaluation.main([*inputs, "--num_classes", "4", *flags])


@pytest.fixture
def released(scored):
    return Released(scored)


def test_released_png_flags_print_twelve_digits(released, capsys):
    released.evaluate("--sal_dir", "anywhere")
    out = capsys.readouterr().out
    assert "--sal_dir is accepted for old command lines; scoring does not use it." in out
    # Inclusion: truth 12, predicted 8, both 8. Background: truth 24, predicted 28, both 24.
    assert "background  85.7142857143\n" in out
    assert "class 1     66.6666666667\n" in out
    assert "class 3     100.000000000\n" in out
    assert "neither in masks nor predicted, left out: class 2" in out


def test_released_curve_gives_the_best_threshold_and_a_log_line(released, capsys):
    log = released.folder / "log.txt"
    flags = ["--type", "npy", "--curve", "True", "--t", "0.5", "--start", "10", "--end", "30"]
    released.evaluate(*flags, "--logfile", str(log), "--comment", "first try")
    out = capsys.readouterr().out
    assert "t = 0.2, the best mIoU on these masks" in out
    assert [line.split()[0] for line in out.splitlines()[1:22]] == [
        f"{t / 100:.4f}" for t in range(10, 31)
    ]
    row = json.loads(log.read_text())
    assert (row["comment"], row["images"]) == ("first try", 2)
    assert (row["threshold_rule"], row["threshold"], row["miou"]) == ("oracle", 0.2, 100)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--type", "npy"], "--t: expected a threshold from 0 to 1, got None"),
        (["--type", "npy", "--t", "60"], r"--t: expected a threshold from 0 to 1, got 60\.0"),
        (["--type", "npy", "--curve", "--start", "9", "--end", "3"], r"0 <= start .* got 9, 3"),
        (["--num_classes", "1"], r"--num_classes: expected 2\.\.255, got 1"),
        (["--num_classes", "3"], r"2t\.png: expected mask values 0\.\.2 and 255, got 3"),
        (["--list", "none.txt"], "none.txt: expected a list file"),
        (["--gt_dir", "none"], r"none: expected a \.png file .* 2 are missing: 1t, 2t. Check --gt"),
        (["--predict_dir", "none", "--type", "npy", "--t", "0"], "2 are missing.* Check --predict"),
    ],
)
def test_wrong_released_flags_are_one_clear_line(released, flags, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        released.evaluate(*flags)
    assert "\n" not in str(error.value)


def test_an_error_is_one_line_and_a_nonzero_exit_code(released):
    command = [
        sys.executable,
        "evaluation.py",
        "--predict_dir",
        "x",
        "--gt_dir",
        "y",
        "--list",
        "z",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: z: expected a list file with one name a line, found none.\n"


@needs_released
@pytest.mark.parametrize("kind", ["patchcam", "fused"])
@pytest.mark.parametrize("threshold", ["0.5", "0.6", "0.7"])
def test_released_cams_give_the_released_figures(kind, threshold, capsys):
    flags = {"list": "test.txt", "predict_dir": kind, "gt_dir": "masks"}
    inputs = [x for k, v in flags.items() for x in (f"--{k}", str(RELEASED / v))]
    evaluation.main([*inputs, "--type", "npy", "--num_classes", "4", "--t", threshold])
    printed = [line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines()[1:]]
    found = {name: float(value) for name, value in printed}
    results = json.loads((RELEASED / "expected.json").read_text())["results"]
    expected = results[f"{kind}@{threshold}"]
    names = ("background", "class 1", "class 2", "class 3")
    assert [found[name] for name in names] == pytest.approx(expected["IoU"], abs=1e-6)
    means = [expected[key] for key in ("mIoU", "FP", "FN")]
    assert [found[key] for key in ("mIoU", "FP", "FN")] == pytest.approx(means, abs=1e-6)


@needs_released
def test_released_sweep_equals_single_threshold_runs():
    names = (RELEASED / "test.txt").read_text().split()[:6]
    thresholds = (0.3, 0.45, 0.6)
    sweep = ThresholdSweep(thresholds, 3)
    single = {t: ConfusionMatrix(3) for t in thresholds}
    for name in names:
        truth = read_mask(RELEASED / f"masks/{name}.png", 3)
        maps, classes = read_released_cam(RELEASED / f"fused/{name}.npy")
        sweep.update(truth, maps, classes)
        for t, confusion in single.items():
            confusion.update(truth, seed_mask(maps, classes, t))
    for t, confusion in single.items():
        assert np.array_equal(sweep.confusion(t).counts, confusion.counts)
