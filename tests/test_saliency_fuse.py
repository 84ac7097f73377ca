import types
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.schema import SaliencyConfig
from datasets.record import Record
from saliency import fuse
from saliency.fuse import combine
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
