"""Which generator `auto` takes for which class, and the names of all generators."""

import types
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from configs import SaliencyConfig
from configs.fields import Generator
from datasets.files import write_image
from datasets.record import Record
from datasets.sources import Data
from saliency import auto, table
from saliency.edges import along_edges
from saliency.generator import Prepared

CPU = torch.device("cpu")
SETTINGS = SaliencyConfig(generator="auto")
IMAGE = np.zeros((6, 6, 3), np.uint8)


@pytest.fixture
def records(tmp_path: Path) -> tuple[Record, ...]:
    """Write twelve images: defect-free, of class 0, of class 1, and so on."""
    paths = [tmp_path / f"{index}.png" for index in range(12)]
    for path in paths:
        write_image(path, IMAGE)
    labels = ((), (0,), (1,))
    return tuple(Record(path.stem, path, labels[i % 3]) for i, path in enumerate(paths))


@pytest.fixture
def parts(monkeypatch, records) -> dict[str, Prepared]:
    """Two generators in place of the real ones; `normal` is blind to class 1."""
    truth = {record.name: record.classes for record in records}

    def part(name: str, sees: int, value: float) -> Prepared:
        def make_map(record: Record, image: np.ndarray) -> np.ndarray:
            salient = sees in truth[record.name] and sees in (record.classes or (sees,))
            return np.full(image.shape[:2], value if salient else 0.1, np.float32)

        return Prepared(make_map, {name: 1}, (f"{name}: ready",), {f"{name}.png": "damaged"})

    made = {"normal": part("normal", 0, 0.8), "variation": part("variation", 1, 0.6)}
    prepare = {name: lambda *_, name=name: made[name] for name in made}
    monkeypatch.setattr(auto, "PARTS", prepare)
    monkeypatch.setattr(auto, "AUTO_DEFECT_FREE", 4)
    return made


def test_first_takes_for_each_class_the_first_part_that_sees_it(parts, records):
    prepared = auto.prepare(SETTINGS, Data(("hole", "zone"), {"fit": records}), [], CPU)

    assert prepared.facts["auto"] == {"hole": "normal", "zone": "variation"}
    assert prepared.lines == (
        "auto: normal and variation, from 4 defect-free training images",
        "normal: ready",
        "variation: ready",
        "hole: AUROC 1.000 by normal",
        "hole: maps by normal",
        "zone: AUROC 0.500 by normal",
        "zone: maps by variation",
    )
    for record, value in zip(records[:3], (0.1, 0.8, 0.6), strict=True):
        assert prepared.make_map(record, IMAGE).max() == pytest.approx(value)


def test_facts_lines_and_problems_of_all_parts_are_kept(parts, records):
    prepared = auto.prepare(SETTINGS, Data(("hole", "zone"), {"fit": records}), [], CPU)
    assert prepared.facts["normal"] == prepared.facts["variation"] == 1
    assert prepared.problems == {"normal.png": "damaged", "variation.png": "damaged"}
    assert {"normal: ready", "variation: ready"} < set(prepared.lines)


def test_the_highest_map_of_an_image_of_two_classes_counts(parts, records):
    data = Data(("hole", "zone"), {"fit": records})
    prepared = auto.prepare(SETTINGS, data, [], CPU)
    parts_of_map = {"normal": [[0.2, 0.9]], "variation": [[0.7, 0.1]]}
    for name, part in parts.items():
        values = np.array(parts_of_map[name], np.float32)
        object.__setattr__(part, "make_map", lambda record, image, values=values: values)
    both = prepared.make_map(Record("two", Path("two.png"), (0, 1)), IMAGE)
    assert both.dtype == np.float32
    np.testing.assert_array_equal(both, np.array([[0.7, 0.9]], np.float32))
    hole = prepared.make_map(Record("one", Path("one.png"), (0,)), IMAGE)
    np.testing.assert_array_equal(hole, np.array([[0.2, 0.9]], np.float32))


def test_an_image_without_a_label_is_shown_to_all_chosen_generators(parts, records):
    data = Data(("hole", "zone"), {"fit": records})
    prepared = auto.prepare(SETTINGS, data, [], CPU)
    zone = Record(records[2].name, records[2].image, ())
    assert prepared.make_map(zone, IMAGE).max() == pytest.approx(0.6)
    # Where one generator serves all classes, it alone is asked.
    alone = Data(("hole",), {"fit": tuple(r for r in records if r.classes != (1,))})
    prepared = auto.prepare(SETTINGS, alone, [], CPU)
    assert prepared.make_map(zone, IMAGE).max() == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("low", "high", "choice"),
    # Of 4 x 25 pairs of images, those in the right order: 88 and 84.
    [(22, 3, "normal"), (21, 4, "variation")],
)
def test_a_generator_sees_a_class_from_an_auroc_of_088(tmp_path, monkeypatch, low, high, choice):
    """Defect-free images lie below 22 or 21 of 25 defective ones, and above the others."""
    peaks = {**{f"free{i}": 0.5 for i in range(4)}, **{f"own{i}": 0.9 for i in range(low)}}
    peaks |= {f"own{low + i}": 0.1 for i in range(high)}
    records = []
    for name in peaks:
        write_image(tmp_path / f"{name}.png", IMAGE)
        classes = () if name.startswith("free") else (0,)
        records.append(Record(name, tmp_path / f"{name}.png", classes))
    part = Prepared(lambda record, image: np.full((6, 6), peaks[record.name], np.float32))
    monkeypatch.setattr(auto, "PARTS", {"normal": lambda *_: part, "variation": lambda *_: part})
    monkeypatch.setattr(auto, "AUTO_DEFECT_FREE", 4)
    prepared = auto.prepare(SETTINGS, Data(("dent",), {"fit": tuple(records)}), [], CPU)
    assert prepared.facts["auto"] == {"dent": choice}


def test_a_class_that_no_image_carries_alone_gets_the_last_generator(parts, records):
    data = Data(("hole", "zone", "rare"), {"fit": records})
    prepared = auto.prepare(SETTINGS, data, [], CPU)
    assert prepared.facts["auto"]["rare"] == "variation"
    assert prepared.lines[-1] == "rare: maps by variation"


@pytest.mark.parametrize(
    ("num_free", "generators"), [(19, {"contrast"}), (20, {"normal", "variation"})]
)
def test_auto_goes_by_the_number_of_defect_free_images(monkeypatch, num_free, generators):
    asked = set()

    def part(name):
        def prepare(settings, data, records, device):
            asked.add(name)
            return Prepared(lambda record, image: np.zeros(image.shape[:2], np.float32))

        return prepare

    monkeypatch.setattr(auto, "PARTS", {name: part(name) for name in auto.PARTS})
    monkeypatch.setattr(auto.contrast, "prepare", part("contrast"))
    monkeypatch.setattr(auto, "choose_parts", lambda parts, data: ([0], ["chosen"]))
    free = [Record(f"{i}", Path(f"{i}.png"), ()) for i in range(num_free)]
    data = Data(("dent",), {"fit": (Record("d", Path("d.png"), (0,)), *free)})

    prepared = auto.prepare(SETTINGS, data, [], CPU)

    assert asked == generators
    assert str(num_free) in prepared.lines[0]


def test_auto_takes_contrast_where_defect_free_images_show_one_picture(monkeypatch):
    plain = Prepared(lambda record, image: np.zeros(image.shape[:2], np.float32))
    monkeypatch.setattr(auto, "PARTS", {})
    monkeypatch.setattr(auto.contrast, "prepare", lambda *_: plain)
    free = tuple(Record(f"{i}", Path(f"{i}.png"), (), group="one") for i in range(20))
    prepared = auto.prepare(SETTINGS, Data(("dent",), {"fit": free}), [], CPU)
    expected = "auto: contrast, as only 20 training images, of 1 groups, are defect-free"
    assert prepared.lines == (expected,)


def test_every_generator_of_the_config_is_in_the_table():
    assert set(table.GENERATORS) == set(get_args(Generator))


@pytest.mark.parametrize("steps", [0, 10])
def test_pamr_is_laid_over_a_generator_where_asked(monkeypatch, steps):
    image = np.full((20, 30, 3), 200, np.uint8)
    image[5:15, 8:20] = 40
    coarse = np.zeros((20, 30), np.float32)
    coarse[6:13, 9:18] = 1
    plain = Prepared(lambda record, image: coarse, {"fact": 1})
    monkeypatch.setitem(table.GENERATORS, "contrast", lambda *_: plain)
    settings = SaliencyConfig(generator="contrast", pamr_steps=steps)
    data = types.SimpleNamespace()
    prepared = table.make_generator(settings, data, [], CPU)
    assert prepared.facts == {"fact": 1}
    saliency = prepared.make_map(Record("a", Path("a.png"), (0,)), image)
    np.testing.assert_array_equal(saliency, along_edges(image, coarse, steps, CPU))
    assert np.array_equal(saliency, coarse) == (steps == 0)
