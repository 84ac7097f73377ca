"""The sheets that report.py draws: which images and columns; its page is in tests/reporting."""

import html
import re
import shutil

import numpy as np
import pytest

import report
from datasets.files import (
    Cam,
    read_image,
    write_cam,
    write_csv,
    write_image,
    write_mask,
    write_saliency,
)

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
    for split, names in (
        ("train", ("a<b/0", "dent/0")),
        ("val", ("dent/9",)),
        ("test", ("a<b/1", "dent/1", "dent/2")),
    ):
        for name in names:
            write_image(root / split / f"{name}.png", np.full((10, 10, 3), 90, np.uint8))
    for name, counts in MASKS.items():
        values = [value for value, count in counts.items() for _ in range(count)]
        mask = np.array(values + [0] * (100 - len(values)), np.uint8).reshape(10, 10)
        write_mask(out / f"predictions/{name}.png", mask)
    (out / "config.toml").write_text(CONFIG.format(root=root))
    return out


def with_truth(run):
    """Add ground truth: a<b_1 is predicted to a quarter, dent_1 as it is but for a<b."""
    for name, count in (("a<b/1", 20), ("dent/1", 20), ("dent/2", 1)):
        mask = np.zeros(100, np.uint8)
        mask[:count] = 255
        write_image(run.parent / f"parts/masks/test/{name}.png", mask.reshape(10, 10))


def with_stages(run):
    """Add what the stages before the prediction made of one image."""
    write_saliency(run / "saliency/test_dent_1.png", np.full((10, 10), 0.4))
    cam = Cam(np.full((1, 10, 10), 0.25), np.array([1]), np.zeros(2, np.float32))
    write_cam(run / "cams/fused/given/test_dent_1.npz", cam)
    write_mask(run / "pseudo_labels/test_dent_1.png", np.full((10, 10), 2, np.uint8))


def drawn(path):
    """Return the texts of a sheet: captions from left to right, rows, legend."""
    texts = re.findall(r"<text[^>]*>(.*?)</text>", path.with_suffix(".svg").read_text(), re.DOTALL)
    return [html.unescape(text) for text in texts]


def sheet_of(run, *flags, name="sheet_test"):
    report.main(["--config", str(run / "config.toml"), "--out", str(run), *flags])
    return drawn(run / f"{name}.png")


def rows_of(texts):
    return [text for text in texts if text.startswith("test_")]


def test_a_sheet_has_captions_names_labels_and_a_legend(run, capsys):
    texts = sheet_of(run, "--sheet")
    assert texts[:2] == ["image", "prediction"]
    rows = ["test_a<b_1", "a<b", "test_dent_1", "dent", "test_dent_2", "dent"]
    assert texts[2:8] == rows
    assert texts[8:] == ["a<b", "dent"]
    printed = capsys.readouterr().out
    assert "left out: saliency, as these images have none; run make_saliency.py first" in printed
    assert "left out: ground truth, as these images have none\n" in printed
    assert "sheet_test.png, .pdf and .svg: 3 images of test" in printed
    assert (run / "sheet_test.pdf").read_bytes().startswith(b"%PDF")
    height, width, _ = read_image(run / "sheet_test.png").shape
    assert width == pytest.approx(150 * (0.08 + 0.32 + 2 * 1.5 + 0.05), abs=2)
    assert height > 3 * 150 * 1.5
    assert not (run / "report.html").exists()


def test_a_sheet_shows_all_that_was_made(run):
    with_stages(run)
    with_truth(run)
    texts = sheet_of(run, "--sheet")
    stages = ["image", "saliency", "CAM (fused)", "pseudo label", "prediction", "ground truth"]
    assert texts[:6] == stages
    assert "saliency from 0 to 1" in texts
    assert texts.count("–") == 6  # saliency, CAM and pseudo label of two images


def test_columns_are_those_that_are_asked_for_in_their_order(run):
    with_stages(run)
    texts = sheet_of(run, "--sheet", "--columns", "prediction", "image", "cam")
    assert texts[:3] == ["prediction", "image", "CAM (fused)"]
    with pytest.raises(ValueError, match="--columns: expected something to show of 3 images"):
        sheet_of(run, "--sheet", "--columns", "truth")
    with pytest.raises(SystemExit):
        sheet_of(run, "--sheet", "--columns", "mask")


def test_images_are_chosen_by_name(run):
    texts = sheet_of(run, "--sheet", "--names", "test_dent_2", "test_a<b_1")
    assert rows_of(texts) == ["test_dent_2", "test_a<b_1"]
    with pytest.raises(ValueError, match=r"--names test_dent_3: .* There is test_dent_2, test_den"):
        sheet_of(run, "--sheet", "--names", "test_dent_3")


def test_images_are_drawn_of_each_class_in_turn(run):
    for seed in range(2):
        texts = sheet_of(run, "--sheet", "--random", str(seed), "--count", "2")
        assert rows_of(texts)[0] == "test_a<b_1"  # the only one of its class
        assert len(rows_of(texts)) == 2


def test_the_worst_images_have_the_lowest_iou(run):
    with_truth(run)  # IoU 25; (100 + 0) / 2; 0
    texts = sheet_of(run, "--sheet", "--worst", "--count", "2")
    assert rows_of(texts) == ["test_dent_2", "test_a<b_1"]


def test_without_masks_the_worst_images_contradict_their_label_most_surely(run):
    scores = [["test_a<b_1", "0.9", "0.1"], ["test_dent_1", "0.6", "0.9"]]
    scores.append(["test_dent_2", "0.1", "0.2"])  # missed: 1 - 0.2
    write_csv(run / "predictions/scores.csv", [["name", "a<b", "dent"], *scores])
    texts = sheet_of(run, "--sheet", "--worst")
    assert rows_of(texts) == ["test_dent_2", "test_dent_1", "test_a<b_1"]

    shutil.move(run / "predictions", run / "pseudo_labels")
    with pytest.raises(ValueError, match="--worst: expected masks or predictions of test"):
        sheet_of(run, "--sheet", "--worst")


def test_runs_stand_side_by_side(run):
    other = shutil.copytree(run, run.parent / "other")
    write_saliency(other / "saliency/test_dent_1.png", np.ones((10, 10)))
    report.main([str(run), str(other), "--sheet"])
    texts = drawn(run / "comparison_test.png")
    assert texts[:3] == ["image", "run", "other"]
    assert rows_of(texts) == list(MASKS)

    columns = ["--columns", "image", "saliency", "prediction"]
    report.main([str(run), str(other), "--sheet", *columns, "--out", str(run.parent / "both")])
    texts = drawn(run.parent / "both/comparison_test.png")
    captions = ["image", "saliency, other", "prediction, run", "prediction, other"]
    assert texts[:4] == captions  # the first run has no saliency


def test_runs_show_the_images_that_all_have(run):
    other, parts = shutil.copytree(run, run.parent / "other"), run.parent / "fewer"
    shutil.copytree(run.parent / "parts", parts)
    (parts / "test/dent/1.png").unlink()
    (other / "config.toml").write_text(CONFIG.format(root=parts))
    report.main([str(run), str(other), "--sheet"])
    assert rows_of(drawn(run / "comparison_test.png")) == ["test_a<b_1", "test_dent_2"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--worst"], "--worst: expected --sheet or --generators with it"),
        (["--random", "0"], "--random: expected --sheet or --generators with it"),
        (["--columns", "image"], "--columns: expected --sheet or --generators with it"),
        (["--generators", "--columns", "image"], "--columns: expected --sheet, got --generators"),
        (["--sheet", "--names", "a", "--count", "2"], "--count: expected no number of images"),
    ],
)
def test_flags_that_say_nothing_together_are_refused(run, flags, message):
    with pytest.raises(ValueError, match=message):
        sheet_of(run, *flags)


def test_generators_without_a_defect_are_one_line(run):
    shutil.rmtree(run.parent / "parts/test")
    write_image(run.parent / "parts/test/good/1.png", np.full((10, 10, 3), 90, np.uint8))
    with pytest.raises(ValueError, match="test: expected images to draw, got none"):
        sheet_of(run, "--generators")


@pytest.mark.parametrize(
    "flags", [["--sheet", "--generators"], ["--sheet", "--worst", "--random", "1"]]
)
def test_one_sheet_and_one_choice_at_a_time(run, capsys, flags):
    with pytest.raises(SystemExit):
        sheet_of(run, *flags)
    assert "not allowed with argument" in capsys.readouterr().err


def test_the_same_sheet_has_the_same_bytes(run):
    contents = []
    for _ in range(2):
        sheet_of(run, "--sheet", "--count", "1")
        contents.append([(run / f"sheet_test.{x}").read_bytes() for x in ("png", "pdf", "svg")])
    assert contents[0] == contents[1]


@pytest.mark.parametrize(
    ("num_free", "own_val", "generators"),
    [
        (1, True, ["contrast", "feature"]),  # too few surfaces to learn from
        (4, True, ["contrast", "feature", "normal", "variation"]),
        (4, False, ["contrast", "feature"]),  # one of these is held out
    ],
)
def test_every_generator_that_the_data_allows_is_drawn(run, num_free, own_val, generators):
    if not own_val:
        shutil.rmtree(run.parent / "parts/val")
    for i in range(num_free):
        surface = np.random.default_rng(i).integers(80, 100, (10, 10, 3), np.uint8)
        write_image(run.parent / f"parts/train/good/{i}.png", surface)
    write_saliency(run / "saliency/train_dent_0.png", np.ones((10, 10)))
    small = ["saliency.backbone=test_vit", "saliency.weights=none", "saliency.image_size=96"]
    flags = ["--generators", "--split", "train", "--device", "cpu", "--set", *small]
    texts = sheet_of(run, *flags, name="generators_train")
    columns = ["image", *generators, "of the run"]
    assert texts[: len(columns)] == columns
    assert [text for text in texts if text.startswith("train_")] == ["train_a<b_0", "train_dent_0"]
    assert texts.count("–") == 1  # of the run there is one map
