import types
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.schema import SaliencyConfig
from datasets.files import write_image
from datasets.record import Record
from datasets.sources import Data
from saliency import fuse
from saliency.auto import combine
from saliency.generator import Prepared

RULES = ("mean", "geometric", "max", "rank")
FIRST = np.array([[0.0, 0.25, 1.0]], np.float32)
SECOND = np.array([[0.5, 1.0, 0.25]], np.float32)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("mean", [[0.25, 0.625, 0.625]]),
        ("geometric", [[0, 0.5, 0.5]]),
        ("max", [[0.5, 1, 1]]),
        # of the two other pixels below: 0, 1, 2 and 1, 2, 0, halved and averaged
        ("rank", [[0.25, 0.75, 0.5]]),
    ],
)
def test_rules_match_hand_calculations(rule, expected):
    np.testing.assert_allclose(combine([FIRST, SECOND], rule), expected)


@pytest.mark.parametrize("rule", RULES)
def test_empty_maps_stay_empty_and_sizes_and_range_are_kept(rule):
    zeros = np.zeros((31, 44), np.float32)
    assert not combine([zeros, zeros, zeros], rule).any()
    rng = np.random.default_rng(0)
    fused = combine([rng.random((31, 44), np.float32) for _ in range(3)], rule)
    assert fused.shape == (31, 44)
    assert fused.dtype == np.float32
    assert fused.min() >= 0
    assert fused.max() <= 1


@pytest.mark.parametrize("rule", RULES)
def test_two_noisy_maps_are_better_together_than_chance(rule):
    rng = np.random.default_rng(0)
    mask = np.zeros((40, 50), bool)
    mask[10:20, 20:40] = True
    maps = [np.clip(0.3 * mask + rng.normal(0.3, 0.15, mask.shape), 0, 1) for _ in range(2)]
    fused = combine(maps, rule)
    inside, outside = fused[mask], fused[~mask]
    assert (inside[:, None] > outside[None]).mean() > 0.8


def test_facts_lines_and_problems_of_all_parts_are_kept(monkeypatch):
    def part(name: str, value: float):
        def make_map(record, image):
            return np.full(image.shape[:2], value, np.float32)

        return lambda *_: Prepared(make_map, {name: 1}, (name,), {f"{name}.png": "damaged"})

    monkeypatch.setattr(fuse, "PARTS", {"contrast": part("a", 0.2), "normal": part("b", 0.6)})
    settings = SaliencyConfig(generator="fuse", fuse=("contrast", "normal"), fuse_rule="mean")
    data = types.SimpleNamespace()
    prepared = fuse.prepare(settings, data, [], torch.device("cpu"))
    assert prepared.facts == {"a": 1, "b": 1}
    assert prepared.lines == ("a", "b")
    assert set(prepared.problems) == {"a.png", "b.png"}
    record = Record("x", Path("x.png"), (0,))
    saliency = prepared.make_map(record, np.zeros((3, 5, 3), np.uint8))
    np.testing.assert_allclose(saliency, np.full((3, 5), 0.4))


def test_first_takes_for_each_class_the_first_part_that_sees_it(tmp_path, monkeypatch):
    """Two classes; part one is blind to the second, part two sees it."""
    image = np.zeros((6, 6, 3), np.uint8)
    records = []
    for index in range(12):
        path = tmp_path / f"{index}.png"
        write_image(path, image)
        records.append(Record(path.stem, path, ((), (0,), (1,))[index % 3]))
    truth = {record.name: record.classes for record in records}

    def part(sees: int, value: float):
        def make_map(record, image):
            salient = sees in truth[record.name] and sees in record.classes
            return np.full(image.shape[:2], value if salient else 0.1, np.float32)

        return lambda *_: Prepared(make_map, {}, (), {})

    monkeypatch.setattr(fuse, "PARTS", {"normal": part(0, 0.8), "variation": part(1, 0.6)})
    settings = SaliencyConfig(generator="fuse", fuse=("normal", "variation"), fuse_rule="first")
    data = types.SimpleNamespace(class_names=("hole", "zone"), split=lambda name: tuple(records))
    prepared = fuse.prepare(settings, data, [], torch.device("cpu"))

    assert prepared.facts["fuse"] == {"hole": "normal", "zone": "variation"}
    assert prepared.lines == (
        "hole: AUROC 1.000 by normal",
        "hole: maps by normal",
        "zone: AUROC 0.500 by normal",
        "zone: maps by variation",
    )
    for record, value in zip(records[:3], (0.1, 0.8, 0.6), strict=True):
        assert prepared.make_map(record, image).max() == pytest.approx(value)


def test_first_without_defect_free_images_is_refused(monkeypatch):
    nothing = Prepared(lambda record, image: np.zeros(image.shape[:2], np.float32))
    monkeypatch.setattr(fuse, "PARTS", dict.fromkeys(("contrast", "normal"), lambda *_: nothing))
    settings = SaliencyConfig(generator="fuse", fuse=("contrast", "normal"), fuse_rule="first")
    data = types.SimpleNamespace(class_names=("hole",), split=lambda name: ())
    with pytest.raises(ValueError, match=r"fuse_rule=first: expected defect-free images"):
        fuse.prepare(settings, data, [], torch.device("cpu"))


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

    parts = {name: part(name) for name in fuse.PARTS}
    monkeypatch.setattr(fuse, "PARTS", parts)
    monkeypatch.setattr(fuse.contrast, "prepare", parts["contrast"])
    monkeypatch.setattr(fuse, "choose_parts", lambda settings, parts, data: ([0], ["told"]))
    free = [Record(f"{i}", Path(f"{i}.png"), ()) for i in range(num_free)]
    data = Data(("dent",), {"train": (Record("d", Path("d.png"), (0,)), *free)})

    found = fuse.prepare_auto(SaliencyConfig(), data, [], torch.device("cpu"))

    assert asked == generators
    assert str(num_free) in found.lines[0]
