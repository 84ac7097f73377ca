"""What is kept of held-out images, and what of it is refused."""

import json

import numpy as np
import pytest

from configs import load
from datasets.files import Cam, write_cam
from runfolder.held_out import HELD_OUT_NAME, HeldOut, calibration_of, read_held_out, write_held_out
from runfolder.run import Run

SETTINGS = ("data.sample_train=12", "data.sample_test=2", "data.val_fraction=0.25")


@pytest.fixture
def run(tmp_path) -> Run:
    config = load("configs/sample.toml", [*SETTINGS, f"data.root={tmp_path}/data"])
    return Run(tmp_path / "run", config)


def test_scores_of_both_models_come_back(run):
    records = run.data.split("val")
    scores = {record.name: [0.1 * i, 0.5, 0.2] for i, record in enumerate(records)}
    for record in records:
        cam = Cam(np.zeros((0, 2, 2)), np.zeros(0, int), np.array([0.25, 0.75, 0.5]))
        write_cam(run.cam_dir("pixel", "given") / f"{record.name}.npz", cam)

    write_held_out(run, scores)

    images = read_held_out(run.prediction_dir / HELD_OUT_NAME)
    assert [image.name for image in images] == [record.name for record in records]
    assert [image.defective for image in images] == [bool(r.classes) for r in records]
    assert [image.labels for image in images] == [
        [k in record.classes for k in range(3)] for record in records
    ]
    assert [scores[1] for scores in images[0].scores(with_localiser=True)] == [0.5, 0.75]
    # Without the CAMs of one of them the localiser has no say.
    (run.cam_dir("pixel", "given") / f"{records[0].name}.npz").unlink()
    write_held_out(run, scores)
    images = read_held_out(run.prediction_dir / HELD_OUT_NAME)
    assert {len(image.localiser) for image in images} == {0}
    assert len(images[0].scores(with_localiser=False)) == 1
    calibration = calibration_of(images, with_localiser=False)
    assert len(calibration.offsets) == 3
    older = [image.model_copy(update={"labels": []}) for image in images]
    assert calibration_of(older, with_localiser=False) is None
    assert calibration_of([], with_localiser=False) is None


def test_a_run_without_the_file_has_no_held_out_images(tmp_path):
    assert read_held_out(tmp_path / HELD_OUT_NAME) == []


@pytest.mark.parametrize(
    "content",
    [
        "[",
        "{}",
        '[{"name": "a"}]',
        '[{"name": "a", "defective": true, "segmenter": [2]}]',
        '[{"name": "a", "defective": true, "segmenter": [NaN]}]',
        '[{"name": "a", "defective": true, "segmenter": [0.5], "labels": [true, false]}]',
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, content):
    path = tmp_path / HELD_OUT_NAME
    path.write_text(content)
    with pytest.raises(ValueError, match=r"held_out\.json: expected scores of held-out") as caught:
        read_held_out(path)
    assert "\n" not in str(caught.value)


def test_images_with_other_numbers_of_scores_are_refused(tmp_path):
    images = [HeldOut(name="a", defective=True, segmenter=[0.5] * n) for n in (1, 2)]
    path = tmp_path / HELD_OUT_NAME
    path.write_text(json.dumps([image.model_dump() for image in images]))
    with pytest.raises(ValueError, match="different numbers of scores"):
        read_held_out(path)
