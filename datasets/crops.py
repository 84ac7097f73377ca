"""Crops of a labelled image whose label is still true.

Saliency maps know where a defect may be, but not its class. A pixel is salient from 0.5 on. A crop
of an image with labels

- has none of them where no pixel of it reaches 0.25: nothing there even looks like a defect;
- keeps all of them where enough of the crop is salient and, if the image has several labels, where
  it holds at least 90 % of the image's salient pixels, as they might belong to any class;
- is not taken otherwise: nobody can tell its label.

Half of the crops are aimed at a salient pixel, since a small defect is seldom hit by chance. After
ten draws the whole image is taken, whose labels are certain; so too where nothing is salient in an
image with labels, for then the map has missed the defect and says nothing about any crop.
"""

import numpy as np

SALIENT = 0.5
FAINT = 0.25  # lower values are background for certain
MOST = 0.9  # of the salient pixels, for several labels
AIMED = 0.5  # share of the crops that are placed around a salient pixel
ATTEMPTS = 10


def draw_crop(
    saliency: np.ndarray,
    num_labels: int,
    side: int,
    support: float,
    generator: np.random.Generator,
) -> tuple[tuple[slice, slice], bool]:
    """Draw a crop by the rule of this module; one of a defect-free image is always taken.

    Args:
        saliency: (H, W) in [0, 1].
        num_labels: of the image; 0 means defect-free.
        side: height and width of the crop in pixels, cut to the image where that is smaller.
        support: share of the crop in (0, 1] that must be salient for it to keep the labels.
        generator: of the draws.

    Returns:
        Rows and columns of the crop, and whether it keeps the labels of its image.
    """
    whole = (slice(0, saliency.shape[0]), slice(0, saliency.shape[1]))
    if max(saliency.shape) <= side:
        return whole, True
    if not num_labels:
        return _place(saliency.shape, side, generator), True
    salient = saliency >= SALIENT
    places = np.flatnonzero(salient)
    if not len(places):
        return whole, True
    aimed = generator.random() < AIMED
    for _ in range(ATTEMPTS):
        target = None
        if aimed:
            target = np.unravel_index(generator.choice(places), saliency.shape)
        crop = _place(saliency.shape, side, generator, target)
        found = salient[crop]
        held = found.sum() / len(places)
        if found.mean() >= support and (num_labels == 1 or held >= MOST):
            return crop, True
        if saliency[crop].max() < FAINT:
            return crop, False
    return whole, True


def _place(
    size: tuple[int, int],
    side: int,
    generator: np.random.Generator,
    target: tuple[int, int] | None = None,
) -> tuple[slice, slice]:
    """Return a random square inside the image, around the pixel `target` if one is given."""
    crop = []
    for axis, length in enumerate(size):
        span = min(side, length)
        first, last = 0, length - span
        if target is not None:
            first, last = max(0, target[axis] - span + 1), min(target[axis], last)
        start = int(generator.integers(first, last, endpoint=True))
        crop.append(slice(start, start + span))
    return tuple(crop)
