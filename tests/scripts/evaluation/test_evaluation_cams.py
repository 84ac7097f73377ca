"""evaluation.py --kind cam."""

import csv
import json

import numpy as np
import pytest

import evaluation
from configs import fingerprint, load
from configs.command_line import ROOT
from datasets.files import read_cam, write_cam, write_saliency
from runfolder.run import CamMeta, write_meta


def test_cams_are_scored_with_the_rule_of_the_config_auto_and_oracle(scored, capsys):
    scored.evaluate("--kind", "cam")
    of_classes, auto, oracle = scored.rows()
    assert set(of_classes) == set(auto) == set(oracle) == scored.keys | {"cam_type"}
    assert (of_classes["threshold_rule"], of_classes["miou"]) == ("agreement", 100)
    # Of the values 0.2 and 0.8 only 0.8 lies on what is salient, so the lowest threshold above 0.2;
    # no training image shows scratches, so these take that of all maps.
    assert of_classes["threshold"] == pytest.approx([51.5 / 255, 51.5 / 255, 127.5 / 255])
    config = load(ROOT / "configs/sample.toml", scored.sets)
    assert auto["config_sha"] == fingerprint(config)
    assert (auto["kind"], auto["split"], auto["labels"]) == ("cam", "test", "given")
    assert (auto["images"], auto["cam_type"], auto["absent"]) == (2, "fused", ["patches"])
    assert auto["iou"] == {"background": 100, "inclusion": 100, "scratches": 100}
    assert (auto["miou"], auto["fg_iou"], auto["fp"], auto["fn"]) == (100, 100, 0, 0)
    assert auto["threshold_rule"] == "auto"
    assert auto["threshold"] == pytest.approx((51 + 204) / 2 / 255)  # 0.2 and 0.8 of 255
    assert (oracle["threshold_rule"], oracle["threshold"]) == ("oracle", 0.2)  # float16(.2) < .2
    assert auto["date"].endswith("+00:00")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["class", "agreement", "auto", "0.500", "oracle", "0.200"] in lines
    assert ["patches", "-", "-", "-"] in lines
    assert ["mIoU", "100.00", "100.00", "100.00"] in lines


def test_auto_threshold_comes_from_training_whatever_is_scored(scored):
    for name in ("1t", "2t"):
        scored.write_cam(name, high=0.4)  # below the 0.5 that separates the training maps
    scored.evaluate("--kind", "cam", "--threshold-rule", "auto")
    (row,) = scored.rows()
    assert row["threshold"] == pytest.approx(0.5)
    assert row["iou"]["inclusion"] == 0


def test_each_class_is_cut_at_the_threshold_of_its_own_training_maps(scored, capsys):
    scored.write_cam("2", high=0.4)  # patches lie lower
    scored.write_cam("1t", high=0.4)  # inclusion in the test split: its training maps say 0.5
    scored.evaluate("--kind", "cam", "--threshold-rule", "class", "--detailed", "--bootstrap", "2")
    (row,) = scored.rows()
    assert row["threshold"] == pytest.approx([0.5, 0.3, 0.6], abs=0.01)  # the last of all maps
    assert (row["iou"]["inclusion"], row["iou"]["scratches"]) == (pytest.approx(100 / 3), 100)
    capsys.readouterr()
    evaluation.main(["--table", "--out", str(scored.out)])
    assert "0.500 0.300 0.600 (class)" in capsys.readouterr().out
    assert "threshold.2" in (scored.out / "results.csv").read_text().splitlines()[0]


def test_agreement_needs_saliency_maps_of_the_training_images(scored):
    (scored.out / "saliency/2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 are missing: 2.*Run make_saliency\.py first"):
        scored.evaluate("--kind", "cam", "--threshold-rule", "agreement")
    write_saliency(scored.out / "saliency/2.png", np.zeros((5, 4)))
    with pytest.raises(
        ValueError, match=r"CAMs of 2: expected a saliency map of the size \(4, 5\)"
    ):
        scored.evaluate("--kind", "cam", "--threshold-rule", "agreement")


def test_fixed_rule_takes_the_threshold_of_the_config(scored):
    scored.sets += ["pseudo_label.threshold_rule=fixed", "pseudo_label.threshold=0.7"]
    scored.evaluate("--kind", "cam")
    rules = ["fixed", "agreement", "auto", "oracle"]
    assert [row["threshold_rule"] for row in scored.rows()] == rules
    assert scored.rows()[0]["threshold"] == 0.7
    for path in (scored.out / "saliency").iterdir():
        path.unlink()
    (scored.out / "saliency").rmdir()  # nothing to agree with
    scored.evaluate("--kind", "cam")
    assert [row["threshold_rule"] for row in scored.rows()[4:]] == ["fixed", "auto", "oracle"]


def test_predicted_labels_and_other_types_have_their_folders(scored):
    for name in ("1t", "2t"):
        scored.write_cam(name, "fused/predicted", high=0.4)
        scored.write_cam(name, "patchcam/predicted", high=0.6)
    scored.evaluate("--kind", "cam", "--labels", "predicted", "--threshold-rule", "auto", "fixed")
    scored.evaluate(
        *("--kind", "cam", "--cam-type", "patchcam", "--labels", "predicted"),
        *("--threshold-rule", "oracle"),
    )
    auto, fixed, patchcam = scored.rows()
    assert auto["labels"] == patchcam["labels"] == "predicted"
    assert auto["threshold"] == pytest.approx(0.5)  # of the CAMs with given labels
    assert (auto["fg_iou"], fixed["threshold"]) == (0, 0.6)
    assert (patchcam["cam_type"], patchcam["fg_iou"]) == ("patchcam", 100)


def test_one_call_scores_every_combination_of_labels_types_and_splits(scored):
    for name in scored.masks:
        for folder in ("fused/predicted", "patchcam/given", "patchcam/predicted"):
            scored.write_cam(name, folder)
    scored.evaluate(
        *("--kind", "cam", "--cam-type", "patchcam", "fused", "--labels", "given", "predicted"),
        *("--split", "test", "train", "--threshold-rule", "fixed"),
    )
    places = [tuple(row[key] for key in ("labels", "cam_type", "split")) for row in scored.rows()]
    assert len(places) == len(set(places)) == 8
    assert places[:3] == [
        ("given", "patchcam", "test"),
        ("given", "patchcam", "train"),
        ("given", "fused", "test"),
    ]


def test_auto_threshold_without_given_cams_comes_from_the_scored_folder(scored):
    for name in scored.masks:
        scored.write_cam(name, "fused/predicted", high=0.4)
    for path in (scored.out / "cams/fused/given").iterdir():
        path.unlink()
    (scored.out / "cams/fused/given").rmdir()
    scored.evaluate("--kind", "cam", "--labels", "predicted", "--threshold-rule", "auto")
    assert scored.rows()[0]["threshold"] == pytest.approx((51 + 102) / 2 / 255)


def test_the_authors_cam_files_are_scored_in_a_run_too(scored):
    for name in ("1t", "2t"):
        (scored.out / f"cams/fused/given/{name}.npz").unlink()
        maps = {k: of_class.astype(np.float32) for k, of_class in scored.maps(name).items()}
        np.save(scored.out / f"cams/fused/given/{name}.npy", maps, allow_pickle=True)
    scored.evaluate("--kind", "cam", "--threshold-rule", "auto", "--detailed", "--bootstrap", "2")
    assert scored.rows()[0]["miou"] == 100


def test_detailed_scores_are_printed_and_kept(scored, capsys):
    flags = ("--kind", "cam", "--threshold-rule", "auto", "--detailed", "--bootstrap", "20")
    scored.evaluate(*flags)
    (row,) = scored.rows()
    found = row["detailed"]
    # The CAMs of the two test pictures are 0.8 inside the masks and 0.2 outside.
    assert found["pixel_accuracy"] == found["pixel_auroc"] == found["aupro"] == 100
    assert found["dice"] == [100, 100, None, 100]
    assert found["false_alarms"] is None and found["image_auroc"] is None
    assert found["miou_interval"] == [100, 100]
    assert "boundary F1 (2 px)" in capsys.readouterr().out

    scored.evaluate("--table")
    with (scored.out / "results.csv").open() as file:
        (written,) = csv.DictReader(file)
    assert float(written["miou"]) == row["miou"]
    assert float(written["detailed.pixel_accuracy"]) == 100
    assert written["detailed.dice.2"] == ""


@pytest.mark.parametrize("kind", ["saliency", "cam"])
def test_detailed_scores_of_maps_and_images_do_not_look_at_given_labels(scored, kind):
    """Pictures 3 and 4 are defect-free, but look the most like a defect."""
    for name in ("3", "4"):
        write_saliency(scored.out / f"saliency/{name}.png", np.ones((4, 5)))
    for name, score in (("1", 0.2), ("2", 0.3), ("3", 0.9), ("4", 0.8)):
        path = scored.write_cam(name, "fused/predicted")
        write_cam(path, read_cam(path)._replace(scores=np.array([score, 0, 0])))
    call = ("--kind", kind, "--split", "train", "--threshold-rule", "auto", "--detailed")
    scored.evaluate(*call)  # given labels empty the maps of 3 and 4
    if kind == "cam":
        call += ("--labels", "predicted")
    scored.sets += ["saliency.empty_defect_free=false"]
    scored.evaluate(*call)
    given, unseen = (row["detailed"] for row in scored.rows())
    figures = ("pixel_auroc", "aupro", "max_f1", "image_auroc", "false_alarms")
    assert {given[figure] for figure in figures} == {None}
    assert unseen["image_auroc"] == 0


def test_curve_prints_every_threshold(scored, capsys):
    scored.evaluate("--kind", "cam", "--curve")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["0.7000", "100.00", "100.00", "0.00", "0.00"] in lines
    assert sum(len(line) == 5 and line[0][:2] in ("0.", "1.") for line in lines) >= 101


def test_the_cams_that_become_pseudo_labels_are_scored_unless_others_are_named(scored):
    for name in scored.masks:
        scored.write_cam(name, "patchcam/given")
    scored.evaluate("--kind", "cam", "--threshold-rule", "fixed")
    scored.sets += ["pseudo_label.cam_type=patchcam"]
    scored.evaluate("--kind", "cam", "--threshold-rule", "fixed")
    scored.evaluate("--kind", "cam", "--cam-type", "fused", "--threshold-rule", "fixed")
    assert [row["cam_type"] for row in scored.rows()] == ["fused", "patchcam", "fused"]


@pytest.mark.parametrize(("cam_type", "labels"), [("patchcam", "given"), ("fused", "predicted")])
def test_cams_that_are_not_what_their_folder_says_are_refused(scored, cam_type, labels):
    write_meta(scored.out / "cams/fused/given", CamMeta(cam_type, labels, {}, "best.pt", {}))
    expected = (
        r"cams/fused/given/meta\.json: expected CAMs of type fused with labels given, got "
        rf"{cam_type} with labels {labels}\."
    )
    with pytest.raises(ValueError, match=expected):
        scored.evaluate("--kind", "cam")
    assert scored.rows() == []


def test_thresholds_found_once_are_kept_until_the_cams_are_others(scored, capsys):
    folder = scored.out / "cams/fused/given"
    write_meta(folder, CamMeta("fused", "given", {}, "best.pt", {"epoch": 1}))
    call = ["--kind", "cam", "--threshold-rule", "class", "auto"]
    counted = f"thresholds from 3 training maps in {folder}"
    scored.evaluate(*call)
    assert counted in capsys.readouterr().out
    kept = json.loads((scored.out / "thresholds.json").read_text())["fused"]["raw"]
    assert kept["class"] == pytest.approx([0.5, 0.5, 0.5])  # no training map of the last class
    assert kept["auto"] == pytest.approx([0.5, 0.5, 0.5])

    for name in ("1", "2"):
        scored.write_cam(name, high=0.4)  # without make_cams.py, which would say so
    scored.evaluate(*call)
    printed = capsys.readouterr().out
    assert counted not in printed
    assert "  class: inclusion 0.500, patches 0.500, scratches 0.500" in printed

    write_meta(folder, CamMeta("fused", "given", {}, "best.pt", {"epoch": 2}))
    scored.evaluate(*call)
    assert counted in capsys.readouterr().out
    found = [row["threshold"] for row in scored.rows() if row["threshold_rule"] == "auto"]
    assert found == pytest.approx([0.5, 0.5, (51 + 102) / 2 / 255])


def test_cams_of_one_value_everywhere_score_as_background(scored, capsys):
    for name in scored.masks:
        scored.write_cam(name, high=0.2)
    scored.evaluate("--kind", "cam", "--threshold-rule", "agreement", "auto")
    assert "all training maps are one value" in capsys.readouterr().out
    agreement, auto = scored.rows()
    assert (agreement["threshold"], auto["threshold"]) == ([1.0, 1.0, 1.0], 1.0)
    assert (agreement["fg_iou"], auto["fg_iou"]) == (0, 0)
    assert not (scored.out / "thresholds.json").exists()
