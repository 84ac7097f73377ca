"""evaluation.py --kind pseudo_label and segmentation, --table, and what is refused."""

import numpy as np
import pytest

import evaluation
from datasets.files import Cam, write_cam, write_image, write_mask, write_saliency
from runfolder.results import results_table


def test_pseudo_labels_are_scored_on_train_with_255_as_background(scored):
    for name in ("1", "2", "3", "4"):
        write_mask(scored.out / f"pseudo_labels/{name}.png", scored.masks[name])
    uncertain = scored.columns(1, 255, 255, 0, 0)
    write_mask(scored.out / "pseudo_labels/1.png", uncertain)
    scored.evaluate("--kind", "pseudo_label")
    (row,) = scored.rows()
    assert set(row) == scored.keys
    assert (row["split"], row["labels"], row["images"]) == ("train", "given", 4)
    assert (row["threshold"], row["threshold_rule"]) == (None, "none")
    # Inclusion: 4 of 8 pixels. Background: 60 pixels, 4 too many.
    assert row["iou"] == pytest.approx({"background": 6000 / 64, "inclusion": 50, "patches": 100})


def test_predictions_of_the_network_are_scored(scored):
    for name in ("1t", "2t"):
        write_mask(scored.out / f"predictions/{name}.png", scored.columns(1, 1, 0, 0, 2))
    scored.evaluate("--kind", "segmentation")
    (row,) = scored.rows()
    assert (row["kind"], row["labels"], row["absent"]) == ("segmentation", "predicted", [])
    # Inclusion: truth 12, predicted 16, both 12. Patches: 8 predicted, none there.
    assert row["iou"]["inclusion"] == pytest.approx(75)
    assert row["iou"]["patches"] == row["iou"]["scratches"] == 0


def test_masks_are_scored_in_detail_without_map_scores(scored):
    for name in ("1t", "2t"):
        write_mask(scored.out / f"predictions/{name}.png", scored.columns(1, 1, 0, 0, 0))
    scored.evaluate("--kind", "segmentation", "--detailed")
    (row,) = scored.rows()
    # 2t: a column of inclusion too many, a column of scratches missed.
    assert row["detailed"]["pixel_accuracy"] == pytest.approx(100 * 32 / 40)
    assert "aupro" not in row["detailed"]


def test_data_without_masks_is_no_error(scored, capsys):
    scored.evaluate("--kind", "cam")  # writes labels.csv
    (scored.out / "results.jsonl").unlink()
    for path in (scored.data / "annotations/test").iterdir():
        path.unlink()
    scored.evaluate("--kind", "cam")
    assert "neu_seg, test: no masks, so there are no maps to score" in capsys.readouterr().out
    assert scored.rows() == []
    scored.evaluate("--table")
    assert "no results: none of the images has a mask" in capsys.readouterr().out


def test_images_without_mask_are_named(scored, capsys):
    scored.evaluate("--kind", "cam")
    (scored.data / "annotations/test/2.png").unlink()
    scored.evaluate("--kind", "cam", "--threshold-rule", "auto")
    assert "1 images have no mask, not scored: 2t." in capsys.readouterr().out
    assert scored.rows()[-1]["images"] == 1


def test_masks_of_defect_free_images_alone_are_refused(scored, tmp_path):
    root, out = tmp_path / "parts", tmp_path / "run"
    for name in ("scratch/1", "scratch/2", "good/1", "good/2"):
        for split in ("train", "test"):
            write_image(root / split / f"{name}.png", np.zeros((4, 5, 3), np.uint8))
            write_mask(
                out / f"predictions/{split}_{name.replace('/', '_')}.png", scored.columns(0, 0)
            )
    write_image(root / "masks/test/scratch/1_mask.png", scored.columns(0, 255))  # of another name
    config = ["data.source=folder", f"data.root={root}"]
    message = (
        r"folder, test: expected masks .* got none of 2: test_scratch_1, test_scratch_2\. "
        r"Add masks below .*parts/masks, or correct"
    )
    with pytest.raises(ValueError, match=message):
        evaluation.main(["--kind", "segmentation", "--out", str(out), "--set", *config])
    assert not (out / "results.jsonl").exists()


def test_missing_maps_are_collected_and_nothing_is_appended(scored):
    for kind, maker in (
        ("segmentation", "python -m segmentation.infer"),
        ("pseudo_label", "make_pseudo"),
    ):
        with pytest.raises(FileNotFoundError, match=rf"are missing: .* Run {maker}"):
            scored.evaluate("--kind", kind, "--split", "test")
    for name in ("1t", "2t"):
        (scored.out / f"saliency/{name}.png").unlink()
    with pytest.raises(
        FileNotFoundError, match="each of 2 images, 2 are missing: 1t, 2t. Run make_"
    ):
        scored.evaluate("--kind", "saliency")
    assert scored.rows() == []


def test_a_map_of_another_size_is_named(scored):
    write_mask(scored.out / "predictions/1t.png", np.zeros((4, 6), np.uint8))
    write_mask(scored.out / "predictions/2t.png", np.zeros((4, 5), np.uint8))
    message = (
        r"predictions.1t\.png against .*test.1\.png: "
        r"expected the size \(H, W\) of its mask, \(4, 5\), got \(4, 6\)"
    )
    with pytest.raises(ValueError, match=message):
        scored.evaluate("--kind", "segmentation")
    write_saliency(scored.out / "saliency/2t.png", np.zeros((5, 4)))
    with pytest.raises(ValueError, match=r"2t\.png against .*2\.png: expected .* got \(5, 4\)"):
        scored.evaluate("--kind", "saliency")
    assert scored.rows() == []


def test_a_wrong_class_count_is_named(scored):
    cam = Cam(np.zeros((1, 4, 5)), np.array([3]), np.zeros(4))
    write_cam(scored.out / "cams/fused/given/2t.npz", cam)
    with pytest.raises(ValueError, match=r"2t\.npz .*: expected class indices 0\.\.2, got \[3\]"):
        scored.evaluate("--kind", "cam")
    write_mask(scored.out / "predictions/1t.png", scored.columns(4, 0, 0, 0, 0))
    write_mask(scored.out / "predictions/2t.png", scored.columns(0, 0, 0, 0, 0))
    with pytest.raises(ValueError, match=r"1t\.png: expected mask values 0\.\.3 and 255, got 4"):
        scored.evaluate("--kind", "segmentation")
    assert scored.rows() == []


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
        (["--predict_dir", "x", "--gt_dir", "y"], "--list: expected a path with --predict_dir"),
        (["--predict_dir", "x", "--list", "y"], "--gt_dir: expected a path with --predict_dir"),
    ],
)
def test_flags_without_effect_are_refused(scored, flags, message):
    with pytest.raises(ValueError, match=message):
        scored.evaluate(*flags)


def test_table_flag_prints_the_table_of_the_run(scored, capsys):
    with pytest.raises(FileNotFoundError, match="results.jsonl: expected results. Run evaluation"):
        scored.evaluate("--table")
    scored.evaluate("--kind", "cam", "--threshold-rule", "fixed")
    capsys.readouterr()
    scored.evaluate("--table")
    printed, _, rest = capsys.readouterr().out.rpartition(f"{scored.out}/suspicious_labels.csv: ")
    assert printed == results_table(scored.out / "results.jsonl") + "\n"
    assert rest.startswith("the 4 training images, ")
