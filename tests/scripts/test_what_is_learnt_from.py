"""Trainings, refinement and thresholds see images of `fit` alone; used masks are named."""

import json
from pathlib import Path

import numpy as np
import pytest

import make_saliency
import segmentation.infer
import segmentation.train
import train_stac
from configs import load
from datasets.files import read_image, write_mask, write_saliency
from datasets.image_maps import ImageMapDataset
from runfolder.run import MaskMeta, Run, SaliencyMeta, read_meta, write_meta
from runfolder.scored import Asked, scored_of
from runfolder.scores import judge_cams
from saliency import learned

SETTINGS = [
    "data.sample_train=12",
    "data.sample_test=2",
    "data.val_fraction=0.25",
    "train.depth=2",
    "train.image_size=[32,48]",
    "train.batch_size=4",
    "train.epochs=1",
    "train.amp=off",
    "loss.num_anchors=4",
    "loss.num_negatives=4",
    "refinement.rounds=0",
    "segmentation.encoder=tu-test_efficientnet",
    "segmentation.image_size=[32,48]",
    "segmentation.batch_size=4",
    "segmentation.epochs=1",
    "segmentation.amp=off",
]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    config = load("configs/sample.toml", [*SETTINGS, f"data.root={tmp_path}/data"])
    run = Run(tmp_path / "run", config)
    rng = np.random.default_rng(0)
    for record in run.data.split("train"):
        size = read_image(record.image).shape[:2]
        write_saliency(run.saliency_dir / f"{record.name}.png", rng.random(size))
        mask = rng.integers(0, 4, size, np.uint8)
        write_mask(run.pseudo_label_dir / f"{record.name}.png", mask)
    return run


def call(run: Run, stage, *more: str) -> None:
    flags = ["--config", "configs/sample.toml", "--out", str(run.folder), "--device", "cpu", *more]
    stage.main([*flags, "--set", *SETTINGS, f"data.root={run.config.data.root}"])


def names(records) -> set[str]:
    return {record.name for record in records}


@pytest.mark.parametrize("stage", [train_stac, segmentation.train])
def test_a_training_steps_on_fit_and_validates_on_val(run, stage, monkeypatch):
    seen: dict[bool, set[str]] = {True: set(), False: set()}
    read = ImageMapDataset.__getitem__

    def watched(dataset, index):
        sample = read(dataset, index)
        is_trained_on = len(dataset.transform.transforms) > 4  # flips and light changes
        seen[is_trained_on].add(sample["name"])
        return sample

    monkeypatch.setattr(ImageMapDataset, "__getitem__", watched)
    call(run, stage)
    fit, val = (names(run.data.split(split)) for split in ("fit", "val"))
    assert seen[True] <= fit and len(seen[True]) >= len(fit) - 1  # a last batch of 1 is left out
    assert seen[False] == val and not fit & val


def test_the_refinement_learns_from_fit_in_folds_of_whole_groups(run, monkeypatch):
    trained_on: list[set[str]] = []

    class Stop(Exception):
        pass

    def train_student(records, *_):
        trained_on.append(names(records))
        if len(trained_on) == learned.NUM_FOLDS:
            raise Stop

    monkeypatch.setattr(learned, "train_student", train_student)
    monkeypatch.setattr(learned, "StudentInputs", lambda *_: _NoFeatures())
    monkeypatch.setattr(learned, "write_priors", lambda *_: None)
    with pytest.raises(Stop):
        learned.prepare(run.config, None, run.data, run.folder, None, 0)
    one, other = trained_on
    assert not one & other
    assert one | other == names(run.data.split("fit"))
    fold_of = {r.group: r.name in one for r in run.data.split("fit")}
    assert all(fold_of[r.group] == (r.name in one) for r in run.data.split("fit"))


class _NoFeatures:
    def keep_features(self, records) -> None:
        pass


def test_thresholds_come_from_fit(run, monkeypatch, tmp_path):
    counted: list[str] = []

    def count_maps(records, *_, **__):
        counted.extend(record.name for record in records)
        raise ValueError("counted")

    monkeypatch.setattr("runfolder.scores.count_maps", count_maps)
    for record in run.data.split("train"):
        (run.cam_dir("fused", "given")).mkdir(parents=True, exist_ok=True)
        (run.cam_dir("fused", "given") / f"{record.name}.npz").touch()
    scored = scored_of(run, Asked("cam", "train", "all", "fused", "given", bound=False))
    with pytest.raises(ValueError, match="counted"):
        judge_cams(run, ("fused", "given"), ["auto"], scored.parts)
    assert set(counted) == names(run.data.split("fit"))


def test_masks_used_elsewhere_go_with_maps_that_are_brought(run, tmp_path):
    lent = sorted(names(run.data.split("fit")))[:2]
    theirs = tmp_path / "theirs"
    for record in run.data.split("train"):
        size = read_image(record.image).shape[:2]
        write_saliency(theirs / f"{record.name}.png", np.random.default_rng(0).random(size))
    write_meta(theirs, SaliencyMeta({}, {}, ["train"], masked=lent, seen_defect_free=["x"]))
    call(run, make_saliency, "--from-dir", str(theirs), "--split", "train")
    meta = read_meta(run.saliency_dir, SaliencyMeta)
    assert (meta.masked, meta.seen_defect_free) == (lent, ["x"])
    call(run, train_stac)
    facts = json.loads((run.stac_dir / "model.json").read_text())
    assert facts["masked"] == lent  # and so in cams/ and pseudo_labels/
    write_meta(run.pseudo_label_dir, MaskMeta({}, {}, lent))
    call(run, segmentation.train)
    call(run, segmentation.infer)
    assert read_meta(run.prediction_dir, MaskMeta).masked == lent
