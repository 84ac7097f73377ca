"""The page of a run: what it says is what lies in the files."""

import re

import numpy as np
import pytest

import report
from datasets.files import write_image, write_mask

CONFIG = """
[data]
source = "folder"
root = "{root}"
eval_split = "test"
"""
MASKS = {  # share of the 10 x 10 pixels, by mask value
    "test_a<b_1": {1: 5},
    "test_dent_1": {2: 20, 1: 10},
    "test_dent_2": {},
}


@pytest.fixture
def run(tmp_path):
    """Write images of the classes a<b and dent, and predictions of the test split."""
    root, out = tmp_path / "parts", tmp_path / "run"
    for split, names in (("train", ("a<b/0", "dent/0")), ("test", ("a<b/1", "dent/1", "dent/2"))):
        for name in names:
            write_image(root / split / f"{name}.png", np.full((10, 10, 3), 90, np.uint8))
    for name, counts in MASKS.items():
        values = [value for value, count in counts.items() for _ in range(count)]
        mask = np.array(values + [0] * (100 - len(values)), np.uint8).reshape(10, 10)
        write_mask(out / f"predictions/{name}.png", mask)
    (out / "config.toml").write_text(CONFIG.format(root=root))
    return out


def page_of(run, *flags):
    report.main(["--config", str(run / "config.toml"), "--out", str(run), *flags])
    return (run / "report.html").read_text()


def cells(page):
    lines = re.findall(r"<tr>(.*?)</tr>", page)
    return [re.findall(r"<t[dh]>(.*?)</t[dh]>", line) for line in lines]


def test_areas_and_images_are_those_of_the_predictions(run):
    page = page_of(run)
    assert cells(page) == [
        ["class", "images", "mean area in these"],
        ["a&lt;b", "2", "7.50 %"],
        ["dent", "1", "20.00 %"],
        ["nothing", "1", "-"],
    ]
    captions = re.findall(r"<figcaption>(.*?)</figcaption>", page)
    assert captions == [
        "test_dent_1: dent 20.00 %, a&lt;b 10.00 %",
        "test_a&lt;b_1: a&lt;b 5.00 %",
        "test_dent_2: nothing",
    ]
    assert page.count("data:image/jpeg;base64,") == 3
    assert "not evaluated yet" in page
    assert "made without any label" in page


def test_results_stand_in_a_table_and_their_absence_is_said(run):
    (run / "results.jsonl").write_text("")
    assert "none of the images has a mask" in page_of(run)
    (run / "results.jsonl").write_text(
        '{"kind": "segmentation", "split": "test", "labels": "predicted", "threshold": null, '
        '"threshold_rule": "none", "iou": {"background": 90.0, "dent": 50.25}, "miou": 70.125, '
        '"fg_iou": 50.25}\n'
    )
    head, row = cells(page_of(run))[:2]
    assert dict(zip(head, row, strict=True))["dent"] == "50.25"


def test_fewer_images_are_shown_on_request_but_all_are_counted(run):
    page = page_of(run, "--count", "1")
    assert page.count("<figure>") == 1
    assert "largest defective area first (1 of 3)" in page
    assert cells(page)[1][1] == "2"
    with pytest.raises(SystemExit):
        report.main(["--out", str(run), "--count", "none"])
    with pytest.raises(ValueError, match="--count: expected 1 or more, got 0"):
        page_of(run, "--count", "0")


def test_pseudo_labels_stand_in_and_nothing_to_show_is_an_error(run):
    (run / "predictions").rename(run / "pseudo_labels")
    assert "pseudo labels, made with the labels" in page_of(run)
    with pytest.raises(FileNotFoundError, match="expected predictions/ or pseudo_labels/ of all 2"):
        page_of(run, "--split", "train")
