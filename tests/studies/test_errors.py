"""Counts of mistakes, by hand."""

import numpy as np
import pytest

from datasets.files import write_mask
from datasets.record import IGNORE
from studies.errors import Defect, Errors, confusion_table, near_border, recall_table

GREY = 100


def picture(height=20, width=30):
    return np.full((height, width, 3), GREY, np.uint8), np.zeros((height, width), np.uint8)


def test_a_defect_has_its_contrast_size_and_hits():
    image, truth = picture()
    image[5:9, 5:15], truth[5:9, 5:15] = 60, 1  # 40 darker
    image[15:17, 20:25], truth[15:17, 20:25] = 130, 2  # 30 brighter
    prediction = np.zeros_like(truth)
    prediction[5:9, 5:10], prediction[15:17, 20:25] = 1, 1
    errors = Errors(2)

    errors.add(image, truth, prediction)

    assert errors.defects == [Defect(0, 40.0, 40, 20), Defect(1, 30.0, 10, 0)]


def test_regions_that_touch_at_a_corner_are_one_defect():
    image, truth = picture()
    truth[2:4, 2:4], truth[4:6, 4:6] = 1, 1
    truth[15, 15] = 1
    errors = Errors(1)

    errors.add(image, truth, truth)

    assert [defect.pixels for defect in errors.defects] == [8, 1]


def test_a_defect_that_fills_its_image_has_no_contrast():
    image, truth = picture()
    truth[:] = 1
    errors = Errors(1)

    errors.add(image, truth, truth)

    assert np.isnan(errors.defects[0].contrast)
    assert len(recall_table(errors.defects, ["a"], "contrast")) == 2  # no row
    assert "| 600 - 600: 100 (100 %) |" in recall_table(errors.defects, ["a"], "pixels")[2]


def test_pixels_within_two_of_another_value_are_border():
    truth = np.zeros((3, 10), np.uint8)
    truth[:, 5:] = 1

    assert near_border(truth)[1].tolist() == [False] * 3 + [True] * 4 + [False] * 3


def test_mistakes_at_the_border_are_told_from_others():
    image, truth = picture()
    truth[:, 15:] = 1
    prediction = truth.copy()
    prediction[:, 14] = 1  # one column too far
    prediction[0, 2] = 1  # and a pixel far away
    truth[19] = IGNORE
    errors = Errors(1)

    errors.add(image, truth, prediction)

    assert errors.at_border.tolist() == [19, 20]


def test_confusion_and_area_by_hand():
    image, truth = picture(10, 10)
    truth[:, :2], truth[:, 8:] = 1, 2  # 20 pixels each
    prediction = np.zeros_like(truth)
    prediction[:, :3], prediction[:, 9:] = 1, 2
    errors = Errors(2)

    errors.add(image, truth, prediction)
    lines = confusion_table(errors.all(), ("background", "a", "b"))

    assert lines[2] == "| background | 50.00 | 10.00 | 0.00 | 1.00 | 71.4 |"
    assert lines[3] == "| a | 0.00 | 20.00 | 0.00 | 1.50 | 66.7 |"
    assert lines[4] == "| b | 10.00 | 0.00 | 10.00 | 0.50 | 50.0 |"
    assert errors.matrices[True].counts.any() and not errors.matrices[False].counts.any()


def test_recall_is_pooled_in_five_parts_of_equal_number():
    defects = [Defect(0, number, 10, number) for number in range(10)]

    row = recall_table(defects, ["a"], "contrast")[2]

    # The faintest two: none and one of ten pixels each.
    assert row.startswith("| a | 0 - 1: 5 (20 %) | 2 - 3: 25 (20 %) |")
    assert row.endswith("8 - 9: 85 (20 %) |")


def test_few_defects_leave_parts_empty():
    row = recall_table([Defect(0, 5.0, 4, 4)], ["a"], "contrast")[2]

    assert row == "| a | 5 - 5: 100 (100 %) | - | - | - | - |"


def test_the_tables_of_a_run(tmp_path, capsys):
    from configs import load
    from runfolder.run import Run
    from studies import errors

    settings = ["data.sample_train=4", "data.sample_test=6", f"data.root={tmp_path}/data"]
    run = Run(tmp_path / "run", load("configs/sample.toml", settings))
    for record in run.data.split("test"):
        mask = errors.read_truth(record, run.num_classes)
        write_mask(run.prediction_dir / f"{record.name}.png", mask)
    command = ["--config", "configs/sample.toml", "--out", str(run.folder), "--set", *settings]

    errors.main(command)

    out = capsys.readouterr().out
    assert "segmentation, test, all: 6 images" in out
    assert "mIoU 100.00" in out and "| 1.00 | 100.0 |" in out

    for record in run.data.split("test"):
        record.mask.unlink()
    with pytest.raises(ValueError, match="sample, test: expected true masks, got none"):
        errors.main(command)
