"""results.jsonl and the tables made of it."""

import csv
import json

import pytest

from configs import Config, fingerprint
from runfolder.results import append_results, origin, results_table, write_results_csv
from runfolder.run import Run


def result(**changes: object) -> str:
    row = {"kind": "cam", "split": "test", "labels": "given", "cam_type": "patchcam"}
    row |= {"threshold": 0.4321, "threshold_rule": "auto", "miou": 70.126, "fg_iou": 81.0}
    row |= {"iou": {"background": 90.0, "crack": 50.25}, "absent": ["fray"]}
    return json.dumps({**row, **changes}) + "\n"


def test_table_holds_the_latest_result_of_each_kind(tmp_path):
    index_mask = {"kind": "segmentation", "threshold": None, "threshold_rule": "none"}
    index_mask |= {"labels": "predicted", "iou": {"background": 95.0, "crack": 60.0, "fray": 7.0}}
    lines = [result(**index_mask), result(miou=1.0), result(labels="predicted")]
    lines += [result(kind="saliency", split="train", fg_iou=None), result()]
    (tmp_path / "results.jsonl").write_text("".join(lines))
    table = results_table(tmp_path / "results.jsonl").splitlines()
    assert len({len(line) for line in table}) == 1  # one width
    assert set(table.pop(1)) == set("| -")
    assert [" ".join(line.split()) for line in table] == [
        "| stage | split | labels | background | crack | fray | mIoU | fg IoU | threshold |",
        "| saliency | train | given | 90.00 | 50.25 | - | 70.13 | - | 0.432 (auto) |",
        "| cam (patchcam) | test | given | 90.00 | 50.25 | - | 70.13 | 81.00 | 0.432 (auto) |",
        "| cam (patchcam) | test | predicted | 90.00 | 50.25 | - | 70.13 | 81.00 | 0.432 (auto) |",
        "| segmentation | test | predicted | 95.00 | 60.00 | 7.00 | 70.13 | 81.00 | - |",
    ]


def test_table_of_data_without_masks_says_so(tmp_path):
    (tmp_path / "results.jsonl").touch()
    assert results_table(tmp_path / "results.jsonl").startswith("no results: none of the images")


@pytest.mark.parametrize("line", ["{", "[]", '{"kind": "cam"}', result(kind="cat").strip()])
def test_damaged_results_are_named_with_their_line(tmp_path, line):
    (tmp_path / "results.jsonl").write_text(result() + line + "\n")
    with pytest.raises(
        ValueError, match=r"results\.jsonl, line 2: expected a result of evaluation"
    ):
        results_table(tmp_path / "results.jsonl")


def test_figures_that_are_no_table_are_named(tmp_path):
    row = json.loads(result()) | {"iou": None}
    (tmp_path / "results.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match="line 1: expected a result of evaluation"):
        results_table(tmp_path / "results.jsonl")


def test_what_a_full_disk_left_of_a_last_line_is_no_result(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(result())
    whole = results_table(path)
    path.write_text(result() + result()[:40])
    assert results_table(path) == whole
    append_results(path, [json.loads(result())])
    assert path.read_text().count("\n") == 2
    assert results_table(path) == whole


def test_missing_results_say_how_to_get_them(tmp_path):
    expected = r"results\.jsonl: expected results\. Run evaluation\.py with --kind first\."
    with pytest.raises(FileNotFoundError, match=expected):
        results_table(tmp_path / "results.jsonl")


def test_rows_are_appended_and_no_rows_make_an_empty_file(tmp_path):
    path = tmp_path / "new/results.jsonl"
    append_results(path, [])
    assert path.read_text() == ""
    append_results(path, [{"miou": 1.5}])
    append_results(path, [{"miou": None}, {"miou": 2}])
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"miou": 1.5},
        {"miou": None},
        {"miou": 2},
    ]
    with pytest.raises(ValueError, match="not JSON compliant"):
        append_results(path, [{"miou": float("nan")}])


def test_the_csv_has_every_figure_of_the_latest_results(tmp_path):
    lines = [result(miou=1.0), result(threshold=[0.25, 0.5]), result(kind="saliency", auroc=87.5)]
    (tmp_path / "results.jsonl").write_text("".join(lines))
    write_results_csv(tmp_path / "results.jsonl", tmp_path / "results.csv")

    with (tmp_path / "results.csv").open(newline="") as file:
        saliency, cam = csv.DictReader(file)
    assert (saliency["kind"], saliency["auroc"], saliency["threshold"]) == (
        "saliency",
        "87.5",
        "0.4321",
    )
    assert (cam["miou"], cam["iou.crack"], cam["absent.0"]) == ("70.126", "50.25", "fray")
    assert (cam["threshold.0"], cam["threshold.1"], cam["threshold"]) == ("0.25", "0.5", "")


def test_a_result_says_where_it_comes_from(tmp_path):
    run = Run(tmp_path, Config())
    about = origin(run)
    assert about["config_sha"] == fingerprint(Config())
    assert about["date"].endswith("+00:00")
    assert set(origin()) == {"commit", "dirty", "date"}
