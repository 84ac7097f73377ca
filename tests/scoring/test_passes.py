"""What a pass over files hands to the counters."""

from dataclasses import dataclass

import numpy as np
import pytest

from datasets.files import write_mask, write_saliency
from datasets.record import Record
from scoring.detailed import DetailedScores
from scoring.passes import count_details


@dataclass(frozen=True)
class Grouped(Record):
    group: str = ""


def half(shift=0):
    mask = np.zeros((6, 10), np.uint8)
    mask[:, 4 + shift :] = 1
    return mask


@pytest.mark.parametrize("threshold", [None, 0.5])
def test_images_of_one_group_are_drawn_together(tmp_path, threshold):
    wanted, records, paths = DetailedScores(1), [], []
    for i, group in enumerate(("part a", "part a", "", "", "part b", "part a")):
        truth, path = tmp_path / f"{i}_truth.png", tmp_path / f"{i}.png"
        write_mask(truth, half())
        if threshold is None:
            write_mask(path, half(i))
        else:
            write_saliency(path, half(i).astype(np.float32))
        records.append(Grouped(str(i), truth, (0,), truth, group=group))
        paths.append(path)
        wanted.update(half(), half(i), group=group)
    found = count_details(records, paths, 1, threshold).scores(rounds=50)
    assert found["miou_interval"] == wanted.scores(rounds=50)["miou_interval"]
