"""Time and memory against what a user would run instead: python -m benchmarks.

    python -m benchmarks                                # all rows
    python -m benchmarks --rows contrast pamr --json costs.json

A row is the median of pairs of runs, one of each side, with the lowest and the highest ratio.
Memory is the growth of the peak over that of a small run: resident memory, on a GPU allocated
memory.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.measuring import PAIRS, Measured, Row, measure
from benchmarks.rows import ROWS
from configs.command_line import run_stage

HEAD = ("row", "speedup", "lowest to highest", "at least", "memory", "at most", "ours", "other")


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table, a row as soon as it is measured."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", nargs="+", choices=tuple(ROWS), default=list(ROWS), metavar="ROW")
    parser.add_argument("--pairs", type=int, default=PAIRS, metavar="N", help="default: 7")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="for the rows too")
    args = parser.parse_args(argv)
    about = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    print(f"{about}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print(line(HEAD))
    print(line(("---",) * len(HEAD)), flush=True)
    content = []
    for name in args.rows:
        row = ROWS[name]
        if args.device not in row.devices:
            continue
        found = measure(name, ROWS, args.device, args.pairs)
        print(line(cells(name, row, found)), flush=True)
        content.append({"row": name, "device": about, **found._asdict()})
    print("\n" + "\n".join(f"- {n}: {ROWS[n].work}, against {ROWS[n].against}." for n in args.rows))
    if args.json:
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def cells(name: str, row: Row, found: Measured) -> tuple[str, ...]:
    """Return the cells of a row of the table."""
    memory = "-" if found.memory is None else f"{found.memory:.2f}"
    most = "-" if row.memory is None else f"{row.memory:.2f}"
    costs = [
        f"{1000 * seconds:.0f} ms, {megabytes:.0f} MB"
        for seconds, megabytes in zip(found.seconds, found.megabytes, strict=True)
    ]
    spread = f"{found.lowest:.2f} to {found.highest:.2f}"
    return name, f"{found.speedup:.2f}", spread, f"{row.target:.2f}", memory, most, *costs


def line(cells: Sequence[str]) -> str:
    """Return a line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    run_stage(main)
