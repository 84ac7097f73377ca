"""Sheets: a row an image, a captioned column for each stage, black where nothing has been made."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from configs import Config
from datasets.files import Cam, write_cam, write_image, write_mask, write_saliency
from datasets.pictures import CAPTION, CELL, GAP
from datasets.record import Record
from datasets.sources import Data
from inference import sheets
from inference.sheets import choose_records, generator_sheet, run_sheet
from runfolder.run import Run
from saliency.generator import Prepared

SIDE = CELL + GAP
SIZE = (20, 40)  # half of a cell is left black


@pytest.fixture
def run(tmp_path: Path) -> Run:
    records = []
    for name, classes in {"a": (1,), "b": (0, 1), "free": ()}.items():
        write_image(tmp_path / f"{name}.png", np.full((*SIZE, 3), 60, np.uint8))
        records.append(Record(name, tmp_path / f"{name}.png", classes))
    run = Run(tmp_path / "run", Config())
    run.data = Data(("crack", "dent"), {"train": tuple(records)})
    return run


def cells(sheet: np.ndarray) -> list[list[np.ndarray]]:
    """Return the cells below the captions, row by row, only where pictures of SIZE lie."""
    rows, columns = (sheet.shape[0] - CAPTION) // SIDE, sheet.shape[1] // SIDE
    assert sheet.shape == (CAPTION + rows * SIDE, columns * SIDE, 3)
    return [
        [
            sheet[CAPTION + y * SIDE :, x * SIDE :][: CELL // 2, :CELL].astype(int)
            for x in range(columns)
        ]
        for y in range(rows)
    ]


def test_the_sheet_of_a_run_shows_each_stage(run):
    a, b, free = run.data.split("train")
    write_saliency(run.saliency_dir / "a.png", np.full(SIZE, 0.4))
    cam = Cam(np.full((1, *SIZE), 0.5, np.float32), np.array([1]), np.ones(2, np.float32))
    write_cam(run.cam_dir("fused", "given") / "a.npz", cam)
    write_mask(run.pseudo_label_dir / "a.png", np.full(SIZE, 2, np.uint8))
    write_mask(run.prediction_dir / "a.png", np.full(SIZE, 255, np.uint8))
    first, second, third = cells(run_sheet(run, [a, b, free]))
    assert len(first) == 5  # no ground truth: image, saliency, CAM, pseudo label, prediction
    expected = [
        [60, 60, 60],
        [102, 102, 102],
        [0, 128, 0],  # twice half of class 1's colour
        [24, 101, 24],  # 0.4 of the image and 0.6 of that colour
        [177, 177, 177],  # 0.4 of the image and 0.6 of white
    ]
    for cell, colour in zip(first, expected, strict=True):
        assert np.abs(cell - colour).max() <= 1
    for row in (second, third):
        assert (row[0] == 60).all() and not np.any(row[1:])


def test_ground_truth_is_a_column_where_one_image_has_a_mask(run):
    a, b, _ = run.data.split("train")
    write_mask(run.folder / "truth.png", np.full(SIZE, 1, np.uint8))
    a = Record("a", a.image, a.classes, mask=run.folder / "truth.png")
    first, second = cells(run_sheet(run, [a, b]))
    assert len(first) == 6
    assert np.abs(first[5] - [101, 24, 24]).max() <= 1
    assert not second[5].any()


@pytest.mark.parametrize(
    ("groups", "from_surfaces"),
    [("0123", True), ("012", False), ("0000", False)],  # of the defect-free images
    ids=["four", "too few", "of one picture"],
)
def test_generators_are_those_that_the_data_allows(run, monkeypatch, groups, from_surfaces):
    levels = {"contrast": 0.2, "feature": 0.4, "normal": 0.6, "variation": 0.8}

    def prepare(name: str) -> object:
        def of_name(settings, data, records, device) -> Prepared:
            assert settings.generator == name
            return Prepared(lambda record, image: np.full(image.shape[:2], levels[name]), {})

        return of_name

    monkeypatch.setattr(sheets, "GENERATORS", {name: prepare(name) for name in levels})
    a, b, free = run.data.split("train")
    surfaces = [replace(free, name=f"{i}", group=group) for i, group in enumerate(groups)]
    run.data = Data(run.data.class_names, {"train": (a, b, free), "fit": (a, b, *surfaces)})
    write_saliency(run.saliency_dir / "a.png", np.ones(SIZE))
    ((image, *maps),) = cells(generator_sheet(run, [a], torch.device("cpu")))
    shown = list(levels.values()) if from_surfaces else [0.2, 0.4]
    assert (image == 60).all()
    expected = [255 * level for level in (*shown, 1.0)]
    assert [cell.mean() for cell in maps] == pytest.approx(expected, abs=1)


def test_records_are_chosen_evenly_or_by_a_seed():
    records = [Record(str(i), Path("x.png"), ()) for i in range(12)]
    assert [r.name for r in choose_records(records, 3, None)] == ["0", "4", "8"]
    assert choose_records(records, 20, None) == records
    drawn = choose_records(records, 5, 1)
    assert len({record.name for record in drawn}) == 5
    assert choose_records(records, 5, 1) == drawn != choose_records(records, 5, 2)
    assert len(choose_records(records, 20, 1)) == 12
