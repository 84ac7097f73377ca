"""What both training loops do: parameter groups, schedule, step, batches of an epoch."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, Sampler

from configs import SegmentationConfig, TrainConfig
from execution import ranks
from execution.progress import progress
from models.whole_batch import add_gradients

SEED_STRIDE = 1_000_003  # keeps epochs and steps of neighbouring seeds apart


def parameter_groups(
    model: nn.Module, weight_decay: float, lr_scale: Callable[[str], float] = lambda name: 1.0
) -> list[dict]:
    """Divide parameters by weight decay and learning-rate scale.

    Biases, norm scales and embeddings (tokens, positions: every parameter whose own model lists
    it in `no_weight_decay`, and every 1-d one) are not decayed. Frozen parameters are in no group.

    Args:
        model: whose parameters are trained.
        weight_decay: of the decayed ones.
        lr_scale: gives the factor of the learning rate by parameter name.

    Returns:
        Groups with params, weight_decay and lr_scale, for an optimizer and `set_lr`.
    """
    undecayed = model.no_weight_decay() if hasattr(model, "no_weight_decay") else set()
    groups: dict[tuple[float, float], dict] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay = 0.0 if parameter.ndim < 2 or name in undecayed else weight_decay
        scale = lr_scale(name)
        group = groups.setdefault(
            (decay, scale), {"params": [], "weight_decay": decay, "lr_scale": scale}
        )
        group["params"].append(parameter)
    return list(groups.values())


def warmup_cosine(step: int, num_steps: int, warmup_steps: int, lr: float, min_lr: float) -> float:
    """Return the rate of optimizer step 0 .. num_steps - 1.

    Linear from min_lr at step 0 to lr at `warmup_steps`, then half a cosine that reaches min_lr
    at the last step.
    """
    if step < warmup_steps:
        return min_lr + (lr - min_lr) * step / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - 1 - warmup_steps)
    return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the rate times its lr_scale (1 where it has none)."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def optimizer_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    clip_norm: float,
) -> None:
    """Move the weights along the gradients of all ranks, whose norm is clipped (0 = not).

    The gradients are cleared.
    """
    add_gradients(model)
    if clip_norm:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)


def finite_or_raise(values: dict[str, float], epoch: int, step: int) -> None:
    """Stop a training whose loss is no number.

    Args:
        values: the loss and its terms by name.
        epoch: for the message, as is `step`.
        step: counted from 1.

    Raises:
        RuntimeError: names epoch, step and each value.
    """
    if not all(map(math.isfinite, values.values())):
        listed = ", ".join(f"{name} {value:g}" for name, value in values.items())
        raise RuntimeError(
            f"loss: expected finite numbers, got {listed} in epoch {epoch}, step {step}. "
            "Lower the learning rate or set amp to off."
        )


def finite_outputs_or_raise(outputs: Tensor) -> None:
    """Stop a training whose network answers NaN or infinity, which every measure would hide.

    Raises:
        RuntimeError: a value is not finite.
    """
    if not outputs.isfinite().all():
        raise RuntimeError(
            "validation: expected finite outputs of the network, got NaN or infinity. Lower the "
            "learning rate or set amp to off."
        )


def steps_per_epoch(num_images: int, batch_size: int, least_batch: int = 1) -> int:
    """Return the batches of an epoch; a last one too small for all ranks is left out.

    Args:
        num_images: of an epoch.
        batch_size: of all ranks together.
        least_batch: fewest images of a rank.

    Raises:
        ValueError: no batch is left, or batches are too small for all ranks.
    """
    least = least_batch * ranks.size()
    if batch_size < least:
        raise ValueError(
            f"batch_size: expected {least} or more, {least_batch} for each of {ranks.size()} "
            f"processes, got {batch_size}. Raise it, or lower --nproc-per-node."
        )
    if num_images < least:
        raise ValueError(
            f"training images: expected at least {least} outside the validation part, got "
            f"{num_images}. Add images or lower data.val_fraction."
        )
    whole, rest = divmod(num_images, batch_size)
    return whole + (rest >= least)


def seed_of(seed: int, number: int) -> int:
    """Return the seed of an epoch or a step; those of neighbouring seeds lie far apart."""
    return seed * SEED_STRIDE + number


def epoch_batches(
    dataset: Dataset,
    settings: TrainConfig | SegmentationConfig,
    workers: int,
    device: torch.device,
    epoch: int,
    least_batch: int = 1,
) -> DataLoader:
    """Return this rank's part of an epoch's shuffled batches; the order depends on the seed alone.

    Args:
        dataset: of images with maps.
        settings: batch_size and seed are used.
        workers: loader processes.
        device: that the batches go to.
        epoch: from 0.
        least_batch: fewest images of a rank; a last batch that is too small is left out.
    """
    return loader_of(
        dataset,
        settings.batch_size,
        torch.Generator().manual_seed(seed_of(settings.seed, epoch)),
        0 < len(dataset) % settings.batch_size < least_batch * ranks.size(),
        num_workers=workers,
        pin_memory=device.type == "cuda",
    )


def loader_of(
    dataset: Dataset, batch_size: int, order: torch.Generator, drop_last: bool, **how: Any
) -> DataLoader:
    """Return a loader of this rank's part of each shuffled batch.

    Args:
        dataset: of images.
        batch_size: of all ranks together.
        order: gives the order, the same in all ranks.
        drop_last: leave out a last batch that is smaller.
        how: further arguments of the loader.
    """
    shuffled = RandomSampler(dataset, generator=order)
    batches = BatchSampler(shuffled, batch_size, drop_last)
    return DataLoader(dataset, batch_sampler=_Parts(batches), generator=order, **how)


def validation_batches(
    dataset: Dataset, batch_size: int, workers: int
) -> Iterator[tuple[int, Any]]:
    """Give this rank's batches of all images, in order, each with its number among all batches."""
    batches = list(BatchSampler(range(len(dataset)), batch_size, drop_last=False))
    own = list(enumerate(batches))[ranks.rank() :: ranks.size()]
    loader = DataLoader(dataset, batch_sampler=[batch for _, batch in own], num_workers=workers)
    numbers = [number for number, _ in own]
    return zip(numbers, progress(loader, "validation", unit="batches"), strict=True)


class _Parts(Sampler):
    """Gives this rank's part of each batch."""

    def __init__(self, batches: BatchSampler):
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Sequence[int]]:
        return map(ranks.part, self.batches)


def mean_terms(rows: Iterable[dict[str, float]]) -> dict[str, float]:
    """Average dictionaries of equal keys."""
    rows = list(rows)
    return {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]} if rows else {}
