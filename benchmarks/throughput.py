"""Images a second of training and CAMs, memory, and the share of what the GPU can multiply.

    python -m benchmarks.throughput --device cuda --batch-sizes 16 64 256

The model is the paper's: DeiT-S with 3 class tokens at 224 x 224 (21.75 M parameters, 4.29 GMACs,
283 images/s and 156 MB in its table; without the projection that only training needs), random
weights. These are absolute figures of one machine.
Multiplications are counted by PyTorch's flop counter in the forward pass; the backward pass takes
twice as many. --peak is the number of bfloat16 operations a second that the GPU is sold with.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.measuring import peak_megabytes, seconds_of
from benchmarks.training import CONFIG, NUM_CLASSES, compiled, make_batch, stac_step, step_of
from configs.command_line import run_stage
from models.cam import raw_cam
from models.device import amp_dtype, autocast
from models.stac import build_stac

PEAK = 989e12  # bfloat16 operations a second of an H100 or H200, dense, by its data sheet
REPEATS = 10
HEAD = ("work", "batch", "images/s", "memory, MB", "of the peak, %")


def rows(
    device: str, batch_sizes: Sequence[int], size: tuple[int, int], peak: float, repeats: int
) -> Iterator[dict[str, Any]]:
    """Measure training and CAMs at each batch size."""
    operations = 2 * multiplications(size)
    for batch_size in batch_sizes:
        sizes = (CONFIG.train.backbone, batch_size, size)
        works: dict[str, tuple[Callable[[], Any], int]] = {
            "training": (step_of(stac_step, False, device, sizes), 3),
            "CAMs": (cam_step(batch_size, size, device), 1),
        }
        if device == "cuda":
            works["training, compiled"] = step_of(compiled_step, False, device, sizes), 3
        for work, (step, passes) in works.items():
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            rate = batch_size / seconds_of(step, device, repeats, warm_up=2)
            share = 100 * rate * passes * operations / peak if device == "cuda" else None
            megabytes = peak_megabytes(device)
            values = (work, batch_size, rate, megabytes, share)
            yield dict(zip(HEAD, values, strict=True))


def compiled_step(*sizes: Any) -> Any:
    """Build the training step with a compiled model."""
    return compiled(stac_step, *sizes)


def cam_step(batch_size: int, size: tuple[int, int], device: str) -> Callable:
    """Return the pass that gives the fused CAMs of a batch."""
    place = torch.device(device)
    dtype = amp_dtype(place, "auto")
    torch.manual_seed(0)
    model = build_stac(CONFIG.train, NUM_CLASSES).to(place).eval()
    images = make_batch(batch_size, size)["image"].to(place)

    @torch.no_grad()
    def step() -> torch.Tensor:
        with autocast(place, dtype):
            return raw_cam(model(images), "fused")

    return step


def multiplications(size: tuple[int, int]) -> int:
    """Return the multiply-add operations of the model on an image."""
    model = build_stac(CONFIG.train, NUM_CLASSES).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, *size))
    return counter.get_total_flops() // 2


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cuda")
    add("--batch-sizes", type=int, nargs="+", default=[16, 64, 256], metavar="N")
    add("--peak", type=float, default=PEAK, help=f"operations a second (default: {PEAK:g})")
    add("--repeats", type=int, default=REPEATS, help=f"steps that are timed (default: {REPEATS})")
    add("--json", type=Path, metavar="FILE", help="for the rows too")
    args = parser.parse_args(argv)
    size = CONFIG.train.image_size
    model = build_stac(CONFIG.train, NUM_CLASSES)
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    giga = multiplications(size) / 1e9
    print(f"{parameters:.2f} M parameters, {giga:.2f} GMACs at {size[0]} x {size[1]}\n")
    print(f"| {' | '.join(HEAD)} |\n|{'---|' * len(HEAD)}")
    content = []
    for row in rows(args.device, args.batch_sizes, size, args.peak, args.repeats):
        content.append(row)
        print(f"| {' | '.join(map(_cell, row.values()))} |", flush=True)
    if args.json:
        args.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _cell(value: str | float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    run_stage(main)
