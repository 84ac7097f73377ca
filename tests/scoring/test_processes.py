"""What several processes count of parts of the files is what one counts of all, to the last bit."""

import json
import os

import numpy as np
import pytest

from execution import ranks
from scoring import processes
from scoring.confusion import ConfusionMatrix, LevelledSeeds, ThresholdSweep
from scoring.detailed import DetailedScores
from scoring.processes import count_over
from scoring.saliency import SaliencyHistogram
from scoring.thresholds import MapCounts

NUM_CLASSES, SIZE = 2, (6, 9)
NUM_IMAGES = 50


def image(number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return truth, two maps and a saliency map of an image."""
    rng = np.random.default_rng(number)
    truth = rng.integers(0, NUM_CLASSES + 1, SIZE).astype(np.uint8)
    if number % 5 == 0:
        truth[:] = 0
    truth[0, 0] = 255
    return truth, rng.random((NUM_CLASSES, *SIZE), np.float32), rng.random(SIZE, np.float32)


def count(counters, number: int) -> None:
    truth, maps, saliency = image(number)
    confusion, sweep, levelled, histogram, detailed, counts = counters
    mask = maps.argmax(axis=0).astype(np.uint8)
    confusion.update(truth, mask)
    sweep.update(truth, maps, np.arange(NUM_CLASSES))
    levelled.update(truth, maps, np.arange(NUM_CLASSES))
    histogram.update(truth, saliency, labelled=number % 5 > 0)
    # Groups of three, that begin in one chunk and end in another, and images by themselves.
    detailed.update(truth, mask, saliency, group=str(number // 3) if number % 2 else None)
    counts.add(maps, range(NUM_CLASSES), saliency)


def counters():
    return [
        ConfusionMatrix(NUM_CLASSES),
        ThresholdSweep((0.2, 0.5, 0.7), NUM_CLASSES),
        LevelledSeeds((0.3, 0.6)),
        SaliencyHistogram(NUM_CLASSES),
        DetailedScores(NUM_CLASSES),
        MapCounts(NUM_CLASSES, 0.5),
    ]


def figures(counters) -> str:
    """Return all scores as text with all digits."""
    confusion, sweep, levelled, histogram, detailed, counts = counters
    return json.dumps(
        [
            confusion.counts.tolist(),
            [sweep.confusion(t).counts.tolist() for t in sweep.thresholds],
            levelled.counts.tolist(),
            [*histogram.scores(), histogram.false_alarm(0.4), histogram.defect_free_images],
            detailed.scores(rounds=20),
            [counts.thresholds(rule) for rule in ("auto", "class", "agreement")],
        ]
    )


@pytest.fixture(scope="module")
def in_one_go() -> str:
    total = counters()
    for number in range(NUM_IMAGES):
        count(total, number)
    return figures(total)


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_parts_add_up_to_the_whole(chunk, in_one_go, monkeypatch):
    monkeypatch.setattr(processes, "CHUNK", chunk)
    total = counters()
    count_over(total, range(NUM_IMAGES), count, "counting", parallel=False)
    assert figures(total) == in_one_go


def test_processes_count_what_one_does(in_one_go, monkeypatch):
    monkeypatch.setattr(processes, "CHUNK", 3)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    counted_in = set()

    def count_and_tell(counters, number: int) -> None:
        counted_in.add(os.getpid())  # of the child, whose set is its own
        count(counters, number)

    total = counters()
    count_over(total, range(NUM_IMAGES), count_and_tell, "counting")
    assert figures(total) == in_one_go
    assert counted_in == set()


def test_counts_of_earlier_calls_are_kept(in_one_go):
    total = counters()
    for part in (range(20), range(20, NUM_IMAGES)):
        count_over(total, part, count, "counting", parallel=False)
    assert figures(total) == in_one_go


def test_ranks_count_their_parts(in_one_go, monkeypatch):
    of_ranks = []
    monkeypatch.setattr(ranks, "size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(ranks, "gathered", lambda total: of_ranks.append(total) or [])
        count_over(counters(), range(NUM_IMAGES), count, "counting", parallel=False)
    monkeypatch.setattr(ranks, "gathered", lambda _: of_ranks)
    total = counters()
    count_over(total, range(NUM_IMAGES), count, "counting", parallel=False)
    assert figures(total) == in_one_go


def test_an_error_in_a_process_is_the_error_of_the_call(monkeypatch):
    def fail(counters, number: int) -> None:
        raise ValueError(f"image {number}: expected a map, got none.")

    monkeypatch.setattr(processes, "CHUNK", 3)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    with pytest.raises(ValueError, match="^image 0: expected a map, got none.$"):
        count_over(counters(), range(NUM_IMAGES), fail, "counting")
