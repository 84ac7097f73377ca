"""The same work on many files, divided among the cores of this machine and the ranks of a call."""

import os
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from typing import Any, Protocol, Self, TypeVar

import cv2

from execution import ranks
from execution.progress import progress

CHUNK = 16  # items that are counted at a time
LEAST_CHUNKS = 8  # for fewer it does not pay to start processes
MOST_PROCESSES = 8  # more wait for the disk

Item = TypeVar("Item")


class Counter(Protocol):
    """Counts items; what is counted apart adds up to the same, to the last bit."""

    def fresh(self) -> Self:
        """Return one that has counted nothing yet."""

    def merge(self, other: Self) -> None:
        """Add what another one has counted of the items that follow."""


def count_over(
    counters: Sequence[Counter],
    items: Sequence[Item],
    count: Callable[[Sequence[Counter], Item], None],
    title: str,
    parallel: bool = True,
) -> None:
    """Count items, in order.

    Args:
        counters: take what is counted.
        items: the same in all ranks, each of which counts its part.
        count: counts one item with counters like those given.
        title: says what is done, for the progress.
        parallel: in several processes; they are forked, so `count` must not call PyTorch.
    """
    own = ranks.part(items)
    starts = range(0, len(own), CHUNK)

    def count_chunk(number: int) -> Sequence[Counter]:
        counted = [counter.fresh() for counter in counters]
        for item in own[starts[number] : starts[number] + CHUNK]:
            count(counted, item)
        return counted

    total = [counter.fresh() for counter in counters]
    chunks = (
        _in_processes(count_chunk, len(starts))
        if parallel
        else map(count_chunk, range(len(starts)))
    )
    for counted in progress(chunks, title, len(starts), unit=f"x {CHUNK} files"):
        _merge(total, counted)
    for of_rank in ranks.gathered(total):
        _merge(counters, of_rank)


def _merge(counters: Sequence[Counter], others: Sequence[Counter]) -> None:
    for counter, other in zip(counters, others, strict=True):
        counter.merge(other)


def _in_turn(function: Callable[[int], Any], count: int) -> Iterator[Any]:
    return map(function, range(count))


def _in_processes(function: Callable[[int], Any], count: int) -> Iterator[Any]:
    """Give function(0) to function(count - 1) in order."""
    processes = min(len(os.sched_getaffinity(0)), MOST_PROCESSES)
    if processes == 1 or count < LEAST_CHUNKS:
        yield from _in_turn(function, count)
        return
    with get_context("fork").Pool(processes, _begin, (function,)) as pool:
        yield from pool.imap(_call, range(count))


_function: Callable[[int], Any]  # of a process of the pool; forked, so it need not be pickled


def _begin(function: Callable[[int], Any]) -> None:
    global _function
    _function = function
    cv2.setNumThreads(1)


def _call(number: int) -> Any:
    return _function(number)
