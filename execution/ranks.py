"""Processes of one call, each with a GPU or cores of its own: torchrun starts them.

    torchrun --nproc-per-node 4 train_stac.py --config configs/neu_seg.toml --out runs/neu_seg

A call without torchrun is one process, and every function here then leaves all as it is. The
processes (ranks) run the same script and see the same folders. Lists are divided among them, the
first one prints and writes what belongs to the whole run (docs/distributed.md). What they do with
tensors is models/whole_batch.py. PyTorch is imported where it is needed: not all that asks for the
rank needs it.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

# The first rank may be alone at work for long, when it reads the data.
TIMEOUT = timedelta(hours=6)

Item = TypeVar("Item")


def join(device: torch.device | str) -> torch.device | str:
    """Join the other processes of this call, if torchrun started it, and return the own device.

    Args:
        device: a GPU or the CPU; of several GPUs each process of a machine takes its own.

    Raises:
        ValueError: fewer GPUs than processes on this machine.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return device
    import torch
    import torch.distributed as dist

    device = torch.device(device)
    if device.type == "cuda":
        number, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= there:
            raise ValueError(
                f"torchrun: expected at most one process a GPU, {there} on this machine, got "
                f"{os.environ['LOCAL_WORLD_SIZE']}. Lower --nproc-per-node, or add --device cpu."
            )
        device = torch.device("cuda", number)
        torch.cuda.set_device(device)
    if dist.is_initialized():
        return device
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    signal.signal(signal.SIGTERM, _end)  # what torchrun sends when a process has ended
    if not is_first():
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    return device


def launcher(device: str, most: int) -> list[str]:
    """Return the words before those of a Python call that start it on all visible GPUs.

    Args:
        device: of `--device`.
        most: more processes have nothing to do.
    """
    if device == "cpu" or not shutil.which("nvidia-smi"):
        return []
    import torch

    processes = min(torch.cuda.device_count(), most)
    return torchrun(processes) if processes > 1 else []


def torchrun(processes: int) -> list[str]:
    """Return the words before those of a Python call that start so many processes of it here."""
    return ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]


def rank() -> int:
    """Return the number of this process, 0 for the first one."""
    return _world()[0]


def size() -> int:
    """Return the number of processes."""
    return _world()[1]


def is_first() -> bool:
    """Tell whether this is the process that prints and writes."""
    return rank() == 0


def part(items: Sequence[Item], block: int = 1) -> Sequence[Item]:
    """Return this rank's part of a list; the parts in order of rank are the list.

    Args:
        items: of all ranks, the same list in each.
        block: parts begin at multiples of it, so that batches are those of one process.
    """
    num_blocks = -(-len(items) // block)
    start, end = (block * (number * num_blocks // size()) for number in (rank(), rank() + 1))
    return items[start:end]


def wait() -> None:
    """Wait until all ranks are here."""
    if size() > 1:
        import torch.distributed as dist

        with told_apart():
            dist.barrier()


@contextmanager
def first_alone() -> Iterator[None]:
    """Let the first rank do what follows alone; the others do it when it is done.

    For what leaves files that the others then find.
    """
    if not is_first():
        wait()
    yield
    if is_first():
        wait()


def gathered(value: Any) -> list[Any]:
    """Return the values of all ranks, in order; any that can be pickled."""
    values = [value] * size()
    if size() > 1:
        import torch.distributed as dist

        with told_apart():
            dist.all_gather_object(values, value)
    return values


@contextmanager
def told_apart() -> Iterator[None]:
    """Say in plain words that another rank has ended, which the libraries say in their own."""
    try:
        yield
    except RuntimeError as error:
        raise _ended() from error


def _ended() -> RuntimeError:
    return RuntimeError(
        f"rank {rank()} of {size()}: another process of this call has ended; its own message, if "
        "any, says why. The same command continues, a training with --resume."
    )


def _end(*_: object) -> None:
    raise _ended()


def _world() -> tuple[int, int]:
    """Return the number of this rank and of all; without torchrun, or before `join`, 0 and 1."""
    dist = sys.modules.get("torch.distributed")
    if dist is None or not dist.is_initialized():
        return 0, 1
    return dist.get_rank(), dist.get_world_size()
