"""Map values counted in levels, and the AUROC of pixels that follows from the counts."""

import numpy as np

# Shares are rounded to whole numbers of this part, as sums of those do not depend on their order.
SHARE = 2.0**-40
NUM_LEVELS = 256  # level = round(255 * value); of 8-bit maps all there are


def to_levels(values: np.ndarray, num_levels: int = NUM_LEVELS) -> np.ndarray:
    """Round values, cut to [0, 1], to levels 0..num_levels - 1; uint16 of the same shape."""
    return np.rint((num_levels - 1) * np.clip(values, 0, 1)).astype(np.uint16)


def level_counts(levels: np.ndarray, num_levels: int = NUM_LEVELS) -> np.ndarray:
    """Count each level, (num_levels,) int64."""
    return np.bincount(levels.ravel(), minlength=num_levels)


def in_shares(values: np.ndarray) -> np.ndarray:
    """Return values in units of `SHARE`, int64; sums of up to 2**22 values of 1 fit."""
    return np.rint(values / SHARE).astype(np.int64)


def at_least(counts: np.ndarray) -> np.ndarray:
    """Return how many values lie at each level or above it."""
    return counts[::-1].cumsum()[::-1]


def auroc(background: np.ndarray, defects: np.ndarray) -> float | None:
    """Return the area under the ROC curve in %, or None unless there are both.

    It is the share of the pairs of a defect and a background value in which the defect's is
    higher, ties counting half.

    Args:
        background: (L,) counts by level.
        defects: (L,) the same.
    """
    if not (background.any() and defects.any()):
        return None
    lower = background.cumsum() - background / 2  # of equals one half
    return float(100 * (defects / defects.sum()) @ (lower / background.sum()))
