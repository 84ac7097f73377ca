"""PAMR against its published form, which holds all neighbours of all pixels at once."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measuring import Row, Step
from models.pamr import DILATIONS, OFFSETS, SHARPNESS, pamr

STEPS = 10


def unfolded(image: Tensor, maps: Tensor, steps: int) -> Tensor:
    """Refine maps (M, H, W) by an image (3, H, W) as section 3.3 of the paper reads."""
    around = _neighbours(image)  # (3, 32, H, W)
    deviation = torch.cat([around, image[:, None]], dim=1).std(dim=1, keepdim=True)
    distance = ((around - image[:, None]).abs() / (SHARPNESS * deviation + 1e-8)).mean(dim=0)
    weights = (-distance).softmax(dim=0)  # (32, H, W)
    for _ in range(steps):
        maps = (weights * _neighbours(maps)).sum(dim=1)
    return maps


def _neighbours(values: Tensor) -> Tensor:
    channels = len(values)
    height, width = values.shape[1:]
    found = []
    for dilation in DILATIONS:
        padded = F.pad(values[None], (dilation,) * 4, mode="replicate")
        columns = F.unfold(padded, 3, dilation=dilation).view(channels, 9, height, width)
        found.append(columns[:, [3 * (y + 1) + x + 1 for y, x in OFFSETS]])
    return torch.cat(found, dim=1)


def step_of(is_ours: bool, small: bool, device: str) -> Step:
    """Return the refinement of an image's maps; its result is the maps."""
    generator = torch.Generator().manual_seed(0)
    height, width = (20, 30) if small else (400, 300)
    image, maps = (torch.rand(n, height, width, generator=generator) for n in (3, 2))
    image, maps = (255 * image).to(device), maps.to(device)
    refine = pamr if is_ours else unfolded
    return lambda: refine(image, maps, STEPS).cpu().numpy()


ROW = Row(
    "PAMR of two maps, 400 x 300 pixels, 10 steps",
    "all neighbours unfolded at once",
    partial(step_of, True),
    partial(step_of, False),
    target=2.0,
    memory=0.34,
    tolerance=1e-5,
)
