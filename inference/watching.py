"""A folder that pictures are put into: each new one is given once."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

from datasets.files import IMAGE_SUFFIXES

PAUSE = 0.5  # seconds between two looks; a picture that has not changed in between is complete


def new_pictures(
    folder: Path, is_done: Callable[[Path], bool], goes_on: Callable[[], bool] = lambda: True
) -> Iterator[Path]:
    """Give each picture of a folder, and of those below it, once it is complete, oldest first.

    One whose size and time stay as they are between two looks is complete. One that is written anew
    is given again.

    Args:
        folder: existing.
        is_done: tells whether a picture needs no look, as an earlier call has seen it.
        goes_on: asked before each look.

    Raises:
        FileNotFoundError: no such folder, also later on.
    """
    given: dict[Path, tuple[int, int]] = {}  # size and time at which a picture was given
    before: dict[Path, tuple[int, int]] = {}
    while goes_on():
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: expected a folder to watch, found none.")
        now = dict(_states(folder))
        complete = [path for path, state in now.items() if before.get(path) == state]
        for path in sorted(complete, key=lambda path: (now[path][1], path)):
            if given.get(path) != now[path]:
                first = path not in given
                given[path] = now[path]
                if not (first and is_done(path)):
                    yield path
        before = now
        time.sleep(PAUSE)


def _states(folder: Path) -> Iterator[tuple[Path, tuple[int, int]]]:
    for path in folder.rglob("*"):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            try:
                state = path.stat()
            except OSError:  # taken away since
                continue
            if path.is_file():
                yield path, (state.st_size, state.st_mtime_ns)
