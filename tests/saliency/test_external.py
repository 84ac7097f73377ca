"""Maps that the user brings: what is taken from a folder, and what is refused."""

import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from configs import SaliencyConfig
from datasets.files import write_image, write_saliency
from datasets.record import Record
from saliency import external
from saliency.generator import Prepared

SIZE = (46, 61)
BLOB = (slice(12, 22), slice(30, 44))
IMAGE = np.zeros((*SIZE, 3), np.uint8)
RECORDS = [
    Record(f"{kind}_{i}", Path(f"{kind}_{i}.jpg"), classes)
    for kind, classes in (("a", (0,)), ("b", (1,)), ("c", ()))
    for i in range(6)
]
SETTINGS = SaliencyConfig(generator="external")


def prepare(folder: Path | str, settings: SaliencyConfig = SETTINGS) -> Prepared:
    data = types.SimpleNamespace()
    chosen = replace(settings, folder=str(folder))
    return external.prepare(chosen, data, RECORDS, torch.device("cpu"))


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    """A map of each image with a defect: 51 of 255, and 255 in a blob."""
    for record in RECORDS[:12]:
        saliency = np.full(SIZE, 51, np.uint8)
        saliency[BLOB] = 255
        write_image(tmp_path / f"maps/{record.name}.png", saliency)
    return tmp_path / "maps"


def test_maps_are_given_as_they_are(maps):
    saliency = prepare(maps).make_map(RECORDS[0], IMAGE)
    assert saliency.dtype == np.float32
    assert saliency[BLOB].min() == 1
    assert saliency[0, 0] == pytest.approx(0.2)


def test_png_wins_over_another_map_of_the_same_name(maps):
    for suffix in (".jpg", ".tif"):
        write_image(maps / f"a_0{suffix}", np.zeros(SIZE, np.uint8))
    assert prepare(maps).make_map(RECORDS[0], IMAGE).max() == 1


def test_missing_external_maps_are_counted_and_named(maps):
    for index in range(6):
        (maps / f"a_{index}.png").unlink()
    named = "found 6 maps; 6 are missing: a_0, a_1, a_2, a_3, a_4. Add them"
    with pytest.raises(FileNotFoundError, match=named):
        prepare(maps)


def test_external_maps_of_defect_free_images_are_needed_where_asked(maps):
    settings = replace(SETTINGS, empty_defect_free=False)
    with pytest.raises(FileNotFoundError, match=r"for every image, found 12 maps; 6 are missing"):
        prepare(maps, settings)
    for record in RECORDS[12:]:
        write_saliency(maps / f"{record.name}.png", np.full(SIZE, 0.2))
    assert prepare(maps, settings).make_map(RECORDS[12], IMAGE).min() == pytest.approx(0.2)


@pytest.mark.parametrize("highest", [0, 1])
def test_external_maps_of_values_0_to_1_are_refused(maps, highest):
    for path in maps.iterdir():
        saliency = np.zeros(SIZE, np.uint8)
        saliency[BLOB] = highest
        write_image(path, saliency)
    message = rf"0\.png: expected grey levels 0\.\.255, got 0\.\.{highest} .* all 12 maps .* by 255"
    with pytest.raises(ValueError, match=message):
        prepare(maps)


def test_a_damaged_map_stops_its_own_image_alone(maps):
    (maps / "a_0.png").write_bytes(b"no picture")
    prepared = prepare(maps)
    with pytest.raises(ValueError, match=r"a_0\.png"):
        prepared.make_map(RECORDS[0], IMAGE)
    assert prepared.make_map(RECORDS[1], IMAGE).max() == 1


def test_external_map_of_another_size_is_refused(maps):
    write_saliency(maps / "a_2.png", np.zeros((10, 20)))
    message = r"a_2.png: expected the size of its image, 46 x 61, got 10 x 20\. Resize it"
    with pytest.raises(ValueError, match=message):
        prepare(maps).make_map(RECORDS[2], IMAGE)


def test_missing_external_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: expected a folder of saliency maps"):
        prepare(tmp_path / "nowhere")


def test_external_without_a_folder_is_refused():
    with pytest.raises(ValueError, match=r"saliency\.folder: expected the folder of your maps"):
        prepare("")
