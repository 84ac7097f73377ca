"""The bound by true masks writes them as pseudo labels, and says that it used them."""

from pathlib import Path

import numpy as np
import pytest

from datasets.files import read_mask, read_truth
from runfolder.run import MaskMeta, open_run, read_meta
from studies import ablation, bounds


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    sample = ["data.sample_train=8", "data.sample_test=2", f"data.root={tmp_path}/data"]
    return ["--out", str(tmp_path / "run"), "--device", "cpu", "--set", *sample]


def test_pseudo_labels_are_the_true_masks_and_all_is_scored(flags, monkeypatch, capsys):
    called = []

    def call(job, words):
        called.append(words)
        if words[0] == "evaluation.py":
            (job.run_dir / "results.jsonl").touch()

    monkeypatch.setattr(ablation.Job, "call", call)
    bounds.main(flags)
    assert called == [
        ["-m", "segmentation.train", "--resume"],
        ["-m", "segmentation.infer"],
        ["evaluation.py", "--kind", "segmentation", "--detailed"],
    ]
    run = open_run(bounds.stage_parser("").parse_args(flags))
    train = run.data.split("train")
    for record in train:
        mask = read_mask(run.pseudo_label_dir / f"{record.name}.png", run.num_classes)
        np.testing.assert_array_equal(mask, read_truth(record, run.num_classes))
    meta = read_meta(run.pseudo_label_dir, MaskMeta)
    assert meta.masked == sorted(record.name for record in train)
    assert meta.made_from == {"masks": 8}
    assert "no results" in capsys.readouterr().out


def test_images_without_a_mask_are_named(flags, monkeypatch):
    run = open_run(bounds.stage_parser("").parse_args(flags))
    record = run.data.split("train")[3]
    record.mask.unlink()
    monkeypatch.setattr(ablation.Job, "call", None)
    with pytest.raises(ValueError, match=f"each of 8 .* 1 have none: {record.name}"):
        bounds.main(flags)
