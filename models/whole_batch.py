"""A batch that is divided among processes, and a training that equals that of one process.

Each rank runs the network on its part of a batch and gets what the others' networks gave for
theirs (`whole`). So each computes the loss of the whole batch: a contrast of pixels finds the same
anchors, prototypes and negatives as in one process, however many ranks there are. The gradients are
added up before the optimizer's step (`add_gradients`), which every rank then takes alike.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from execution import ranks


def whole(own: Sequence[Tensor]) -> list[Tensor]:
    """Return what all ranks have of a batch, in order of rank.

    The gradient goes back to the own part alone. Where each rank computes the same loss of the
    whole batch, the gradients of the weights are those of one process once they are added up over
    ranks (`add_gradients`), whatever the loss.

    Args:
        own: tensors (b, ...) of the b images of this rank, b from 1; but for b of the same shapes
            in all ranks.
    """
    if ranks.size() == 1:
        return list(own)
    numbers = torch.zeros(ranks.size(), dtype=torch.int64, device=own[0].device)
    numbers[ranks.rank()] = len(own[0])
    with ranks.told_apart():
        dist.all_reduce(numbers)
    return [_Whole.apply(values, numbers.tolist()) for values in own]


def add_gradients(model: nn.Module) -> None:
    """Add up the gradients of all ranks; a parameter without one has none in any rank."""
    if ranks.size() == 1:
        return
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    with ranks.told_apart():
        dist.all_reduce(flat)
    parts = flat.split([gradient.numel() for gradient in gradients])
    for gradient, of_all in zip(gradients, parts, strict=True):
        gradient.copy_(of_all.view_as(gradient))


def alike(model: nn.Module) -> nn.Module:
    """Give a model the weights and statistics of the first rank, and return it."""
    if ranks.size() > 1:
        with ranks.told_apart(), torch.no_grad():
            for values in model.state_dict().values():
                dist.broadcast(values, 0)
    return model


def with_shared_statistics(model: nn.Module) -> nn.Module:
    """Make batch normalisation see the batch of all ranks, where PyTorch can: on GPUs."""
    on_gpu = next(model.parameters()).is_cuda
    return nn.SyncBatchNorm.convert_sync_batchnorm(model) if ranks.size() > 1 and on_gpu else model


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, own: Tensor, numbers: list[int]) -> Tensor:
        padded = own.new_zeros(max(numbers), *own.shape[1:])
        padded[: len(own)] = own
        parts = [torch.empty_like(padded) for _ in numbers]
        with ranks.told_apart():
            dist.all_gather(parts, padded)
        context.start, context.count = sum(numbers[: ranks.rank()]), len(own)
        return torch.cat([of_rank[:n] for of_rank, n in zip(parts, numbers, strict=True)])

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[context.start : context.start + context.count], None
