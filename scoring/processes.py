"""The same work on many files, divided among the cores of this machine and the ranks of a call."""

from collections.abc import Callable, Sequence
from typing import Protocol, Self, TypeVar

from execution import ranks
from execution.cores import on_cores
from execution.progress import progress

CHUNK = 16  # items that are counted at a time

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
        parallel: in several processes; `count` must not use a GPU then.
    """
    own = ranks.part(items)
    starts = range(0, len(own), CHUNK)

    def count_chunk(start: int) -> Sequence[Counter]:
        counted = [counter.fresh() for counter in counters]
        for item in own[start : start + CHUNK]:
            count(counted, item)
        return counted

    total = [counter.fresh() for counter in counters]
    chunks = on_cores(count_chunk, starts, None if parallel else 1)
    for counted in progress(chunks, title, len(starts), unit=f"x {CHUNK} files"):
        _merge(total, counted)
    for of_rank in ranks.gathered(total):
        _merge(counters, of_rank)


def _merge(counters: Sequence[Counter], others: Sequence[Counter]) -> None:
    for counter, other in zip(counters, others, strict=True):
        counter.merge(other)
