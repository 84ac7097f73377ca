"""What a report says is what lies in the files of its run."""

import html
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

import report
from reporting.curves import precision_recall_of
from reporting.gallery import fitting_side, kept
from reporting.images import mean_iou, pairs_of
from reporting.pictures import SIDES, class_colours, fitted


def text_of(page: str) -> str:
    """Return what a reader sees of a page, in one line."""
    body = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def page_of(run: Path, *flags: str) -> str:
    report.main(["--out", str(run), *flags])
    return (run / "report.html").read_text()


def entries_of(page: str) -> dict[str, dict]:
    """Return the images of the gallery by name, in order."""
    found = re.search(r'<script type="application/json" id="images">(.*?)</script>', page)
    return {one["name"]: one for one in json.loads(found[1])}


def row_of(run: Path, kind: str, key: str) -> dict:
    rows = map(json.loads, (run / "results.jsonl").read_text().splitlines())
    return next(row for row in rows if row["kind"] == kind and key in row)


def figures_of(page: str) -> dict[str, str]:
    """Return the figures that matter, by title."""
    pattern = r'figure-title">(.*?)</span><span class="figure-value">(.*?)</span>'
    return dict(re.findall(pattern, page))


def test_the_figures_that_matter_are_those_of_the_results(reported):
    page = (reported / "report.html").read_text()
    row = row_of(reported, "segmentation", "image")
    # By hand: 5 of 6 defective images get a mask, 1 of 2 good ones too.
    assert row["image"]["found"] == pytest.approx(100 * 5 / 6)
    assert figures_of(page) == {
        "Defects flagged": f"{row['image']['found']:.2f} %",
        "False alarms": f"{row['image']['false_alarms']:.2f} %",
        "mIoU": f"{row['miou']:.2f} %",
        "Minutes": "6.0",  # two epochs of 90 seconds, twice
    }
    bars = re.findall(r'<span class="bar-value">(.*?)</span>', page)
    assert bars == [f"{row['iou'][name]:.2f}" for name in list(row["iou"])[1:]]
    assert 'role="note"' not in page


def test_the_first_screen_says_what_was_found_how_good_and_where_it_fails(reported):
    text = text_of((reported / "report.html").read_text())
    assert "show a defect in 6 of 8 images and nothing in 2" in text
    assert "flags 5 of 6 images with a defect, and raises a false alarm in 1 of 2 good ones" in text
    # a|b: 180 true pixels, none of them marked, and 30 of sound surface that are.
    wrong = "86 % of its wrong pixels are true pixels of a|b that were left out."
    assert f"Weakest is a|b (IoU 0.00 %): {wrong}" in text
    assert "Defective images without a mask: 1. Good images with one: 1." in text
    assert "another class than their label: 1." in text
    # half an IoU of exactly 50 is not below it; pipe_as_dent and pipe_missed have 0.
    assert "In 2 of 6 defective images the IoU is below 50 %." in text


def test_the_six_most_telling_images_have_a_reason_each(reported):
    page = (reported / "report.html").read_text()
    told = re.findall(r"<figcaption><strong>(.*?)</strong>.*?data-name=\"(.*?)\"", page)
    assert len(told) == 6
    reasons = dict(told)
    assert reasons["Missed"] == "pipe_missed"
    assert reasons["False alarm"] == "good_alarm"
    assert reasons["Another class"] == "pipe_as_dent"
    assert reasons["Least sure"] == "dent_hit" or reasons["Typical"] == "dent_hit"


def test_the_table_has_a_row_open_for_each_stage_and_every_result(reported):
    page = (reported / "report.html").read_text()
    table = re.search(r"<caption>Against masks</caption>.*?</table>", page, re.DOTALL)[0]
    leads = re.findall(r'<th scope="row">([^<]*?)\s*(?=<)', table)
    assert leads == ["cam (fused)", "pseudo_label", "segmentation"]
    cells = [html.unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", table)]
    for line in (reported / "results.jsonl").read_text().splitlines():
        row = json.loads(line)
        for value in (row["miou"], *row["iou"].values()):
            assert f"{value:.2f}" in cells
    rest = re.search(r'<tbody class="rest">(.*?)</tbody>', table, re.DOTALL)[1]
    assert "(oracle)" in rest
    assert "0.400 (fixed)" in table.replace(rest, "")


def test_class_names_are_text_wherever_they_stand(reported):
    page = (reported / "report.html").read_text()
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") > 5
    assert "a|b" in page
    for path in (reported / "figures").glob("*.svg"):
        assert "<script>" not in path.read_text()


def test_images_carry_their_pictures_labels_and_order(reported):
    images = entries_of((reported / "report.html").read_text())
    assert set(images) == {
        "script_hit", "script_half", "pipe_as_dent", "pipe_missed", "both", "dent_hit",
        "good_right", "good_alarm",
    }  # fmt: skip
    panels = ["image", "saliency", "cam", "pseudo_label", "prediction", "truth"]
    assert all(list(one["pictures"]) == panels for one in images.values())
    assert images["script_half"]["order"]["iou"] == pytest.approx(50)
    assert images["both"]["order"]["iou"] == pytest.approx((100 + 100 * 60 / 90) / 2)
    assert images["good_right"]["order"]["iou"] is None
    assert images["good_alarm"]["order"]["iou"] == 0
    assert images["dent_hit"]["order"]["sure"] == pytest.approx(0.1)
    assert images["pipe_as_dent"]["order"]["contradiction"] == pytest.approx(-1.9)
    assert images["both"]["tags"] == ["class-0", "class-2", "several"]
    assert images["good_right"]["tags"] == ["defect-free"]
    assert images["good_alarm"]["tags"] == ["false-alarm", "contradicted", "defect-free"]
    assert images["pipe_missed"]["tags"] == ["class-1", "missed", "contradicted"]


def test_every_chart_that_the_data_allows_is_there_and_a_file(reported, without_masks):
    names = {
        "training_localiser", "training_segmentation", "threshold", "confusion",
        "precision_recall", "image_iou", "image_scores", "areas", "calibration",
    }  # fmt: skip
    for run, missing in (
        (reported, set()),
        (without_masks, {"threshold", "confusion", "image_iou"}),
    ):
        page = (run / "report.html").read_text()
        files = {path.name for path in (run / "figures").iterdir()}
        assert files == {f"{n}.{end}" for n in names - missing for end in ("svg", "pdf")}
        assert page.count('<svg role="img"') == len(names - missing)
        assert "#123456" not in page  # ink
        assert all((run / "figures" / name).stat().st_size > 1000 for name in files)


def test_the_chosen_threshold_gives_the_result_of_the_table(reported):
    text = text_of((reported / "report.html").read_text())
    rows = map(json.loads, (reported / "results.jsonl").read_text().splitlines())
    by_rule = {row["threshold_rule"]: row for row in rows if row["kind"] == "cam"}
    fixed, oracle = by_rule["fixed"], by_rule["oracle"]
    assert f"the chosen threshold, 0.400 (rule fixed), which gives {fixed['miou']:.2f} %" in text
    assert f"of one threshold for all classes is {oracle['miou']:.2f} %" in text


def test_without_masks_the_figures_are_of_whole_images(without_masks):
    page = (without_masks / "report.html").read_text()
    assert list(figures_of(page)) == ["Defects flagged", "False alarms", "Minutes"]
    text = text_of(page)
    assert "F1 of whole images per class in %" in text
    assert "none of the images has a mask" in text
    assert "Weakest is a|b (F1 0.00 %): missed in 2 of 2 images" in text
    assert "worst IoU" not in text
    assert all("truth" not in one["pictures"] for one in entries_of(page).values())


@pytest.fixture
def run(reported, tmp_path, monkeypatch):
    """Return a copy of the reported run that a test may change; its charts are not drawn anew."""
    monkeypatch.setattr("reporting.page.charts_of", lambda *_: [])
    return Path(shutil.copytree(reported, tmp_path / "run"))


def test_outdated_results_are_told(run, capsys):
    lines = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    for line in lines:
        line["miou"] += 1 if line["kind"] == "segmentation" else 0
    (run / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    miou = row_of(run, "segmentation", "image")["miou"]
    expected = f"results.jsonl has a mIoU of {miou:.2f} %, the files of this run give"
    assert expected in text_of(page_of(run))
    assert f"warning: {expected}" in capsys.readouterr().out


def test_doubts_stand_above_the_figures(run):
    lines = (run / "segmentation/log.jsonl").read_text()
    line = json.loads(lines.splitlines()[-1]) | {"epoch": 3, "val": {"foreground": 12.3}}
    (run / "segmentation/log.jsonl").write_text(lines + json.dumps(line) + "\n")

    page = page_of(run)

    told = text_of(page)
    assert "To be doubted: the masks of held-out images" in told
    assert told.index("foreground IoU of 12 %") < told.index("Defects flagged")


def test_figures_that_were_not_scored_are_computed_the_same(run):
    row = row_of(run, "segmentation", "image")
    (run / "results.jsonl").unlink()
    page = page_of(run)
    assert figures_of(page)["mIoU"] == f"{row['miou']:.2f} %"
    assert figures_of(page)["Defects flagged"] == f"{row['image']['found']:.2f} %"
    assert "has no result of segmentation on test yet" in text_of(page)


def test_the_time_is_that_of_all_stages_where_it_is_known(run):
    (run / "stages").mkdir()
    (run / "stages/seconds.json").write_text('{"train": 600, "cams": 60}')
    page = page_of(run)
    assert figures_of(page)["Minutes"] == "11"
    assert "all stages; train 10, cams 1.0" in text_of(page)
    (run / "stages/predictions.done").touch()  # of an older version, which did not time it
    assert "train 10, cams 1.0; no other stage was timed" in text_of(page_of(run))
    (run / "stages/seconds.json").write_text("[]")
    with pytest.raises(ValueError, match=r"seconds\.json: expected seconds by stage, got"):
        page_of(run)


def test_fewer_images_are_shown_on_request_but_all_are_counted(run):
    page = page_of(run, "--count", "2")
    assert list(entries_of(page)) == ["pipe_missed", "good_alarm"] or len(entries_of(page)) == 2
    assert "2 of 8 images are here" in text_of(page)
    assert "show a defect in 6 of 8 images" in text_of(page)
    with pytest.raises(ValueError, match="--count: expected 1 or more, got 0"):
        page_of(run, "--count", "0")


def test_pseudo_labels_stand_in_and_nothing_to_show_is_an_error(run):
    shutil.rmtree(run / "predictions")
    text = text_of(page_of(run))
    assert "pseudo labels, made with the labels of the images" in text
    assert "Defects flagged" not in text  # their labels were given
    assert "label contradicted" not in text
    with pytest.raises(FileNotFoundError, match="expected predictions/ or pseudo_labels/ of all 3"):
        page_of(run, "--split", "train")


def test_a_damaged_log_is_named_with_its_line(run):
    (run / "stac/log.jsonl").write_text('{"epoch": 1}\n')
    with pytest.raises(ValueError, match=r"log\.jsonl, line 1: expected an epoch of a training"):
        page_of(run)


def test_runs_are_compared_with_the_first(reported, make_run, tmp_path):
    better = make_run(better=True)
    report.main([str(reported), str(better), "--out", str(tmp_path)])
    page = (tmp_path / "comparison.html").read_text()
    first, second = (row_of(run, "segmentation", "image") for run in (reported, better))
    gain = second["miou"] - first["miou"]
    assert f"{second['miou']:.2f} ({gain:+.2f})" in page
    images = entries_of(page)
    assert list(images)[:3] == ["good_alarm", "pipe_as_dent", "pipe_missed"]  # by 100 each
    assert images["script_half"]["order"] == {"change": -50, "gain": -50, "loss": 50}
    assert list(images["both"]["pictures"]) == ["image", "truth", "run0", "run1"]
    assert "better" in images["both"]["tags"]
    assert "<script>alert" not in page
    assert "data.root" not in text_of(page)


def test_runs_that_cannot_be_compared_are_refused(reported, tmp_path):
    with pytest.raises(ValueError, match="expected two or more runs to compare, got one"):
        report.main([str(reported)])
    with pytest.raises(FileNotFoundError, match="expected a run folder, got none"):
        report.main([str(reported), str(tmp_path)])
    with pytest.raises(ValueError, match="--generators: expected no such flag with runs to comp"):
        report.main([str(reported), str(reported), "--generators"])
    other = Path(shutil.copytree(reported, tmp_path / "other"))
    table = (reported.parent / "parts/table.csv").read_text().replace("dent,mask", "dint,mask")
    (tmp_path / "table.csv").write_text(table)
    config = (other / "config.toml").read_text()
    (other / "config.toml").write_text(config.replace('"table.csv"', f'"{tmp_path}/table.csv"'))
    (other / "results.jsonl").unlink()
    scores = (other / "predictions/scores.csv").read_text()
    (other / "predictions/scores.csv").write_text(scores.replace("dent\n", "dint\n", 1))
    with pytest.raises(ValueError, match="expected the same classes in all"):
        report.main([str(reported), str(other)])


def test_pages_stay_within_their_size(reported, monkeypatch):
    sizes = iter([1000, 1000, 100])

    class Looked:
        def __init__(self, size):
            self.pictures = {"image": bytes(size)}

    monkeypatch.setattr("reporting.gallery.MAX_BYTES", 1000)
    monkeypatch.setattr("reporting.gallery.look", lambda *_: Looked(next(sizes)))
    assert fitting_side(None, "segmentation", ["a"]) == SIDES[2]
    assert tuple(sorted(SIDES, reverse=True)) == SIDES


def test_images_beyond_the_size_are_left_out_last(monkeypatch):
    class Image:
        extra, missed, iou, area = [], [], None, 0.0

        def __init__(self, name, iou):
            self.record, self.iou = type("R", (), {"name": name}), iou
            self.pictures = {"image": bytes(300)}  # 400 letters

    facts = type("F", (), {"kind": "segmentation"})()
    facts.images = [Image("a", 90), Image("b", 10), Image("c", 50)]
    monkeypatch.setattr("reporting.gallery.MAX_BYTES", 800)
    assert kept(facts, None) == [1, 2]
    assert kept(facts, 1) == [1]


def test_the_iou_of_an_image_is_the_mean_of_its_defect_classes():
    truth = np.array([[0, 1, 1, 2], [255, 0, 0, 2]], np.uint8)
    mask = np.array([[0, 1, 0, 2], [1, 255, 3, 2]], np.uint8)
    pairs = pairs_of(truth, mask)
    assert pairs == {(0, 0): 2, (1, 1): 1, (1, 0): 1, (2, 2): 2, (0, 3): 1}
    assert mean_iou(pairs) == pytest.approx((50 + 100 + 0) / 3)
    assert mean_iou({(0, 0): 5}) is None


def test_precision_and_recall_at_each_score():
    scores, truth = np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, False, True, False])
    recall, precision = precision_recall_of(truth, scores)
    np.testing.assert_allclose(recall, [0, 50, 100, 100])
    np.testing.assert_allclose(precision, [100, 100, 100 * 2 / 3, 50])


def test_colours_differ_and_pictures_keep_their_aspect():
    assert len(set(class_colours(60))) == 60
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in class_colours(60))
    assert fitted((400, 100), 200) == (200, 50)
    assert fitted((30, 20), 200) == (30, 20)
    assert fitted((1, 1000), 100) == (1, 100)
