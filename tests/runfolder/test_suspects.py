"""Wrong labels stand first in the table of those that the localiser doubts."""

import csv

import numpy as np
import pytest

from configs import load
from datasets.files import Cam, write_cam
from runfolder.run import Run
from runfolder.suspects import suspects_of, write_suspects

SETTINGS = ("data.sample_train=40", "data.sample_test=2")


@pytest.fixture
def run(tmp_path) -> Run:
    config = load("configs/sample.toml", [*SETTINGS, f"data.root={tmp_path}/data"])
    return Run(tmp_path / "run", config)


def write_scores(run: Run, name: str, scores: np.ndarray) -> None:
    folder = run.cam_dir(run.config.pseudo_label.cam_type, "given")
    cam = Cam(np.zeros((0, 2, 2)), np.zeros(0, int), scores)
    write_cam(folder / f"{name}.npz", cam)


def see(run: Run, unseen: dict[str, int], extra: dict[str, int]) -> None:
    """Write CAM files whose scores are right, but for one class of some images."""
    rng = np.random.default_rng(0)
    for record in run.data.split("train"):
        shown = {*record.classes} - {unseen.get(record.name)} | {extra.get(record.name)}
        scores = np.array([0.45 if k in shown else 0.35 for k in range(3)])
        scores += rng.normal(0, 0.01, 3)
        cam = Cam(np.zeros((0, 2, 2)), np.zeros(0, int), scores)
        write_cam(
            run.cam_dir(run.config.pseudo_label.cam_type, "given") / f"{record.name}.npz", cam
        )


def test_labels_that_differ_from_what_is_seen_come_first(run):
    records = [record for record in run.data.split("train") if len(record.classes) == 1]
    unseen = {record.name: record.classes[0] for record in records[:2]}
    extra = {record.name: (record.classes[0] + 1) % 3 for record in records[2:4]}
    see(run, unseen, extra)

    suspects = suspects_of(run)

    assert len(suspects) == len(run.data.split("train")) == 40
    assert {one.name for one in suspects[:4]} == {*unseen, *extra}
    names = run.data.class_names
    for one in suspects[:4]:
        is_wrong = one.name in unseen
        kind, k = ("wrong", unseen[one.name]) if is_wrong else ("missing", extra[one.name])
        assert (one.kind, one.doubted) == (kind, names[k])
        assert one.doubt > suspects[4].doubt + 0.2
    assert [one.doubt for one in suspects] == sorted((s.doubt for s in suspects), reverse=True)


def test_the_table_is_written_where_there_are_cams(run):
    assert write_suspects(run, run.suspects_path) == 0
    assert not run.suspects_path.exists()
    see(run, {}, {})
    assert write_suspects(run, run.suspects_path) == 40
    with run.suspects_path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    images = {str(record.image): record for record in run.data.split("train")}
    assert {row["image"] for row in rows} == set(images)
    for row in rows:
        assert len(row["label"].split()) == len(images[row["image"]].classes)
        assert 0 <= float(row["doubt"]) <= 1 and row["it is"] in ("wrong", "missing")


def test_scores_of_other_classes_are_refused(run):
    for record in run.data.split("train"):
        cam = Cam(np.zeros((0, 2, 2)), np.zeros(0, int), np.array([0.5]))
        write_cam(
            run.cam_dir(run.config.pseudo_label.cam_type, "given") / f"{record.name}.npz", cam
        )
    with pytest.raises(ValueError, match=r"expected scores of inclusion, .* Run make_cams"):
        suspects_of(run)
