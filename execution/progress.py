"""Progress wherever a person waits: a bar on a terminal, a line a minute in a log file."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

from execution import ranks

LINE_EVERY = 60.0  # seconds
LINE = "{desc}: {n_fmt} of {total_fmt}, {rate_fmt}, {elapsed} passed, {remaining} left{postfix}"

Item = TypeVar("Item")


def progress(
    items: Iterable[Item], title: str, total: int | None = None, unit: str = "images"
) -> Iterator[Item]:
    """Give the items and show how many are done, how fast, and how long the rest will take.

    Args:
        items: what is waited for.
        title: says what is done with them.
        total: how many they are; None for len(items).
        unit: of an item.
    """
    return iter(_bar(title, unit, iterable=items, total=total))


def steps_bar(title: str, total: int, done: int = 0) -> tqdm:
    """Return the bar of a training, to be moved by `update()` and closed.

    Args:
        title: what is trained.
        total: steps of the whole training.
        done: steps of an earlier call.
    """
    return _bar(title, "steps", total=total, initial=done)


class _Lines:
    """Takes what tqdm draws over and over in one line of a terminal, and writes lines of it."""

    def write(self, text: str) -> None:
        if line := text.strip("\r\n "):
            sys.stderr.write(f"  {line}\n")

    def flush(self) -> None:
        sys.stderr.flush()


def _bar(title: str, unit: str, **how_many: object) -> tqdm:
    if not ranks.is_first():
        return tqdm(disable=True, **how_many)
    if sys.stderr.isatty():
        # None: a bar within another one goes when it is full.
        return tqdm(desc=title, unit=f" {unit}", dynamic_ncols=True, leave=None, **how_many)
    # What takes less than a line's time says nothing.
    return tqdm(
        desc=title,
        unit=f" {unit}",
        file=_Lines(),
        bar_format=LINE,
        mininterval=LINE_EVERY,
        miniters=1,
        delay=LINE_EVERY,
        leave=False,
        **how_many,
    )
