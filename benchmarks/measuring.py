"""Two ways to one result, timed in turn: ours, and what a user would run instead.

Each side lives in a process of its own. After a warm-up the two are asked in turn, so that what
else happens on the machine meets both; the figures are ratios of neighbours.
"""

import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch

PAIRS = 7  # of runs, one of each side

Step = Callable[[], Any]  # does the work once and returns its result
# small: a size for tests; device: cpu or cuda
Make = Callable[[bool, str], Step]


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        work: what is done.
        against: what ours is compared with.
        ours: builds our side.
        other: builds the other.
        target: the least speedup.
        memory: the most memory, as a share of the other's; None where it is not compared.
        tolerance: how far results may differ, absolutely; None where both do not do the same.
        devices: where it can run.
    """

    work: str
    against: str
    ours: Make
    other: Make
    target: float
    memory: float | None = None
    tolerance: float | None = None
    devices: tuple[str, ...] = ("cpu", "cuda")


class Measured(NamedTuple):
    """What a comparison gave; ratios are other / ours for time and ours / other for memory."""

    speedup: float  # median of the pairs
    lowest: float
    highest: float
    memory: float | None  # None where ours takes less than can be measured, or the other does
    seconds: tuple[float, float]  # medians of ours and the other
    megabytes: tuple[float, float]


def measure(name: str, rows: dict[str, Row], device: str, pairs: int = PAIRS) -> Measured:
    """Run a comparison at its full size."""
    sides = [_Side(name, which, device) for which in ("ours", "other")]
    try:
        for side in sides:
            side.receive()  # one after the other: each has the machine for its warm-up
        times = [[side.ask("run") for side in sides] for _ in range(pairs)]
        megabytes = tuple(side.ask("peak") for side in sides)
    finally:
        for side in sides:
            side.close()
    ratios = [other / ours for ours, other in times]
    seconds = tuple(statistics.median(of_side) for of_side in zip(*times, strict=True))
    has_memory = rows[name].memory is not None and min(megabytes) >= 1
    memory = megabytes[0] / megabytes[1] if has_memory else None
    return Measured(statistics.median(ratios), min(ratios), max(ratios), memory, seconds, megabytes)


class _Side:
    """A process that builds one side and runs it when asked."""

    def __init__(self, name: str, which: str, device: str):
        context = get_context("spawn")
        self.connection, of_process = context.Pipe()
        self.process = context.Process(target=_serve, args=(of_process, name, which, device))
        self.process.start()
        of_process.close()

    def ask(self, what: str) -> float:
        self.connection.send(what)
        return self.receive()

    def receive(self) -> float:
        try:
            return self.connection.recv()
        except EOFError as error:
            raise RuntimeError("benchmarks: a side has ended; its message is above.") from error

    def close(self) -> None:
        self.connection.close()
        self.process.join()


def _serve(connection: Connection, name: str, which: str, device: str) -> None:
    from benchmarks.rows import ROWS  # not above: rows import this module

    make: Make = getattr(ROWS[name], which)
    make(True, device)()  # loads the libraries
    before = peak_megabytes(device)
    step = make(False, device)
    step()
    connection.send(0.0)
    try:
        while (what := connection.recv()) == "run":
            begun = time.perf_counter()
            step()
            if device == "cuda":
                torch.cuda.synchronize()
            connection.send(time.perf_counter() - begun)
        if what == "peak":
            connection.send(peak_megabytes(device) - before)
    except EOFError:
        pass


def seconds_of(step: Step, device: str, repeats: int, warm_up: int = 1) -> float:
    """Return the median time of a step, after some that are not counted."""
    times = []
    for _ in range(warm_up + repeats):
        begun = time.perf_counter()
        step()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return statistics.median(times[warm_up:])


def peak_megabytes(device: str) -> float:
    """Return the peak of this process so far: resident memory, on a GPU allocated memory."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss in bytes there
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
