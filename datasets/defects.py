"""Augmentation of defects: they are faded, and given to other images of the batch.

A saliency map shows the plain defects of an image and leaves out many faint ones, which a network
then learns to call background. Faded, the same defects teach it faint ones. And most images show
one class; given the defects of another image they show two, as others will.

Both work on what a defect changes: the smoothed image less the background that would be there
without it. The grain of the surface stays.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

# Saliency from which a pixel shows a defect, with FRINGE pixels around; below CLEAR it is free.
DEFECT, FRINGE, CLEAR = 0.4, 1, 0.25
FREE_FRINGE = 2  # pixels around what is not clear are not taken for background either
SMOOTH = 0.0075  # of the shorter side, at least a pixel: blur of the image, as grain is not faded
EDGE = 1.0  # pixels: blur of the border of what is changed
# Of the shorter side: how far the background is looked for. The nearest that finds any is taken.
REACHES = (0.03, 0.075, 0.2)
LEAST_WEIGHT = 0.05  # share of free pixels in reach from which they tell the background
SHRINK = 4  # the background is made at this part of the size
LEAST_LEFT = 0.15  # of the contrast of a faded defect
LEAST_AREA = 0.003  # of the image, that a defect covers where it is given
DARKEST = 0.03  # background in [0, 1]; on a darker one a ratio says nothing
RATIOS = (-0.95, 3.0)  # bounds of what a defect changes, of its background


def augment_defects(
    images: Tensor,
    saliency: Tensor,
    labels: Tensor,
    probability: float,
    norm: tuple[Sequence[float], Sequence[float]],
) -> tuple[Tensor, Tensor, Tensor]:
    """Fade the defects of some images of a batch, and give some those of another one.

    A donor shows one class, which its receiver does not show. What it changes, as a ratio to its
    background, is changed where the receiver shows no defect. Draws come from torch's global
    generator on the CPU.

    Args:
        images: (B, 3, H, W) normalised.
        saliency: (B, 1, H, W) in [0, 1].
        labels: (B, K) multi-hot.
        probability: of each of both, for an image.
        norm: mean and std of the three channels.

    Returns:
        Images, saliency maps (the higher of both) and labels (joined); the arguments stay as they
        are.
    """
    mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in norm)
    light = (images * std + mean).clamp(0, 1)
    change, background = defect_change(light, saliency)

    # Fade.
    count = len(images)
    fades, left = torch.rand(count) < probability, torch.rand(count) * (1 - LEAST_LEFT) + LEAST_LEFT
    left = torch.where(fades, left, 1.0).to(images.device).view(-1, 1, 1, 1)
    faded = light - (1 - left) * change

    # Give.
    donors = (torch.arange(count) + torch.randint(1, max(count, 2), (count,))) % count
    chosen, donors = (torch.rand(count) < probability).to(images.device), donors.to(images.device)
    given = labels[donors]
    chosen &= (given.sum(dim=1) == 1) & ((given * labels).sum(dim=1) == 0)
    free = _blur((saliency < CLEAR).float(), EDGE)
    pasted = saliency[donors] * ((saliency[donors] > CLEAR) & (free > 0.5))
    chosen &= (pasted > DEFECT).float().mean(dim=(1, 2, 3)) >= LEAST_AREA
    here = chosen.view(-1, 1, 1, 1).float()
    ratio = (change / background.clamp(min=DARKEST)).clamp(*RATIOS)[donors]
    composed = (faded * (1 + here * free * ratio)).clamp(0, 1)
    return (
        (composed - mean) / std,
        torch.maximum(saliency, here * pasted),
        torch.maximum(labels, here[:, 0, 0] * given),
    )


def defect_change(light: Tensor, saliency: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the defects of images change, and the background without them.

    Args:
        light: (B, 3, H, W) in [0, 1].
        saliency: (B, 1, H, W) in [0, 1].

    Returns:
        Two (B, 3, H, W): the smoothed image less the background, 0 beside defects; and the
        background, a mean of the free pixels nearby.
    """
    side = min(light.shape[-2:])
    free = 1 - _grown((saliency > CLEAR).float(), FREE_FRINGE)
    known, weight = (F.avg_pool2d(x, SHRINK, ceil_mode=True) for x in (light * free, free))
    background = light.mean(dim=(2, 3), keepdim=True).expand(*known.shape)
    for reach in reversed(REACHES):
        sigma = reach * side / SHRINK
        total, share = _blur(known, sigma), _blur(weight, sigma)
        found = total / share.clamp(min=LEAST_WEIGHT)
        background = torch.where(share > LEAST_WEIGHT, found, background)
    size = light.shape[-2:]
    background = F.interpolate(background, size=size, mode="bilinear", align_corners=False)
    place = _blur(_grown((saliency > DEFECT).float(), FRINGE), EDGE)
    return place * (_blur(light, max(SMOOTH * side, 1.0)) - background), background


def _grown(mask: Tensor, pixels: int) -> Tensor:
    return F.max_pool2d(mask, 2 * pixels + 1, 1, pixels)


def _blur(values: Tensor, sigma: float) -> Tensor:
    """Blur (B, C, H, W) by a Gaussian of so many pixels; it ends where the image does."""
    most = (min(values.shape[-2:]) - 1) // 2  # reflected borders reach no farther
    reach = min(max(1, round(3 * sigma)), most)
    return gaussian_blur(values, [2 * reach + 1] * 2, [sigma] * 2) if reach else values
