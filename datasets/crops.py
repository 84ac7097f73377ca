"""Random crops of large images, and when a crop keeps the image-level labels.

Saliency maps know where a defect may be, but not its class. A pixel is salient from 0.5 on. A crop
of an image with labels

- has none of them where no pixel of it reaches 0.25: nothing there even looks like a defect;
- keeps all of them where enough of the crop is salient and, if the image has several labels, where
  it holds at least 90 % of the image's salient pixels, as they might belong to any class;
- is not taken otherwise: nobody can tell its label.

After ten draws the whole image is taken, whose labels are certain; so too where nothing is salient
in an image with labels, for then the map has missed the defect and says nothing about any crop.
"""

from collections.abc import Sequence

import numpy as np

SALIENT = 0.5
FAINT = 0.25  # lower values are background for certain
MOST = 0.9  # of the salient pixels, for several labels
SUPPORT = 0.002  # share of a crop that must be salient for it to keep the labels
AIMED = 0.5  # share of the crops around a pixel worth seeing: chance seldom hits a small defect
ATTEMPTS = 10
Crop = tuple[slice, slice]  # rows, columns


def crop_generator(seed: int, *place: int) -> np.random.Generator:
    """Return the random numbers of one crop, by seed and place (epoch, index) alone."""
    return np.random.default_rng([seed, *place, 1])  # 1: not those of transform_together


def draw_crop(
    saliency: np.ndarray, num_labels: int, side: int, generator: np.random.Generator
) -> tuple[Crop, bool]:
    """Draw a crop by the rule of this module; one of a defect-free image is always taken.

    Args:
        saliency: (H, W) in [0, 1].
        num_labels: of the image; 0 means defect-free.
        side: height and width of the crop in pixels, cut to the image where that is smaller.
        generator: of the draws.

    Returns:
        Rows and columns of the crop, and whether it keeps the labels of its image.
    """
    whole = (slice(0, saliency.shape[0]), slice(0, saliency.shape[1]))
    if max(saliency.shape) <= side:
        return whole, True
    if not num_labels:
        return place_crop(saliency.shape, side, generator), True
    salient = saliency >= SALIENT
    targets = np.flatnonzero(salient)
    if not len(targets):
        return whole, True
    # Aimed or not for all draws: else an image whose labels no crop can keep would nearly always
    # end with an empty crop.
    aimed_at = aim(targets, generator)
    for _ in range(ATTEMPTS):
        crop = place_crop(saliency.shape, side, generator, aimed_at)
        inside = salient[crop]
        held = inside.sum() / len(targets)
        if inside.mean() >= SUPPORT and (num_labels == 1 or held >= MOST):
            return crop, True
        if saliency[crop].max() < FAINT:
            return crop, False
    return whole, True


def aim(targets: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return all targets for half of the crops and none for the others."""
    return targets if generator.random() < AIMED else targets[:0]


def place_crop(
    size: tuple[int, int],
    side: int,
    generator: np.random.Generator,
    targets: Sequence[int] = (),
) -> Crop:
    """Return rows and columns of a random square, cut to the image where that is smaller.

    Args:
        size: (H, W) of the image.
        side: height and width of the crop in pixels.
        generator: of the draw.
        targets: flat indices of pixels; the crop holds one of them. Without any it is anywhere.
    """
    target = np.unravel_index(generator.choice(targets), size) if len(targets) else None
    crop = []
    for axis, length in enumerate(size):
        span = min(side, length)
        first, last = 0, length - span
        if target is not None:
            first, last = max(0, target[axis] - span + 1), min(target[axis], last)
        start = int(generator.integers(first, last, endpoint=True))
        crop.append(slice(start, start + span))
    return tuple(crop)
