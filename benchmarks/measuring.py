"""Time and memory of code that runs in a process of its own."""

import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import NamedTuple

import torch


class Cost(NamedTuple):
    """What one step takes."""

    seconds: float
    megabytes: float


def peak_megabytes(device: str) -> float:
    """Return the peak of this process so far: resident memory, on a GPU allocated memory."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss in bytes there
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def in_new_process(measure: Callable[..., Cost], *arguments: object) -> Cost:
    """Call `measure` where no earlier measurement has raised the peak."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, *arguments).result()
