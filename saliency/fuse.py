"""Saliency maps of several generators combined into one."""

from collections.abc import Sequence

import numpy as np
import torch

from datasets.record import Record
from datasets.sources import Data
from saliency import contrast, external, feature, normal
from saliency.generator import Prepared, Settings

PARTS = {
    "contrast": contrast.prepare,
    "external": external.prepare,
    "feature": feature.prepare,
    "normal": normal.prepare,
}


def prepare(
    settings: Settings, data: Data, records: Sequence[Record], device: torch.device
) -> Prepared:
    """Prepare the generators that `settings.fuse` names, each with the same settings."""
    parts = [PARTS[name](settings, data, records, device) for name in settings.fuse]

    def make_map(record: Record, image: np.ndarray) -> np.ndarray:
        return combine([part.make_map(record, image) for part in parts], settings.fuse_rule)

    facts = {key: value for part in parts for key, value in part.facts.items()}
    problems = {key: value for part in parts for key, value in part.problems.items()}
    return Prepared(make_map, facts, tuple(line for part in parts for line in part.lines), problems)


def combine(maps: Sequence[np.ndarray], rule: str) -> np.ndarray:
    """Combine maps of one image.

    Args:
        maps: each (H, W) in [0, 1].
        rule: mean; geometric, salient where all maps agree; max, salient where one map says so;
            rank, the mean of ranks, which compares maps whose values are not comparable but
            always makes some pixels salient.

    Returns:
        (H, W) float32 in [0, 1].
    """
    stack = np.stack(maps).astype(np.float32)  # (M, H, W)
    if rule == "geometric":
        fused = np.prod(stack, axis=0) ** (1 / len(stack))
    elif rule == "max":
        fused = stack.max(axis=0)
    elif rule == "rank":
        fused = np.mean([_ranks(values) for values in stack], axis=0)
    else:
        fused = stack.mean(axis=0)
    return fused.astype(np.float32)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return the share of the other pixels that lie below each pixel, (H, W) in [0, 1]."""
    below = np.searchsorted(np.sort(values, axis=None), values.ravel(), side="left")
    return (below / max(values.size - 1, 1)).reshape(values.shape)
