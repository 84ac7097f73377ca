"""Values counted in levels, and the AUROC of such counts."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from scoring.histogram import at_least, auroc, level_counts, to_levels


def test_values_are_rounded_to_the_nearest_level_and_cut_to_the_range():
    values = np.array([[-0.5, 0.0, 0.499, 0.501], [0.25, 1.0, 1.5, 0.74]])
    assert to_levels(values, 3).tolist() == [[0, 0, 1, 1], [0, 2, 2, 1]]  # 0.25: half to even
    assert to_levels(values).max() == 255
    assert to_levels(values).dtype == np.uint16


def test_every_8_bit_value_keeps_its_level():
    levels = np.arange(256, dtype=np.uint8)
    assert to_levels(levels.astype(np.float32) / 255).tolist() == levels.tolist()


def test_levels_are_counted_and_summed_from_above():
    counts = level_counts(np.array([[0, 2, 2], [3, 0, 2]], np.uint16), 5)
    assert counts.tolist() == [2, 0, 3, 1, 0]
    assert at_least(counts).tolist() == [6, 4, 4, 1, 0]


@pytest.mark.parametrize("seed", range(3))
def test_auroc_is_the_share_of_pairs_in_the_right_order(seed):
    rng = np.random.default_rng(seed)
    background, defects = rng.integers(0, 6, 20), rng.integers(0, 8, 12)
    pairs = [(d > b) + 0.5 * (d == b) for d in defects for b in background]
    found = auroc(level_counts(background, 8), level_counts(defects, 8))
    assert found == pytest.approx(100 * np.mean(pairs))
    truth = [0] * 20 + [1] * 12
    assert found == pytest.approx(100 * roc_auc_score(truth, [*background, *defects]))


def test_auroc_needs_background_and_defects():
    some, none = np.array([1, 0, 2]), np.zeros(3, np.int64)
    assert auroc(some, none) is None
    assert auroc(none, some) is None
    assert auroc(some, some) == pytest.approx(50)
