"""The ladder of pixel masks: one run at small size, and its table."""

import json

import pytest

from saliency import student
from studies import ladder

TINY = ["data.sample_train=12", "data.sample_test=2", "saliency.backbone=test_vit"]
TINY += ["saliency.weights=none", "refinement.image_size=[64,64]", "refinement.steps=2"]


@pytest.fixture(autouse=True)
def small_student(monkeypatch) -> None:
    for name, value in (("FEATURE_SIZE", 64), ("BATCH_SIZE", 4)):
        monkeypatch.setattr(student, name, value)


def test_all_rows_are_scored_on_the_images_that_lend_no_mask(tmp_path, capsys):
    out = tmp_path / "run"
    flags = ["--out", str(out), "--device", "cpu", "--masks", "0", "3"]
    ladder.main([*flags, "--set", f"data.root={tmp_path}/data", *TINY])
    result = json.loads((out / "ladder.json").read_text())
    defective = sum(
        not line.endswith(",")
        for line in (tmp_path / "data/labels.csv").read_text().splitlines()
        if line.startswith("train")
    )
    assert result["images"] == defective - 3
    assert [(row["maps"], row["masks"]) for row in result["rows"]] == [
        ("not refined", 0),
        ("refined", 0),
        ("refined", 3),
    ]
    assert all(0 <= row["fg_iou"] <= row["best_fg_iou"] + 1 for row in result["rows"])
    assert not list(out.glob(".ladder_*"))
    assert capsys.readouterr().out.splitlines()[-5].startswith("| maps | masks | fg IoU, auto |")


def test_table_names_masks_and_figures():
    row = {"maps": "refined", "masks": 10, "fg_iou": 70.125, "threshold": 0.4, "miou": 69}
    lines = ladder.table([row | {"best_fg_iou": 71.0}]).splitlines()
    assert lines[2] == "| refined | 10 | 70.12 | 0.400 | 71.00 | 69.00 |"


def test_more_masks_than_there_are_is_refused_before_any_map(tmp_path):
    flags = ["--out", str(tmp_path / "run"), "--masks", "99", "--device", "cpu"]
    with pytest.raises(ValueError, match="masks of 99 defective training images, got"):
        ladder.main([*flags, "--set", f"data.root={tmp_path}/data", *TINY])
