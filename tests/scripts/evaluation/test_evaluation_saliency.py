"""evaluation.py --kind saliency."""

import numpy as np
import pytest

from datasets.files import write_mask, write_saliency
from runfolder.results import results_table
from runfolder.run import SaliencyMeta, write_meta
from scoring import passes


def test_saliency_knows_no_thresholds_of_classes(scored):
    with pytest.raises(ValueError, match="oracle with --kind saliency, .* got agreement"):
        scored.evaluate("--kind", "saliency", "--threshold-rule", "auto", "agreement")


def test_saliency_is_painted_with_the_first_class_of_the_label(scored):
    scored.evaluate("--kind", "saliency", "--threshold-rule", "auto")
    (row,) = scored.rows()
    assert set(row) == scored.keys | scored.saliency_keys
    assert row["threshold"] == pytest.approx(125 / 255)  # maps hold 50 and 200
    # Inclusion: truth 8 + 4 pixels, painted 8 + 8. Scratches: truth 4, painted 0.
    assert row["iou"] == pytest.approx({"background": 100, "inclusion": 75, "scratches": 0})
    assert row["miou"] == pytest.approx(175 / 3)
    assert row["fp"] == pytest.approx((0 + 25 + 0) / 3)
    assert row["fn"] == pytest.approx((0 + 0 + 100) / 3)
    assert row["fg_iou"] == 100


def test_saliency_is_scored_without_classes_too(scored, capsys):
    # Test image 1t: of its 8 defect pixels 4 have .8 and 4 have .4, the background .2.
    saliency = np.where(
        scored.columns(1, 0, 0, 0, 0), 204, np.where(scored.columns(1, 1, 0, 0, 0), 102, 51)
    )
    write_saliency(scored.out / "saliency/1t.png", saliency / 255)
    scored.sets += ["pseudo_label.threshold=0.4"]
    scored.evaluate("--kind", "saliency", "--threshold-rule", "fixed", "oracle")
    fixed, oracle = scored.rows()
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


def test_saliency_of_a_split_without_defects_has_a_false_alarm_only(scored, capsys):
    for name in ("1t", "2t"):
        write_mask(scored.data / f"annotations/test/{name[0]}.png", scored.columns(0, 0, 0, 0, 0))
    scored.evaluate("--kind", "saliency", "--threshold-rule", "auto")
    (row,) = scored.rows()
    # Of 20 pixels 8 are above in each: the map knows of defects that the mask has not.
    assert (row["false_alarm"], row["defect_free_images"]) == (pytest.approx(40), 2)
    nothing = ("fg_iou", "auroc", "ap", "max_f", "mae", "best_fg_iou", "best_fg_threshold")
    assert {row[key] for key in nothing} == {None}
    assert (row["recall"], row["miou"]) == ({}, 100)
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert {"false alarm 40.00", "AUROC -", "max F -", "its threshold -"} <= set(lines)


def test_each_mask_and_map_is_opened_once_to_be_scored(scored, monkeypatch):
    scored.evaluate("--kind", "cam")  # writes labels.csv, which opens masks
    opened = []
    for reader in ("read_truth", "read_saliency"):
        read = getattr(passes, reader)

        def count(source, *args, reader=reader, read=read):
            opened.append((reader, getattr(source, "name", source)))
            return read(source, *args)

        monkeypatch.setattr(passes, reader, count)
    scored.evaluate("--kind", "saliency", "--threshold-rule", "fixed", "oracle")
    assert sorted(opened) == [
        *(("read_saliency", f"{name}.png") for name in ("1t", "2t")),
        *(("read_truth", name) for name in ("1t", "2t")),
    ]


def test_saliency_of_defect_free_images_counts_as_false_alarm_alone(scored):
    write_saliency(scored.out / "saliency/3.png", np.ones((4, 5)))
    scored.evaluate("--kind", "saliency", "--split", "train", "--threshold-rule", "auto")
    (row,) = scored.rows()
    assert row["threshold"] == pytest.approx(125 / 255)
    assert (row["images"], row["miou"], row["absent"]) == (4, 100, ["scratches"])
    assert (row["auroc"], row["best_fg_iou"]) == pytest.approx((100, 100))
    assert (row["false_alarm"], row["defect_free_images"]) == (50, 2)  # all of 3, nothing of 4


def test_images_whose_masks_were_used_are_not_scored_and_the_row_says_so(scored, capsys):
    meta = SaliencyMeta({}, {}, ["train"], masked=["1"], seen_defect_free=["3"])
    write_meta(scored.out / "saliency", meta)
    scored.sets += ["refinement.rounds=1", "refinement.masks=5"]  # wished, but 1 was used
    scored.evaluate("--kind", "saliency", "--split", "train")
    scored.evaluate("--kind", "cam", "--split", "train")
    scored.sets += ["saliency.empty_defect_free=false"]
    scored.evaluate("--kind", "saliency", "--split", "train")
    rows = [scored.rows()[i] for i in (0, 2, 5)]  # the first of each call
    assert [row["images"] for row in rows] == [3, 3, 2]
    assert [row["masks_used"] for row in rows] == [1, 1, 1]
    out = capsys.readouterr().out
    assert "1 images that the maps were learnt from are not scored." in out
    scored.evaluate("--kind", "saliency", "--split", "test", "--threshold-rule", "auto")
    assert "learnt from" not in capsys.readouterr().out
    assert "given + 1 masks" in results_table(scored.out / "results.jsonl")


def test_maps_of_one_value_everywhere_score_as_background(scored, capsys):
    for name in scored.masks:
        write_saliency(scored.out / f"saliency/{name}.png", np.full((4, 5), 0.8))
    scored.evaluate("--kind", "saliency", "--threshold-rule", "auto")
    assert "all training maps are one value" in capsys.readouterr().out
    (row,) = scored.rows()
    assert row["threshold"] == 1.0
    assert row["fg_iou"] == 0
    assert row["iou"].pop("background") > 0
    assert set(row["iou"].values()) == {0}
