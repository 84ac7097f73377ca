"""Reasons to doubt a run, found without masks."""

import json

import numpy as np
import pytest

import evaluation
from configs import load
from datasets.files import write_json
from datasets.record import label_vector
from runfolder.doubts import LEAST_AGREEMENT, doubts
from runfolder.held_out import HELD_OUT_NAME, HeldOut
from runfolder.run import Run
from scoring.images import Verdicts, auroc_by_class

SETTINGS = ("data.sample_train=60", "data.sample_test=2", "data.val_fraction=0.5")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("doubts")
    return Run(folder / "run", load("configs/sample.toml", [*SETTINGS, f"data.root={folder}/data"]))


def hold_out(run: Run, score_of, with_localiser: bool = False) -> None:
    """Write what the models say of the held-out images: score_of(record) -> (K,)."""
    content = []
    for record in run.data.split("val"):
        scores = [float(s) for s in score_of(record)]
        one = HeldOut(name=record.name, defective=bool(record.classes), segmenter=scores)
        if with_localiser:
            one = one.model_copy(update={"localiser": scores})
        content.append(one.model_dump())
    write_json(run.prediction_dir / HELD_OUT_NAME, content)


def validated(run: Run, *measures: dict | None) -> None:
    """Write the second stage's log, a line for each validation."""
    line = {"step": 1, "lr": 0.1, "train": {}, "seconds": 1.0}
    lines = [{"epoch": i + 1, **line} | ({"val": m} if m else {}) for i, m in enumerate(measures)]
    path = run.segmentation_dir / "log.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def truth(record):
    return 0.1 + 0.8 * np.array(label_vector(record, 3))


def test_a_run_that_tells_its_classes_is_not_doubted(run):
    hold_out(run, truth)
    validated(run, {"miou": 80.0, "foreground": 70.0})

    assert doubts(run) == []


def test_scores_that_say_nothing_name_each_class(run):
    rng = np.random.default_rng(0)
    hold_out(run, lambda record: rng.random(3))

    reasons = doubts(run)

    assert [reason.split(":")[0] for reason in reasons] == list(run.data.class_names)
    val = run.data.split("val")
    shown = sum(0 in record.classes for record in val)
    assert f"{shown} of {len(val)} held-out images show it" in reasons[0]


def test_a_class_that_is_mistaken_for_another_is_named_alone(run):
    def swapped(record):
        scores = truth(record)
        scores[2] = 1 - scores[2]
        return scores

    hold_out(run, swapped, with_localiser=True)

    (reason,) = doubts(run)
    assert reason.startswith(f"{run.data.class_names[2]}: ")
    assert "AUROC 0 %, 95 % interval 0 to 0" in reason


def test_masks_unlike_their_pseudo_labels_are_doubted(run):
    hold_out(run, truth)
    validated(run, {"miou": 80.0, "foreground": 70.0}, None, {"miou": 50.0, "foreground": 23.4})

    (reason,) = doubts(run)
    assert "foreground IoU of 23 %" in reason and "--masks 10" in reason

    validated(run, {"miou": 50.0, "foreground": LEAST_AGREEMENT})
    assert doubts(run) == []


def test_a_run_that_was_not_finished_is_not_doubted(run, tmp_path):
    assert doubts(Run(tmp_path / "new", run.config)) == []


def test_a_log_of_an_older_version_says_nothing(run):
    hold_out(run, truth)
    validated(run, {"miou": 10.0})

    assert doubts(run) == []


def test_a_damaged_log_is_named(run):
    hold_out(run, truth)
    (run.segmentation_dir / "log.jsonl").write_text('["val"]\n')

    with pytest.raises(ValueError, match=r"log.jsonl, line 1: expected an epoch of a training"):
        doubts(run)


def test_the_table_ends_with_the_doubts(run, capsys):
    hold_out(run, truth)
    validated(run, {"miou": 50.0, "foreground": 20.0})
    settings = [*SETTINGS, f"data.root={run.config.data.root}"]
    command = ["--config", "configs/sample.toml", "--out", str(run.folder), "--set", *settings]
    run.results_path.touch()

    evaluation.main(["--table", *command])

    assert "warning: 1 reason(s) to doubt these masks" in capsys.readouterr().out

    validated(run, {"miou": 90.0, "foreground": 90.0})
    evaluation.main(["--table", *command])
    assert "warning" not in capsys.readouterr().out


def test_auroc_of_each_class_by_hand():
    labels = np.array([[1, 0], [1, 0], [0, 0], [0, 0]], bool)
    scores = np.array([[0.9, 0.1], [0.4, 0.2], [0.5, 0.3], [0.1, 0.4]])
    said = Verdicts(labels, labels, scores, ["a", "b", "c", "d"])

    first, second = auroc_by_class(said)

    assert first.auroc == pytest.approx(75)  # 3 of 4 pairs are in order
    assert first.interval[0] <= 75 <= first.interval[1]
    assert second is None  # no image shows it
