"""A whole training step against plain classification with the same ViT.

Ours is the step of train_stac.py at the paper's settings: DeiT-S with 3 class tokens, the five
losses, backward, clipping, AdamW. It is compared with timm's DeiT-S with one class token, a linear
head and the multi-label soft margin loss; same batch, size, autocast type, clipping and optimizer.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
import torch.nn.functional as F

from benchmarks.measuring import Row, Step
from configs import Config
from models.device import amp_dtype, autocast
from models.optim import optimizer_step, parameter_groups
from models.stac import build_stac
from train_stac import CLIP_NORM, WEIGHT_DECAY, batch_loss

NUM_CLASSES = 3
LR = 1e-4
BACKEND = "inductor"  # of torch.compile
CONFIG = Config()
SMALL = ("vit_tiny_patch16_224", 2, (32, 32))  # backbone, batch, size
FULL = (CONFIG.train.backbone, CONFIG.train.batch_size, CONFIG.train.image_size)

Build = Callable[[str, tuple[int, int], torch.device], tuple[torch.nn.Module, Callable[[Any], Any]]]


def make_batch(
    batch_size: int, size: tuple[int, int], num_classes: int = NUM_CLASSES
) -> dict[str, torch.Tensor]:
    """Return images with smooth saliency maps and one or two labels each."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(batch_size, 1, 7, 7, generator=generator)
    labels = torch.zeros(batch_size, num_classes)
    for b in range(batch_size):
        labels[b, [b % num_classes, b // num_classes % num_classes]] = 1
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


def step_of(
    build: Build, small: bool, device: str, full: tuple[str, int, tuple[int, int]] = FULL
) -> Step:
    """Return a training step of backbone, batch and size; its result is the loss."""
    backbone, batch_size, size = SMALL if small else full
    place = torch.device(device)
    dtype = amp_dtype(place, "auto")
    batch = make_batch(batch_size, size)
    torch.manual_seed(0)
    model, loss = build(backbone, size, place)
    model.train()
    optimizer = torch.optim.AdamW(parameter_groups(model, WEIGHT_DECAY), lr=LR)
    scaler = torch.amp.GradScaler(device, enabled=dtype is torch.float16)

    def step() -> float:
        with autocast(place, dtype):
            total = loss(batch)
        scaler.scale(total).backward()
        optimizer_step(model, optimizer, scaler, CLIP_NORM)
        return total.item()

    return step


def compiled(build: Build, backbone: str, size: tuple[int, int], device: torch.device) -> Any:
    """Build what `build` does, its model compiled."""
    model, loss = build(backbone, size, device)
    model.compile(backend=BACKEND)
    return model, loss


ROW = Row(
    "training step of STAC, DeiT-S, 16 images of 224 x 224",
    "a step of classification with timm's DeiT-S",
    partial(step_of, stac_step),
    partial(step_of, plain_step),
    target=1 / 1.15,
    memory=1.3,
)
COMPILED = Row(
    "the same step with torch.compile",
    "eager",
    partial(step_of, partial(compiled, stac_step)),
    partial(step_of, stac_step),
    target=1.2,
    tolerance=0.2,
)
