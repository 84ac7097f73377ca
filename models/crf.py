"""A conditional random field over pixels, as an alternative to `models.pamr`."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# Neighbours of like colour: every STEP-th pixel up to REACH away in each direction.
REACH, STEP = 20, 4
POSITION_SIGMA = 12.0  # pixels
COLOUR_SIGMA = 10.0  # of values in 0..255
SMOOTH_SIGMA = 3.0  # pixels; of neighbours of any colour
COLOUR_WEIGHT, SMOOTH_WEIGHT = 4.0, 2.0
FLOOR = 1e-4  # no class is impossible
ITERATIONS = 5  # more change nothing
LEAST_EXPONENT = -40.0  # numbers below are slow to compute with, and weigh nothing


@torch.no_grad()
def dense_crf(image: Tensor, maps: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """Refine maps by mean-field inference of a CRF with Gaussian edge potentials.

    Each pixel is one of M classes or background; what speaks for a class is its map, for
    background what the highest map leaves of 1. A pixel pulls others to its class the more the
    nearer they are in place and colour, and, with another weight, the nearer in place alone
    (Kraehenbuehl and Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian Edge
    Potentials", NeurIPS 2011). Only pixels within a window are looked at, as in Teichmann and
    Cipolla, "Convolutional CRFs", BMVC 2019; each kind of message is a weighted mean.

    Args:
        image: (3, H, W) float in 0..255.
        maps: (M, H, W) float in [0, 1]; M may be 0.
        iterations: of the mean field; 0 changes nothing.

    Returns:
        (M, H, W), the probability of each class.

    Raises:
        ValueError: image and maps differ in size.
    """
    if image.shape[1:] != maps.shape[1:]:
        raise ValueError(
            f"maps: expected the size of the image, {tuple(image.shape[1:])}, got "
            f"{tuple(maps.shape[1:])}."
        )
    if not len(maps) or not iterations:
        return maps
    shares = torch.cat([1 - maps.amax(dim=0, keepdim=True), maps]).clamp(min=FLOOR)
    evidence = (shares / shares.sum(dim=0)).log()
    belief = evidence.softmax(dim=0)  # (M + 1, H, W)
    for _ in range(iterations):
        messages = COLOUR_WEIGHT * _like_coloured(image, belief) + SMOOTH_WEIGHT * _near(belief)
        belief = (evidence + messages).softmax(dim=0)
    return belief[1:]


def _like_coloured(image: Tensor, belief: Tensor) -> Tensor:
    """Average the beliefs of each pixel's neighbours by nearness in place and colour."""
    height, width = image.shape[1:]
    total, weights = torch.zeros_like(belief), torch.zeros_like(belief[:1])
    steps = range(-REACH, REACH + 1, STEP)
    for dy, dx in ((dy, dx) for dy in steps for dx in steps if (dy, dx) != (0, 0)):
        if abs(dy) >= height or abs(dx) >= width:
            continue
        here = _overlap(height, -dy), _overlap(width, -dx)
        there = _overlap(height, dy), _overlap(width, dx)
        distance = (image[:, *there] - image[:, *here]).square_().sum(dim=0, keepdim=True)
        place = (dy * dy + dx * dx) / (2 * POSITION_SIGMA**2)
        exponent = distance.mul_(-1 / (2 * COLOUR_SIGMA**2)).sub_(place)
        weight = exponent.clamp_(min=LEAST_EXPONENT).exp_()
        total[:, *here].addcmul_(weight, belief[:, *there])
        weights[:, *here] += weight
    return total / weights.clamp(min=1e-8)


def _overlap(length: int, offset: int) -> slice:
    """Return the places in 0..length - 1 that are offset + another one."""
    return slice(max(offset, 0), length + min(offset, 0))


def _near(belief: Tensor) -> Tensor:
    """Average the beliefs around each pixel by nearness in place alone, itself left out."""
    reach = math.ceil(2 * SMOOTH_SIGMA)
    offsets = torch.arange(-reach, reach + 1, device=belief.device, dtype=belief.dtype)
    line = (-offsets.square() / (2 * SMOOTH_SIGMA**2)).exp()
    kernel = torch.outer(line, line)
    kernel[reach, reach] = 0
    known = torch.ones_like(belief[:1])
    stacked = torch.cat([belief, known])[:, None]
    summed = F.conv2d(stacked, kernel[None, None], padding=reach)[:, 0]
    return summed[:-1] / summed[-1:]
