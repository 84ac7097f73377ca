"""What evaluation.py says of whole images: with masks beside them, and without any."""

import numpy as np
import pytest

from datasets.files import Cam, write_cam, write_csv, write_image, write_mask

SCORES = {"1t": (0.9, 0.2, 0.1), "2t": (0.7, 0.6, 0.4)}  # 1t: inclusion; 2t: inclusion, scratches


def write_scores(scored, scores=SCORES) -> None:
    """Write what the localiser says of the test images: maps of classes from 0.5 on."""
    for name, values in scores.items():
        classes = np.flatnonzero(np.array(values) >= 0.5)
        path = scored.out / f"cams/fused/predicted/{name}.npz"
        write_cam(path, Cam(np.zeros((len(classes), 4, 5)), classes, np.array(values)))


def take_masks_away(scored) -> None:
    scored.evaluate("--kind", "cam")  # writes labels.csv
    (scored.out / "results.jsonl").unlink()
    for path in (scored.data / "annotations/test").iterdir():
        path.unlink()


def test_the_localiser_is_judged_by_labels_where_no_mask_is(scored, capsys):
    take_masks_away(scored)
    write_scores(scored)
    capsys.readouterr()
    scored.evaluate("--kind", "cam", "--labels", "predicted")
    (row,) = scored.rows()
    assert (row["kind"], row["labels"], row["images"]) == ("cam", "predicted", 2)
    assert "miou" not in row
    classes = row["image"]["classes"]
    counts = {n: [c[k] for k in ("hit", "extra", "missed")] for n, c in classes.items()}
    assert counts == {"inclusion": [2, 0, 0], "patches": [0, 1, 0], "scratches": [0, 0, 1]}
    assert row["image"]["found"] == 100
    assert row["image"]["contradicted"] == {"extra": 1, "missed": 1}
    out = capsys.readouterr().out
    assert "cam, test, 2 images against their labels:" in out
    assert "images with a class that their label lacks" in out
    scored.evaluate("--table")
    out = capsys.readouterr().out
    assert "no results: none of the images has a mask" in out
    assert "| of whole images | split | labels" in out
    assert "| localiser       | test  | predicted" in out


def test_the_second_stage_has_both_in_one_row(scored, capsys):
    for name in SCORES:
        write_mask(scored.out / f"predictions/{name}.png", scored.masks["1t"])
    rows = [(name, *values) for name, values in SCORES.items()]
    header = ("name", "inclusion", "patches", "scratches")
    write_csv(scored.out / "predictions/scores.csv", [header, *rows])
    scored.evaluate("--kind", "segmentation")
    (row,) = scored.rows()
    assert row["miou"] > 0
    assert row["image"]["contradicted"] == {"extra": 0, "missed": 1}
    assert row["image"]["classes"]["scratches"]["ap"] == 100  # of the scores, not the masks
    capsys.readouterr()
    scored.evaluate("--table")
    out = capsys.readouterr().out
    assert "| stage        | split" in out
    assert "| of whole images | split" in out


def test_masks_without_scores_are_scored_by_what_they_show(scored):
    for name in SCORES:
        write_mask(scored.out / f"predictions/{name}.png", scored.masks["1t"])
    scored.evaluate("--kind", "segmentation")
    assert scored.rows()[0]["image"]["classes"]["scratches"]["ap"] == 50


@pytest.mark.parametrize(
    ("rows", "got"),
    [
        ([("name", "inclusion")], "columns name, inclusion"),
        ([("name", "inclusion", "patches", "scratches"), ("1t", 0.5, 0.5, 0.5)], "2t"),
        ([("name", "inclusion", "patches", "scratches"), ("1t", "x", 0, 0)], "could not convert"),
        (
            [("name", "inclusion", "patches", "scratches"), ("1t", 2, 0, 0), ("2t", 0, 0, 0)],
            r"scores outside \[0, 1\]",
        ),
        ([], "list index"),
    ],
)
def test_damaged_scores_are_named(scored, rows, got):
    for name in SCORES:
        write_mask(scored.out / f"predictions/{name}.png", scored.masks["1t"])
    write_csv(scored.out / "predictions/scores.csv", rows)
    with pytest.raises(ValueError, match=rf"scores\.csv: expected name and scores of .*{got}"):
        scored.evaluate("--kind", "segmentation")


def test_given_labels_say_nothing_of_images_nor_does_another_cam_type(scored):
    scored.evaluate("--kind", "cam", "--threshold-rule", "fixed")
    for name in SCORES:
        scored.write_cam(name, "patchcam/predicted")
    words = ("--kind", "cam", "--labels", "predicted", "--cam-type", "patchcam")
    scored.evaluate(*words, "--threshold-rule", "fixed")
    assert ["image" in row for row in scored.rows()] == [False, False]


def test_good_images_are_false_alarms_where_anything_is_said(scored):
    write_image(scored.data / "images/test/3.jpg", np.zeros((4, 5, 3), np.uint8))
    write_mask(scored.data / "annotations/test/3.png", np.zeros((4, 5), np.uint8))
    scored.masks["3t"] = np.zeros((4, 5), np.uint8)
    write_scores(scored, SCORES | {"3t": (0.1, 0.55, 0.2)})
    words = ("--kind", "cam", "--labels", "predicted", "--threshold-rule", "fixed")
    scored.evaluate(*words)
    figures = scored.rows()[0]["image"]
    assert (figures["good"], figures["false_alarms"]) == (1, 100)
    assert figures["auroc"] == 100  # .9 and .7 against .55
