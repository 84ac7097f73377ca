"""The sheets of a run: what they show is what lies in the files; its page is in tests/reporting."""

import shutil

import numpy as np
import pytest

import report
from datasets.files import (
    Cam,
    read_image,
    voc_palette,
    write_cam,
    write_image,
    write_mask,
    write_saliency,
)
from datasets.pictures import CAPTION, CELL, GAP, caption_row
from datasets.record import Record
from inference.sheets import choose_records

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


SIDE = CELL + GAP
COLUMNS = ["image", "saliency", "CAM (fused)", "pseudo label", "prediction"]


def cell_of(sheet, row, column):
    """Return the picture of a cell; the pictures of these tests are square."""
    top, left = CAPTION + row * SIDE, column * SIDE
    return sheet[top : top + CELL, left : left + CELL]


def sheet_of(run, *flags, name="sheet_test.png"):
    report.main(["--config", str(run / "config.toml"), "--out", str(run), *flags])
    return read_image(run / name)


def test_a_sheet_has_a_caption_over_each_column_and_a_row_an_image(run, capsys):
    sheet = sheet_of(run, "--sheet", "--device", "cpu")
    assert sheet.shape == (CAPTION + 3 * SIDE, len(COLUMNS) * SIDE, 3)
    np.testing.assert_array_equal(sheet[:CAPTION], caption_row(COLUMNS))
    colours = voc_palette()[1:3].tolist()
    named = f"RGB of the classes: a<b {tuple(colours[0])}, dent {tuple(colours[1])}"
    assert f"sheet_test.png: 3 images; {named}" in capsys.readouterr().out
    assert not (run / "report.html").exists()


def test_every_column_shows_its_stage_and_what_is_missing_is_black(run):
    dent = np.full((10, 10), 2, np.uint8)
    write_saliency(run / "saliency/test_dent_1.png", np.full((10, 10), 0.4))
    cam = Cam(np.full((1, 10, 10), 0.25), np.array([1]), np.zeros(2, np.float32))
    write_cam(run / "cams/fused/given/test_dent_1.npz", cam)
    write_mask(run / "pseudo_labels/test_dent_1.png", dent)
    write_image(run.parent / "parts/masks/test/dent/1.png", 255 * (dent > 0).astype(np.uint8))
    sheet = sheet_of(run, "--sheet")
    np.testing.assert_array_equal(sheet[:CAPTION], caption_row([*COLUMNS, "ground truth"]))
    # dent is green, (0, 128, 0): a CAM of 1/4 half of that; a mask 0.6 of it over 0.4 of the image.
    green = [0.4 * 90, 0.4 * 90 + 0.6 * 128, 0.4 * 90]
    expected = [[90] * 3, [0.4 * 255] * 3, [0, 64, 0], green, None, green]
    for column, colour in enumerate(expected):
        if colour is not None:
            wanted = np.broadcast_to(colour, (CELL, CELL, 3))
            np.testing.assert_allclose(cell_of(sheet, 1, column), wanted, atol=1.01)
    assert len(np.unique(cell_of(sheet, 1, 4).reshape(-1, 3), axis=0)) > 2  # of two classes
    for row, column in ((0, 1), (0, 2), (0, 3), (0, 5), (2, 1)):
        assert not cell_of(sheet, row, column).any()


def test_the_images_of_a_sheet_are_evenly_spaced_or_drawn():
    records = [Record(str(i), None, ()) for i in range(10)]
    assert [r.name for r in choose_records(records, 3, None)] == ["0", "3", "6"]
    drawn = choose_records(records, 3, 1)
    assert drawn == choose_records(records, 3, 1)
    assert drawn != choose_records(records, 3, 2)
    assert len(choose_records(records, 20, 1)) == len(choose_records(records, 20, None)) == 10


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
    sheet = sheet_of(run, *flags, name="generators_train.png")
    columns = ["image", *generators, "of the run"]
    assert sheet.shape == (CAPTION + 2 * SIDE, len(columns) * SIDE, 3)  # defects alone
    np.testing.assert_array_equal(sheet[:CAPTION], caption_row(columns))
    assert not cell_of(sheet, 0, len(columns) - 1).any()
    assert (cell_of(sheet, 1, len(columns) - 1) == 255).all()


def test_a_sheet_is_of_the_stages_or_of_the_generators(run, capsys):
    with pytest.raises(SystemExit):
        sheet_of(run, "--sheet", "--generators")
    assert "not allowed with argument" in capsys.readouterr().err


def test_a_caption_stands_over_its_own_column():
    row = caption_row(["image", "", "prediction"])
    assert row.shape == (CAPTION, 3 * SIDE, 3)
    dark = (row < 128).any(axis=(0, 2))
    left, middle, right = dark[:SIDE], dark[SIDE : 2 * SIDE], dark[2 * SIDE :]
    assert not middle.any()
    for part in (left, right):
        columns = np.flatnonzero(part)
        assert abs((columns[0] + columns[-1]) / 2 - CELL / 2) < 3
        assert columns[-1] < SIDE - 1
