"""Time and memory of a whole training step against plain classification with the same ViT.

    python -m benchmarks.training [--json FILE]

Ours is the step of train_stac.py at the paper's settings: DeiT-S with 3 class tokens, the five
losses, backward, clipping, AdamW. It is compared with timm's DeiT-S with one class token, a linear
head and the multi-label soft margin loss; same batch, size, autocast type, clipping and optimizer.
Both run in turn, each in processes of its own. Time is that of the fastest step; memory is the
growth of the peak over what is held before the model is built.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F

from benchmarks.measuring import Cost, in_new_process, peak_megabytes, run_benchmark
from configs import Config
from models.device import amp_dtype, autocast
from models.optim import optimizer_step, parameter_groups
from models.stac import build_stac
from train_stac import CLIP_NORM, WEIGHT_DECAY, batch_loss

NUM_CLASSES = 3
LR = 1e-4
ROUNDS = 3  # processes per implementation
STEPS = 4  # per process, after one that is not timed
CONFIG = Config()
WARM_UP = ("vit_tiny_patch16_224", 2, (32, 32), 1)  # backbone, batch, size, steps
FULL = (CONFIG.train.backbone, CONFIG.train.batch_size, CONFIG.train.image_size, STEPS)


def make_batch(batch_size: int, size: tuple[int, int]) -> dict[str, torch.Tensor]:
    """Return images with smooth saliency maps and one or two labels each."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch_size, 1, 7, 7, generator=generator)
    labels = torch.zeros(batch_size, NUM_CLASSES)
    for b in range(batch_size):
        labels[b, [b % NUM_CLASSES, b // NUM_CLASSES % NUM_CLASSES]] = 1
    return {
        "image": torch.randn(batch_size, 3, *size, generator=generator),
        "label": labels,
        "map": F.interpolate(coarse, size, mode="bilinear").clamp(0, 1),
    }


def stac_step(
    backbone: str, size: tuple[int, int], device: torch.device
) -> tuple[torch.nn.Module, Callable[[dict[str, torch.Tensor]], torch.Tensor]]:
    """Return the localiser and the function that gives its loss on a batch."""
    settings = dataclasses.replace(CONFIG.train, backbone=backbone, image_size=size)
    model = build_stac(settings, NUM_CLASSES).to(device)
    generator = torch.Generator(device).manual_seed(0)
    return model, lambda batch: batch_loss(model, batch, CONFIG, device, generator)[0]


def plain_step(
    backbone: str, size: tuple[int, int], device: torch.device
) -> tuple[torch.nn.Module, Callable[[dict[str, torch.Tensor]], torch.Tensor]]:
    """Return timm's classifier and the function that gives its loss on a batch."""
    drop_path = CONFIG.train.drop_path
    model = timm.create_model(
        backbone, num_classes=NUM_CLASSES, img_size=size, drop_path_rate=drop_path
    ).to(device)

    def loss(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        logits = model(batch["image"].to(device))
        return F.multilabel_soft_margin_loss(logits.float(), batch["label"].to(device))

    return model, loss


STEP_OF = {"ours": stac_step, "plain": plain_step}


def train(
    name: str, backbone: str, batch_size: int, size: tuple[int, int], steps: int, device: str
) -> float:
    """Train an implementation for some steps after a first one; return the fastest one's time."""
    place = torch.device(device)
    batch = make_batch(batch_size, size)
    dtype = amp_dtype(place, "auto")
    torch.manual_seed(0)
    model, loss = STEP_OF[name](backbone, size, place)
    model.train()
    optimizer = torch.optim.AdamW(parameter_groups(model, WEIGHT_DECAY), lr=LR)
    scaler = torch.amp.GradScaler(device, enabled=dtype is torch.float16)
    seconds = []
    for _ in range(1 + steps):
        start = time.perf_counter()
        with autocast(place, dtype):
            total = loss(batch)
        scaler.scale(total).backward()
        optimizer_step(model, optimizer, scaler, CLIP_NORM)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def measure(name: str, device: str) -> Cost:
    """Measure one implementation in this process, after a small training that loads libraries."""
    train(name, *WARM_UP, device)
    before = peak_megabytes(device)
    seconds = train(name, *FULL, device)
    return Cost(seconds, peak_megabytes(device) - before)


def rows_of(device: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Measure both in turn; give the row and its line of the table."""
    costs: dict[str, list[Cost]] = {name: [] for name in STEP_OF}
    for _ in range(ROUNDS):
        for name, of_side in costs.items():
            of_side.append(in_new_process(measure, name, device))
    ours, plain = (Cost(*map(min, zip(*of_side, strict=True))) for of_side in costs.values())
    dtype = amp_dtype(torch.device(device), "auto") or torch.float32
    row = {
        "row": f"step of {FULL[1]}, {str(dtype).removeprefix('torch.')}, {device}",
        "time_ratio": ours.seconds / plain.seconds,
        "memory_ratio": ours.megabytes / plain.megabytes,
    }
    ratios = f"{row['time_ratio']:5.2f}x {row['memory_ratio']:6.2f}x"
    yield row, f"{row['row']:28} {ours}  {plain} {ratios}"


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table, and write its rows as JSON where a file is named."""
    header = f"{'':28} {'STAC':>18} {'plain ViT':>18} {'time':>6} {'memory':>7}"
    run_benchmark(argv, __doc__, header, rows_of)


if __name__ == "__main__":
    main()
