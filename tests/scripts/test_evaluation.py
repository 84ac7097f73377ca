"""Every call of the script, on a small run and on the authors' published CAMs."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import evaluation
from configs import fingerprint, load
from datasets.files import (
    Cam,
    read_cam,
    read_mask,
    write_cam,
    write_image,
    write_mask,
    write_saliency,
)
from released.arrays import read_released_cam
from scoring.confusion import ConfusionMatrix, ThresholdSweep
from runs.results import results_table
from scoring.thresholds import seed_mask

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = Path(os.environ.get("STAC_SHARED", ROOT.parent / "shared")) / "published_cams"
needs_published = pytest.mark.skipif(
    not PUBLISHED.is_dir(), reason="no published_cams; set STAC_SHARED to the folder that holds it"
)

# A run on three training and two test pictures of 4 x 5 pixels in the NEU-Seg layout. Test
# image 1t: inclusion in 8 pixels; 2t: inclusion in 4 pixels, scratches in 4. No patches in test.
NAMES = ("background", "inclusion", "patches", "scratches")
KEYS = {"kind", "split", "images", "labels", "threshold", "threshold_rule", "iou", "miou", "fg_iou"}
KEYS |= {"fp", "fn", "config_sha", "commit", "date", "absent"}
SALIENCY_KEYS = {"auroc", "ap", "max_f", "best_fg_iou", "best_fg_threshold", "mae", "recall"}
SALIENCY_KEYS |= {"false_alarm", "defect_free_images"}


def columns(*values: int) -> np.ndarray:
    return np.repeat(np.array([values], np.uint8), 4, axis=0)


MASKS = {
    "1": columns(1, 1, 0, 0, 0),
    "2": columns(0, 2, 2, 2, 0),
    "3": columns(0, 0, 0, 0, 0),
    "1t": columns(1, 1, 0, 0, 0),
    "2t": columns(1, 0, 0, 0, 3),
}


class Run:
    def __init__(self, folder: Path) -> None:
        self.data, self.out = folder / "data", folder / "run"
        for name, mask in MASKS.items():
            part = "test" if name.endswith("t") else "training"
            write_image(self.data / f"images/{part}/{name[0]}.jpg", np.zeros((4, 5, 3), np.uint8))
            write_mask(self.data / f"annotations/{part}/{name[0]}.png", mask)
            self.write_cam(name)
            write_saliency(self.out / f"saliency/{name}.png", np.where(mask, 200, 50) / 255)
        types = 'cam.types=["patchcam","fused"]'
        self.sets = [f"data.root={self.data}", "data.source=neu_seg", types]

    def write_cam(self, name: str, folder: str = "cams", high: float = 0.8) -> Path:
        classes = [k for k in range(3) if (MASKS[name] == k + 1).any()]
        maps = [np.where(MASKS[name] == k + 1, high, 0.2) for k in classes]
        cam = np.stack(maps) if maps else np.zeros((0, 4, 5))
        path = self.out / folder / f"{name}.npz"
        write_cam(path, Cam(cam, np.array(classes, np.int64), np.zeros(3)))
        return path

    def evaluate(self, *flags: str) -> None:
        evaluation.main([*flags, "--out", str(self.out), "--set", *self.sets])

    def rows(self) -> list[dict]:
        path = self.out / "results.jsonl"
        return (
            [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        )


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path)


def test_cams_are_scored_with_the_rule_of_the_config_auto_and_oracle(run, capsys):
    run.evaluate("--kind", "cam")
    of_classes, auto, oracle = run.rows()
    assert set(of_classes) == set(auto) == set(oracle) == KEYS | {"cam_type"}
    assert (of_classes["threshold_rule"], of_classes["miou"]) == ("agreement", 100)
    # Of the values 0.2 and 0.8 only 0.8 lies on what is salient, so the lowest threshold above 0.2;
    # no training image shows scratches, so these take that of all maps.
    assert of_classes["threshold"] == pytest.approx([51.5 / 255, 51.5 / 255, 127.5 / 255])
    config = load(ROOT / "configs/sample.toml", run.sets)
    assert auto["config_sha"] == fingerprint(config)
    assert (auto["kind"], auto["split"], auto["labels"]) == ("cam", "test", "given")
    assert (auto["images"], auto["cam_type"], auto["absent"]) == (2, "patchcam", ["patches"])
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


def test_auto_threshold_comes_from_training_whatever_is_scored(run):
    for name in ("1t", "2t"):
        run.write_cam(name, high=0.4)  # below the 0.5 that separates the training maps
    run.evaluate("--kind", "cam", "--threshold-rule", "auto")
    (row,) = run.rows()
    assert row["threshold"] == pytest.approx(0.5)
    assert row["iou"]["inclusion"] == 0


def test_each_class_is_cut_at_the_threshold_of_its_own_training_maps(run, capsys):
    run.write_cam("2", high=0.4)  # patches lie lower
    run.write_cam("1t", high=0.4)  # inclusion in the test split: its training maps say 0.5
    run.evaluate("--kind", "cam", "--threshold-rule", "class", "--detailed", "--bootstrap", "2")
    (row,) = run.rows()
    assert row["threshold"] == pytest.approx([0.5, 0.3, 0.6], abs=0.01)  # the last of all maps
    assert (row["iou"]["inclusion"], row["iou"]["scratches"]) == (pytest.approx(100 / 3), 100)
    capsys.readouterr()
    evaluation.main(["--table", "--out", str(run.out)])
    assert "0.500 0.300 0.600 (class)" in capsys.readouterr().out
    assert "threshold.2" in (run.out / "results.csv").read_text().splitlines()[0]


def test_saliency_knows_no_thresholds_of_classes(run):
    with pytest.raises(ValueError, match="oracle with --kind saliency, .* got agreement"):
        run.evaluate("--kind", "saliency", "--threshold-rule", "auto", "agreement")


def test_agreement_needs_saliency_maps_of_the_training_images(run):
    (run.out / "saliency/2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 are missing: 2.*Run make_saliency\.py first"):
        run.evaluate("--kind", "cam", "--threshold-rule", "agreement")
    write_saliency(run.out / "saliency/2.png", np.zeros((5, 4)))
    with pytest.raises(ValueError, match=r"2\.npz: expected a saliency map of the size \(4, 5\)"):
        run.evaluate("--kind", "cam", "--threshold-rule", "agreement")


def test_fixed_rule_takes_the_threshold_of_the_config(run):
    run.sets += ["pseudo_label.threshold_rule=fixed", "pseudo_label.threshold=0.7"]
    run.evaluate("--kind", "cam")
    rules = ["fixed", "agreement", "auto", "oracle"]
    assert [row["threshold_rule"] for row in run.rows()] == rules
    assert run.rows()[0]["threshold"] == 0.7
    for path in (run.out / "saliency").iterdir():
        path.unlink()
    (run.out / "saliency").rmdir()  # nothing to agree with
    run.evaluate("--kind", "cam")
    assert [row["threshold_rule"] for row in run.rows()[4:]] == ["fixed", "auto", "oracle"]


def test_predicted_labels_and_other_types_have_their_folders(run):
    for name in ("1t", "2t"):
        run.write_cam(name, "cams_predicted", high=0.4)
        run.write_cam(name, "cams_fused_predicted", high=0.6)
    run.evaluate("--kind", "cam", "--labels", "predicted", "--threshold-rule", "auto", "fixed")
    run.evaluate(
        *("--kind", "cam", "--cam-type", "fused", "--labels", "predicted"),
        *("--threshold-rule", "oracle"),
    )
    auto, fixed, fused = run.rows()
    assert auto["labels"] == fused["labels"] == "predicted"
    assert auto["threshold"] == pytest.approx(0.5)  # of cams/, made with the given labels
    assert (auto["fg_iou"], fixed["threshold"]) == (0, 0.6)
    assert (fused["cam_type"], fused["fg_iou"]) == ("fused", 100)


def test_auto_threshold_without_given_cams_comes_from_the_scored_folder(run):
    for name in MASKS:
        run.write_cam(name, "cams_predicted", high=0.4)
    for path in (run.out / "cams").iterdir():
        path.unlink()
    (run.out / "cams").rmdir()
    run.evaluate("--kind", "cam", "--labels", "predicted", "--threshold-rule", "auto")
    assert run.rows()[0]["threshold"] == pytest.approx((51 + 102) / 2 / 255)


def test_the_authors_cam_files_are_scored_in_a_run_too(run):
    for name in ("1t", "2t"):
        (run.out / f"cams/{name}.npz").unlink()
        maps = {
            k: np.where(MASKS[name] == k + 1, 0.8, 0.2).astype(np.float32)
            for k in range(3)
            if (MASKS[name] == k + 1).any()
        }
        np.save(run.out / f"cams/{name}.npy", maps, allow_pickle=True)
    run.evaluate("--kind", "cam", "--threshold-rule", "auto", "--detailed", "--bootstrap", "2")
    assert run.rows()[0]["miou"] == 100


def test_saliency_is_painted_with_the_first_class_of_the_label(run):
    run.evaluate("--kind", "saliency", "--threshold-rule", "auto")
    (row,) = run.rows()
    assert set(row) == KEYS | SALIENCY_KEYS
    assert row["threshold"] == pytest.approx(125 / 255)  # maps hold 50 and 200
    # Inclusion: truth 8 + 4 pixels, painted 8 + 8. Scratches: truth 4, painted 0.
    assert row["iou"] == pytest.approx({"background": 100, "inclusion": 75, "scratches": 0})
    assert row["miou"] == pytest.approx(175 / 3)
    assert row["fp"] == pytest.approx((0 + 25 + 0) / 3)
    assert row["fn"] == pytest.approx((0 + 0 + 100) / 3)
    assert row["fg_iou"] == 100


def test_saliency_is_scored_without_classes_too(run, capsys):
    # Test image 1t: of its 8 defect pixels 4 have .8 and 4 have .4, the background .2.
    saliency = np.where(columns(1, 0, 0, 0, 0), 204, np.where(columns(1, 1, 0, 0, 0), 102, 51))
    write_saliency(run.out / "saliency/1t.png", saliency / 255)
    run.sets += ["pseudo_label.threshold=0.4"]
    run.evaluate("--kind", "saliency", "--threshold-rule", "fixed", "oracle")
    fixed, oracle = run.rows()
    # 2t: defects 200 / 255 in 8 pixels, background 50 / 255 in 12, as 51 / 255 in 12 of 1t.
    distance = 12 * 51 + 4 * 51 + 4 * 153 + 12 * 50 + 8 * 55  # in 1 / 255
    for row in (fixed, oracle):
        assert (row["auroc"], row["ap"], row["max_f"]) == pytest.approx((100, 100, 100))
        assert row["mae"] == pytest.approx(100 * distance / 255 / 40)
        assert (row["best_fg_iou"], row["best_fg_threshold"]) == (100, pytest.approx(51 / 255))
        assert (row["false_alarm"], row["defect_free_images"]) == (None, 0)
    assert fixed["recall"] == pytest.approx({"inclusion": 800 / 12, "scratches": 100})
    assert fixed["fg_iou"] == pytest.approx(1200 / 16)
    assert oracle["recall"] == {"inclusion": 100, "scratches": 100}
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    start = lines.index("recall inclusion 66.67 100.00")
    assert lines[start:] == [
        "recall inclusion 66.67 100.00",
        "recall patches - -",
        "recall scratches 100.00 100.00",
        "false alarm - -",
        "defect-free images 0",
        "AUROC 100.00",
        "AP 100.00",
        "max F 100.00",
        f"MAE {100 * distance / 255 / 40:.2f}",
        "best fg IoU 100.00",
        "its threshold 0.200",
    ]


def test_saliency_of_a_split_without_defects_has_a_false_alarm_only(run, capsys):
    for name in ("1t", "2t"):
        write_mask(run.data / f"annotations/test/{name[0]}.png", columns(0, 0, 0, 0, 0))
    run.evaluate("--kind", "saliency", "--threshold-rule", "auto")
    (row,) = run.rows()
    # Of 20 pixels 8 are above in each: the map knows of defects that the mask has not.
    assert (row["false_alarm"], row["defect_free_images"]) == (pytest.approx(40), 2)
    nothing = ("fg_iou", "auroc", "ap", "max_f", "mae", "best_fg_iou", "best_fg_threshold")
    assert {row[key] for key in nothing} == {None}
    assert (row["recall"], row["miou"]) == ({}, 100)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert {"false alarm 40.00", "AUROC -", "max F -", "its threshold -"} <= set(lines)


def test_each_mask_and_map_is_opened_once_to_be_scored(run, monkeypatch):
    run.evaluate("--kind", "cam")  # writes labels.csv, which opens masks
    opened = []
    for reader in ("read_truth", "read_saliency"):
        read = getattr(evaluation, reader)

        def count(source, *args, reader=reader, read=read):
            opened.append((reader, getattr(source, "name", source)))
            return read(source, *args)

        monkeypatch.setattr(evaluation, reader, count)
    run.evaluate("--kind", "saliency", "--threshold-rule", "fixed", "oracle")
    assert sorted(opened) == [
        *(("read_saliency", f"{name}.png") for name in ("1t", "2t")),
        *(("read_truth", name) for name in ("1t", "2t")),
    ]


def test_saliency_of_defect_free_images_counts_as_false_alarm_alone(run):
    write_saliency(run.out / "saliency/3.png", np.ones((4, 5)))
    run.evaluate("--kind", "saliency", "--split", "train", "--threshold-rule", "auto")
    (row,) = run.rows()
    assert row["threshold"] == pytest.approx(125 / 255)
    assert (row["images"], row["miou"], row["absent"]) == (3, 100, ["scratches"])
    assert (row["auroc"], row["best_fg_iou"]) == pytest.approx((100, 100))
    assert (row["false_alarm"], row["defect_free_images"]) == (100, 1)


def test_images_whose_masks_were_used_are_not_scored_and_the_row_says_so(run, capsys):
    meta = {"masked": ["1"], "seen_defect_free": ["3"]}
    (run.out / "saliency/meta.json").write_text(json.dumps(meta))
    run.sets += ["refinement.rounds=1", "refinement.masks=1"]
    run.evaluate("--kind", "saliency", "--split", "train")
    run.evaluate("--kind", "cam", "--split", "train")
    run.sets += ["saliency.empty_defect_free=false"]
    run.evaluate("--kind", "saliency", "--split", "train")
    rows = [run.rows()[i] for i in (0, 2, 5)]  # the first of each call
    assert [row["images"] for row in rows] == [2, 2, 1]
    assert [row["masks_used"] for row in rows] == [1, 1, 1]
    out = capsys.readouterr().out
    assert "1 images that the saliency maps were learnt from are not scored." in out
    run.evaluate("--kind", "saliency", "--split", "test", "--threshold-rule", "auto")
    assert "learnt from" not in capsys.readouterr().out
    assert "given + 1 masks" in results_table(run.out / "results.jsonl")


def test_pseudo_labels_are_scored_on_train_with_255_as_background(run):
    for name in ("1", "2", "3"):
        write_mask(run.out / f"pseudo_labels/{name}.png", MASKS[name])
    uncertain = columns(1, 255, 255, 0, 0)
    write_mask(run.out / "pseudo_labels/1.png", uncertain)
    run.evaluate("--kind", "pseudo_label")
    (row,) = run.rows()
    assert set(row) == KEYS
    assert (row["split"], row["labels"], row["images"]) == ("train", "given", 3)
    assert (row["threshold"], row["threshold_rule"]) == (None, "none")
    # Inclusion: 4 of 8 pixels. Background: 40 pixels, 4 too many.
    assert row["iou"] == pytest.approx({"background": 4000 / 44, "inclusion": 50, "patches": 100})


def test_predictions_of_the_network_are_scored(run):
    for name in ("1t", "2t"):
        write_mask(run.out / f"predictions/{name}.png", columns(1, 1, 0, 0, 2))
    run.evaluate("--kind", "segmentation")
    (row,) = run.rows()
    assert (row["kind"], row["labels"], row["absent"]) == ("segmentation", "predicted", [])
    # Inclusion: truth 12, predicted 16, both 12. Patches: 8 predicted, none there.
    assert row["iou"]["inclusion"] == pytest.approx(75)
    assert row["iou"]["patches"] == row["iou"]["scratches"] == 0


def test_detailed_scores_are_printed_and_kept(run, capsys):
    flags = ("--kind", "cam", "--threshold-rule", "auto", "--detailed", "--bootstrap", "20")
    run.evaluate(*flags)
    (row,) = run.rows()
    found = row["detailed"]
    # The CAMs of the two test pictures are 0.8 inside the masks and 0.2 outside.
    assert found["pixel_accuracy"] == found["pixel_auroc"] == found["aupro"] == 100
    assert found["dice"] == [100, 100, None, 100]
    assert found["false_alarms"] is None and found["image_auroc"] is None
    assert found["miou_interval"] == [100, 100]
    assert "boundary F1 (2 px)" in capsys.readouterr().out

    run.evaluate("--table")
    with (run.out / "results.csv").open() as file:
        (written,) = csv.DictReader(file)
    assert float(written["miou"]) == row["miou"]
    assert float(written["detailed.pixel_accuracy"]) == 100
    assert written["detailed.dice.2"] == ""


@pytest.mark.parametrize("kind", ["saliency", "cam"])
def test_detailed_scores_of_images_do_not_look_at_given_labels(run, kind):
    """Picture 3 is defect-free, but looks the most like a defect."""
    write_saliency(run.out / "saliency/3.png", np.ones((4, 5)))
    for name, score in (("1", 0.2), ("2", 0.3), ("3", 0.9)):
        path = run.write_cam(name)
        write_cam(path, read_cam(path)._replace(scores=np.array([score, 0, 0])))
    run.evaluate("--kind", kind, "--split", "train", "--threshold-rule", "auto", "--detailed")
    (row,) = run.rows()
    assert row["detailed"]["image_auroc"] == 0
    assert row["detailed"]["false_alarms"] is None


def test_masks_are_scored_in_detail_without_map_scores(run):
    for name in ("1t", "2t"):
        write_mask(run.out / f"predictions/{name}.png", columns(1, 1, 0, 0, 0))
    run.evaluate("--kind", "segmentation", "--detailed")
    (row,) = run.rows()
    # 2t: a column of inclusion too many, a column of scratches missed.
    assert row["detailed"]["pixel_accuracy"] == pytest.approx(100 * 32 / 40)
    assert "aupro" not in row["detailed"]


def test_curve_prints_every_threshold(run, capsys):
    run.evaluate("--kind", "cam", "--curve")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["0.7000", "100.00", "100.00", "0.00", "0.00"] in lines
    assert sum(len(line) == 5 and line[0][:2] in ("0.", "1.") for line in lines) >= 101


def test_data_without_masks_is_no_error(run, capsys):
    run.evaluate("--kind", "cam")  # writes labels.csv
    (run.out / "results.jsonl").unlink()
    for path in (run.data / "annotations/test").iterdir():
        path.unlink()
    run.evaluate("--kind", "cam")
    assert "neu_seg, test: no masks, so there is nothing to score" in capsys.readouterr().out
    assert run.rows() == []
    run.evaluate("--table")
    assert "no results: none of the images has a mask" in capsys.readouterr().out


def test_images_without_mask_are_named(run, capsys):
    run.evaluate("--kind", "cam")
    (run.data / "annotations/test/2.png").unlink()
    run.evaluate("--kind", "cam", "--threshold-rule", "auto")
    assert "1 images have no mask, not scored: 2t." in capsys.readouterr().out
    assert run.rows()[-1]["images"] == 1


def test_masks_of_defect_free_images_alone_are_refused(tmp_path):
    root, out = tmp_path / "parts", tmp_path / "run"
    for name in ("scratch/1", "scratch/2", "good/1", "good/2"):
        for split in ("train", "test"):
            write_image(root / split / f"{name}.png", np.zeros((4, 5, 3), np.uint8))
            write_mask(out / f"predictions/{split}_{name.replace('/', '_')}.png", columns(0, 0))
    write_image(root / "masks/test/scratch/1_mask.png", columns(0, 255))  # of another name
    config = ["data.source=folder", f"data.root={root}"]
    message = (
        r"folder, test: expected masks .* got none of 2: test_scratch_1, test_scratch_2\. "
        r"Add masks below .*parts/masks, or correct"
    )
    with pytest.raises(ValueError, match=message):
        evaluation.main(["--kind", "segmentation", "--out", str(out), "--set", *config])
    assert not (out / "results.jsonl").exists()


def test_missing_maps_are_collected_and_nothing_is_appended(run):
    for kind, maker in (("segmentation", "segmentation/infer"), ("pseudo_label", "make_pseudo")):
        with pytest.raises(FileNotFoundError, match=rf"are missing: .* Run {maker}"):
            run.evaluate("--kind", kind, "--split", "test")
    for name in ("1t", "2t"):
        (run.out / f"saliency/{name}.png").unlink()
    with pytest.raises(
        FileNotFoundError, match="each of 2 images, 2 are missing: 1t, 2t. Run make_"
    ):
        run.evaluate("--kind", "saliency")
    assert run.rows() == []


def test_a_map_of_another_size_is_named(run):
    write_mask(run.out / "predictions/1t.png", np.zeros((4, 6), np.uint8))
    write_mask(run.out / "predictions/2t.png", np.zeros((4, 5), np.uint8))
    message = (
        r"predictions.1t\.png against .*test.1\.png: "
        r"expected the size \(H, W\) of its mask, \(4, 5\), got \(4, 6\)"
    )
    with pytest.raises(ValueError, match=message):
        run.evaluate("--kind", "segmentation")
    write_saliency(run.out / "saliency/2t.png", np.zeros((5, 4)))
    with pytest.raises(ValueError, match=r"2t\.png against .*2\.png: expected .* got \(5, 4\)"):
        run.evaluate("--kind", "saliency")
    assert run.rows() == []


def test_a_wrong_class_count_is_named(run):
    cam = Cam(np.zeros((1, 4, 5)), np.array([3]), np.zeros(4))
    write_cam(run.out / "cams/2t.npz", cam)
    with pytest.raises(ValueError, match=r"2t\.npz .*: expected class indices 0\.\.2, got \[3\]"):
        run.evaluate("--kind", "cam")
    write_mask(run.out / "predictions/1t.png", columns(4, 0, 0, 0, 0))
    write_mask(run.out / "predictions/2t.png", columns(0, 0, 0, 0, 0))
    with pytest.raises(ValueError, match=r"1t\.png: expected mask values 0\.\.3 and 255, got 4"):
        run.evaluate("--kind", "segmentation")
    assert run.rows() == []


def test_maps_of_one_value_everywhere_score_as_background(run, capsys):
    for name in MASKS:
        write_saliency(run.out / f"saliency/{name}.png", np.full((4, 5), 0.8))
    run.evaluate("--kind", "saliency", "--threshold-rule", "auto")
    assert "all training maps are one value" in capsys.readouterr().out
    (row,) = run.rows()
    assert row["threshold"] == 1.0
    assert row["fg_iou"] == 0
    assert row["iou"].pop("background") > 0
    assert set(row["iou"].values()) == {0}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "expected one of --kind, --table and --predict_dir"),
        (["--kind", "cam", "--table"], "expected one of --kind, --table and --predict_dir"),
        (["--kind", "cam", "--t", "0"], "t: expected no such flag with --kind"),
        (["--kind", "saliency", "--labels", "given"], "labels: expected no such flag with --kind"),
        (["--kind", "segmentation", "--curve"], "curve: expected no such flag with --kind"),
        (["--kind", "cam", "--bootstrap", "5"], "bootstrap: expected no such flag with --kind"),
        (["--kind", "cam", "--detailed", "--bootstrap", "0"], "expected 1 or more draws, got 0"),
        (["--table", "--type", "npy"], "type: expected no such flag with --table"),
        (
            ["--predict_dir", "x", "--split", "val"],
            "split: expected no such flag with --predict_dir",
        ),
        (["--predict_dir", "x", "--gt_dir", "y"], "--list: expected a path beside --predict_dir"),
        (["--predict_dir", "x", "--list", "y"], "--gt_dir: expected a path beside --predict_dir"),
    ],
)
def test_flags_without_effect_are_refused(run, flags, message):
    with pytest.raises(ValueError, match=message):
        run.evaluate(*flags)


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


def test_table_flag_prints_the_table_of_the_run(run, capsys):
    with pytest.raises(FileNotFoundError, match="results.jsonl: expected results. Run evaluation"):
        run.evaluate("--table")
    run.evaluate("--kind", "cam", "--threshold-rule", "fixed")
    capsys.readouterr()
    run.evaluate("--table")
    assert capsys.readouterr().out == results_table(run.out / "results.jsonl") + "\n"


class Released:
    """Files and flags of the authors' script, for the test images of a run."""

    def __init__(self, run: Run) -> None:
        self.folder = run.data.parent / "released"
        self.masks = self.folder / "masks"
        for name in ("1t", "2t"):
            write_mask(self.masks / f"{name}.png", MASKS[name])
            maps = {k: np.where(MASKS[name] == k + 1, 0.8, 0.2) for k in (0, 2)}
            np.save(self.folder / f"{name}.npy", maps, allow_pickle=True)
            write_mask(self.folder / f"{name}.png", columns(1, 0, 0, 0, 3 * (name == "2t")))
        (self.folder / "test.txt").write_text("1t\n2t")

    def evaluate(self, *flags: str) -> None:
        paths = {"list": "test.txt", "predict_dir": ".", "gt_dir": "masks"}
        inputs = [x for k, v in paths.items() for x in (f"--{k}", str(self.folder / v))]
        evaluation.main([*inputs, "--num_classes", "4", *flags])


@pytest.fixture
def released(run):
    return Released(run)


def test_released_png_flags_print_twelve_digits(released, capsys):
    released.evaluate("--sal_dir", "anywhere")
    out = capsys.readouterr().out
    assert "--sal_dir is accepted for old command lines; scoring does not use it." in out
    # Inclusion: truth 12, predicted 8, both 8. Background: truth 24, predicted 28, both 24.
    assert "background  85.7142857143\n" in out
    assert "class 1     66.6666666667\n" in out
    assert "class 3     100.000000000\n" in out
    assert "neither in masks nor predicted, left out: class 2" in out


def test_released_curve_gives_the_best_threshold_and_a_log_line(released, capsys):
    log = released.folder / "log.txt"
    flags = ["--type", "npy", "--curve", "True", "--t", "0.5", "--start", "10", "--end", "30"]
    released.evaluate(*flags, "--logfile", str(log), "--comment", "first try")
    out = capsys.readouterr().out
    assert "t = 0.2, the best mIoU on these masks" in out
    assert [line.split()[0] for line in out.splitlines()[1:22]] == [
        f"{t / 100:.4f}" for t in range(10, 31)
    ]
    row = json.loads(log.read_text())
    assert (row["comment"], row["images"]) == ("first try", 2)
    assert (row["threshold_rule"], row["threshold"], row["miou"]) == ("oracle", 0.2, 100)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--type", "npy"], "--t: expected a threshold from 0 to 1, got None"),
        (["--type", "npy", "--t", "60"], r"--t: expected a threshold from 0 to 1, got 60\.0"),
        (["--type", "npy", "--curve", "--start", "9", "--end", "3"], r"0 <= start .* got 9, 3"),
        (["--num_classes", "1"], r"--num_classes: expected 2\.\.255, got 1"),
        (["--num_classes", "3"], r"2t\.png: expected mask values 0\.\.2 and 255, got 3"),
        (["--list", "none.txt"], "none.txt: expected a list file"),
        (["--gt_dir", "none"], r"none: expected a \.png file .* 2 are missing: 1t, 2t. Check --gt"),
        (["--predict_dir", "none", "--type", "npy", "--t", "0"], "2 are missing.* Check --predict"),
    ],
)
def test_wrong_released_flags_are_one_clear_line(released, flags, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        released.evaluate(*flags)
    assert "\n" not in str(error.value)


def test_an_error_is_one_line_and_a_nonzero_exit_code(released):
    command = [
        sys.executable,
        "evaluation.py",
        "--predict_dir",
        "x",
        "--gt_dir",
        "y",
        "--list",
        "z",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: z: expected a list file with one name a line, found none.\n"


@needs_published
@pytest.mark.parametrize("kind", ["patchcam", "fused"])
@pytest.mark.parametrize("threshold", ["0.5", "0.6", "0.7"])
def test_published_cams_give_the_published_figures(kind, threshold, capsys):
    flags = {"list": "test.txt", "predict_dir": kind, "gt_dir": "masks"}
    inputs = [x for k, v in flags.items() for x in (f"--{k}", str(PUBLISHED / v))]
    evaluation.main([*inputs, "--type", "npy", "--num_classes", "4", "--t", threshold])
    printed = [line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines()[1:]]
    found = {name: float(value) for name, value in printed}
    results = json.loads((PUBLISHED / "expected.json").read_text())["results"]
    expected = results[f"{kind}@{threshold}"]
    names = ("background", "class 1", "class 2", "class 3")
    assert [found[name] for name in names] == pytest.approx(expected["IoU"], abs=1e-6)
    means = [expected[key] for key in ("mIoU", "FP", "FN")]
    assert [found[key] for key in ("mIoU", "FP", "FN")] == pytest.approx(means, abs=1e-6)


@needs_published
def test_published_sweep_equals_single_threshold_runs():
    names = (PUBLISHED / "test.txt").read_text().split()[:6]
    thresholds = (0.3, 0.45, 0.6)
    sweep = ThresholdSweep(thresholds, 3)
    single = {t: ConfusionMatrix(3) for t in thresholds}
    for name in names:
        truth = read_mask(PUBLISHED / f"masks/{name}.png", 3)
        cam = read_released_cam(PUBLISHED / f"fused/{name}.npy")
        sweep.update(truth, cam.cam, cam.classes)
        for t, confusion in single.items():
            confusion.update(truth, seed_mask(cam.cam, cam.classes, t))
    for t, confusion in single.items():
        assert np.array_equal(sweep.confusion(t).counts, confusion.counts)
