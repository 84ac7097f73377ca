"""Maps that end where their image has an edge."""

import numpy as np
import torch

from datasets.record import Record
from saliency.edges import along_edges, with_pamr
from saliency.generator import Prepared

CPU = torch.device("cpu")


def picture() -> np.ndarray:
    """Return 40 x 60 pixels: a dark square on a bright surface."""
    image = np.full((40, 60, 3), 200, np.uint8)
    image[12:28, 20:36] = 50
    return image


def coarse() -> np.ndarray:
    """Return a map that fades out around the square and does not fill its corners."""
    y, x = np.mgrid[:40, :60]
    distance = np.hypot(y - 19.5, x - 27.5)
    return np.clip(1.5 - distance / 14, 0, 1).astype(np.float32)


def iou(saliency: np.ndarray) -> float:
    seen, truth = saliency > 0.5, picture()[..., 0] < 100
    return (seen & truth).sum() / (seen | truth).sum()


def test_a_coarse_map_moves_to_the_edge_of_the_defect():
    fine = along_edges(picture(), coarse(), 20, CPU)
    assert fine.shape == (40, 60) and fine.dtype == np.float32
    assert fine.min() >= 0 and fine.max() <= 1
    assert iou(fine) > max(0.9, iou(coarse()) + 0.1)
    assert np.array_equal(along_edges(picture(), coarse(), 0, CPU), coarse())


def test_a_refined_generator_keeps_what_it_learnt():
    record = Record("a", None, (0,))
    plain = Prepared(lambda record, image: coarse(), {"fact": 1}, ("line",), {"b": "broken"})
    refined = with_pamr(plain, 20, CPU)
    learnt = refined.facts, refined.lines, refined.problems
    assert learnt == ({"fact": 1}, ("line",), {"b": "broken"})
    expected = along_edges(picture(), coarse(), 20, CPU)
    assert np.array_equal(refined.make_map(record, picture()), expected)
