"""The same work on many items, in a process for each core.

For work of many small operations: threads of one process spend much of their time waiting for each
other, processes of one thread do not. They are forked, so that functions and networks need not be
pickled; where a system cannot fork, all is done in turn.
"""

import ctypes
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_all_start_methods, get_context
from typing import Any, TypeVar

import cv2

MOST_PROCESSES = 8  # more wait for the disk
PR_SET_PDEATHSIG = 1  # of linux/prctl.h
FEW = 8  # items for which it does not pay to start processes
AHEAD = 4  # items a process that wait or whose results do

Item = TypeVar("Item")
Result = TypeVar("Result")


def on_cores(
    work: Callable[[Item], Result], items: Sequence[Item], processes: int | None = None
) -> Iterator[Result]:
    """Give what `work` returns of each item, in order.

    Args:
        work: what it returns is pickled. In several processes it must not use a GPU.
        items: what is worked on.
        processes: at most so many, and `MOST_PROCESSES`; None for the cores that this process may
            use. With one, or less than `FEW` items, all is done here.

    Raises:
        Exception: the first that an item raised, after the results before it.
        RuntimeError: a process was killed.
    """
    processes = min(_cores() if processes is None else processes, MOST_PROCESSES)
    if processes == 1 or len(items) < FEW or "fork" not in get_all_start_methods():
        yield from map(work, items)
        return
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # here: threads of OpenCV would be waited for in vain by what is forked
    pool = ProcessPoolExecutor(processes, get_context("fork"), _begin, (work, items))
    results = deque()
    try:
        for number in range(len(items)):
            results.append(pool.submit(_call, number))
            if len(results) == AHEAD * processes:
                yield results.popleft().result()
        while results:
            yield results.popleft().result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a process of this call was ended from outside, mostly for want of memory. The same "
            "command continues; OMP_NUM_THREADS=1 before it starts one process alone."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)
        cv2.setNumThreads(threads)


def _cores() -> int:
    available = getattr(os, "sched_getaffinity", None)  # Linux alone tells those of this process
    return len(available(0)) if available else os.cpu_count() or 1


_work: Callable[[Any], Any]  # of a process of the pool, as the next
_items: Sequence[Any]


def _begin(work: Callable[[Any], Any], items: Sequence[Any]) -> None:
    global _work, _items
    _work, _items = work, items
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the first process ends us
    if sys.platform == "linux":  # so does its death: nobody waits for work that will never come
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


def _call(number: int) -> Any:
    return _work(_items[number])
