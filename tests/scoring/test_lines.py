"""Rows of results.jsonl and printed tables, word for word."""

import numpy as np
import pytest

from scoring.confusion import Scores, ThresholdSweep
from scoring.lines import (
    Judged,
    detailed_lines,
    percent,
    print_curve,
    print_lines,
    result_row,
    saliency_lines,
    saliency_row,
    score_lines,
)
from scoring.saliency import SaliencyHistogram

NAMES = ("background", "dent", "scratch")
SCORES = Scores(np.array([90.0, 41.239, np.nan]), 65.62, 50.5, 20.25, 14.13)


def test_percent_has_two_decimals_and_a_dash_for_nothing():
    assert [percent(x) for x in (12.345, 0.0, None, np.nan)] == ["12.35", "0.00", "-", "-"]


def test_a_row_names_absent_classes_apart():
    row = result_row(Judged("fixed", 0.4, SCORES), NAMES)
    assert row == {
        "threshold": 0.4,
        "threshold_rule": "fixed",
        "iou": {"background": 90.0, "dent": 41.239},
        "miou": 65.62,
        "fg_iou": 50.5,
        "fp": 20.25,
        "fn": 14.13,
        "absent": ["scratch"],
    }
    judged = Judged("fixed", 0.4, SCORES, SCORES._replace(miou=1.0, fg_iou=None))
    assert result_row(judged, NAMES) == row | {"report": {"miou": 1.0, "fg_iou": None}}
    for names in (NAMES[:2], (*NAMES, "one more")):
        with pytest.raises(ValueError):
            result_row(judged, names)


def test_score_lines_have_a_column_for_each_rule():
    other = SCORES._replace(iou=np.array([1.0, 2.0, 3.0]), fg_iou=None)
    judged = [Judged("auto", 0.5, SCORES), Judged("class", (0.1, 0.2), other)]
    assert score_lines(judged, NAMES) == [
        ["class", "auto 0.500", "class"],
        ["background", "90.00", "1.00"],
        ["dent", "41.24", "2.00"],
        ["scratch", "-", "3.00"],
        ["mIoU", "65.62", "65.62"],
        ["fg IoU", "50.50", "-"],
        ["FP", "20.25", "20.25"],
        ["FN", "14.13", "14.13"],
    ]
    assert score_lines([Judged("none", None, SCORES)], NAMES)[0] == ["class", "IoU"]
    with pytest.raises(ValueError):
        score_lines(judged, NAMES[:2])
    judged = [one._replace(report=SCORES._replace(miou=7.0)) for one in judged]
    assert score_lines(judged, NAMES)[8:] == [["mIoU, report part", "7.00", "7.00"]]


@pytest.fixture
def histogram():
    """Defects of class 0 at 0.2 and 0.8, background at 0.2; a defect-free image at 0.2 and 0.6."""
    counted = SaliencyHistogram(2)
    counted.update(np.array([[1, 1, 0]], np.uint8), np.array([[51, 204, 51]]) / 255, True)
    counted.update(np.zeros((1, 2), np.uint8), np.array([[51, 153]]) / 255, False)
    return counted


def test_saliency_rows_and_lines(histogram):
    measured = histogram.scores()
    row = saliency_row(histogram, 0.5, NAMES[1:])
    assert row["recall"] == {"dent": 50.0}
    assert (row["false_alarm"], row["defect_free_images"]) == (50.0, 1)
    assert {name: row[name] for name in measured._fields} == measured._asdict()
    judged = [Judged("fixed", 0.5, SCORES), Judged("auto", 0.1, SCORES)]
    # AUROC: ties half, 1.5 of 2 pairs. AP: (2 / 3 + 1) / 2. MAE: (0.8 + 0.2 + 0.2) / 3. At 0.2
    # half of the defect alone: IoU 1 / 2; below it all pixels: 2 / 3. Max F: 1.3 * 2 / (0.6 + 3).
    assert saliency_lines(histogram, judged, NAMES[1:]) == [
        ["recall dent", "50.00", "100.00"],
        ["recall scratch", "-", "-"],
        ["false alarm", "50.00", "100.00"],
        ["defect-free images", "1"],
        ["AUROC", "75.00"],
        ["AP", "83.33"],
        ["max F", percent(100 * 1.3 / 1.6)],  # 1.3 * 1 / (0.3 * 2 + 1), of the sure half alone
        ["MAE", "40.00"],
        ["best fg IoU", "66.67"],
        ["its threshold", "0.000"],
    ]
    assert saliency_lines(SaliencyHistogram(1), judged, ["dent"])[-1] == ["its threshold", "-"]
    for names in (NAMES, NAMES[1:2]):
        with pytest.raises(ValueError):
            saliency_row(histogram, 0.5, names)
        with pytest.raises(ValueError):
            saliency_lines(histogram, judged, names)


def test_detailed_lines_name_what_was_counted():
    scores = {
        "miou_interval": (40.123, 60.5),
        "dice": [99.0, 50.0, None],
        "boundary_f1": [33.333, None],
        "pixel_accuracy": 98.0,
        "area_ratio": 115.5,
        "false_alarms": 0.25,
    }
    lines = [
        ["mIoU, 95 % interval", "40.12 to 60.50"],
        ["Dice background", "99.00"],
        ["Dice dent", "50.00"],
        ["Dice scratch", "-"],
        ["boundary F1 (2 px) dent", "33.33"],
        ["boundary F1 (2 px) scratch", "-"],
        ["pixel accuracy", "98.00"],
        ["area of the true one", "115.50"],
    ]
    alarms = ["regions per defect-free image", "0.25"]
    assert detailed_lines(scores, NAMES[1:]) == [*lines, alarms]
    of_maps = {"pixel_auroc": 90.0, "aupro": None, "max_f1": 70.0, "image_auroc": 80.0}
    assert detailed_lines(scores | of_maps, NAMES[1:]) == [
        *lines,
        ["pixel AUROC", "90.00"],
        ["AUPRO (FPR 0.3)", "-"],
        ["pixel max F1", "70.00"],
        ["image AUROC", "80.00"],
        alarms,
    ]
    for names in (NAMES, NAMES[1:2]):
        with pytest.raises(ValueError):
            detailed_lines(scores, names)


def test_tables_are_printed_with_cells_to_the_right(capsys):
    print_lines(
        [["class", "fixed 0.500", "auto"], ["a longer title", "1.00", "22.00"], ["AP", "-"]]
    )
    assert capsys.readouterr().out.splitlines() == [
        "class              fixed 0.500            auto",
        "a longer title            1.00           22.00",
        "AP                           -",
    ]


def test_the_curve_has_a_line_for_each_threshold(capsys):
    sweep = ThresholdSweep((0.5, 0.25), 1)
    sweep.update(np.array([[0, 0, 1]], np.uint8), np.array([[[0.1, 0.3, 0.6]]]), [0])
    print_curve(sweep)
    # At 0.25 a pixel of two is predicted in vain: IoU 1/2 and 1/2, FP (0 + 1/2) / 2, FN the same.
    assert capsys.readouterr().out.splitlines() == [
        "threshold    mIoU  fg IoU      FP      FN",
        "   0.2500   50.00   50.00   25.00   25.00",
        "   0.5000  100.00  100.00    0.00    0.00",
    ]
    empty = ThresholdSweep([0.5], 1)
    empty.update(np.zeros((1, 3), np.uint8), np.zeros((1, 1, 3)), [0])
    print_curve(empty)
    assert capsys.readouterr().out.splitlines()[1] == "   0.5000  100.00       -    0.00    0.00"
