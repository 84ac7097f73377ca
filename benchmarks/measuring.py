"""Time and memory of code that runs in a process of its own."""

import argparse
import json
import resource
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Cost(NamedTuple):
    """What one step takes."""

    seconds: float
    megabytes: float

    def __str__(self) -> str:
        return f"{self.seconds:7.2f} s {self.megabytes:5.0f} MB"


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


def run_benchmark(
    argv: Sequence[str] | None,
    description: str,
    header: str,
    rows_of: Callable[[str], Iterable[tuple[dict[str, Any], str]]],
) -> None:
    """Print a table, a line at a time, and write its rows as JSON where --json names a file.

    Args:
        argv: of the command line.
        description: for --help; the first line is taken.
        header: first line of the table.
        rows_of: gives each row of a device, and its line of the table.
    """
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--json", type=Path, help="file for the rows")
    arguments = parser.parse_args(argv)
    rows = []
    print(header)
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for row, line in rows_of(device):
            rows.append(row)
            print(line, flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
