"""Saliency by contrast against the local background, with a polarity learnt per class.

A defect is what differs from a wide median of its surroundings. Most of what differs is texture,
but a defect class is nearly always either darker or brighter than its surface, and the image
labels tell which: keeping that side only is worth about 12 points.

Foreground IoU at the best global threshold on every 6th NEU-Seg training image: residual of both
sides 47.5, one side per class 59.1 (all images: 58.4). With another reference in place of the
image's own 99.9th percentile: 98th 55.8, 99.5th 58.6, 100th 59.3; one constant per polarity for
all images 53.3; constant^0.25 * own^0.75 60.3 (not taken: a map would depend on every other
image). On MTD (uneven light, tiny defects) contrast is no better than chance: pixel AUROC 0.47.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch

from configs import SaliencyConfig
from datasets.files import read_image
from datasets.record import Record
from datasets.sources import Data
from execution.progress import progress
from saliency.generator import Prepared

# Shorter side, in pixels, at which background medians are taken: a quarter of NEU-Seg's 200.
# 32 to 200 differ by 0.2 points there.
MEDIAN_SIDE = 50
BLUR = 0.01  # sigma of the Gaussian that removes noise, of the shorter side
WINDOWS = (0.5, 0.75, 1.0)  # sides of the background medians, of the shorter side
# Of these each class whose side is known takes those that show it best.
CLASS_WINDOWS = (0.15, 0.25, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
PERCENTILE = 99.9  # of the kept residual: the reference
# This share of the reference percentile already becomes 1.0. It puts the best threshold, 0.34
# for a share of 1 on NEU-Seg's training split, near 0.5, where losses and CAMs expect it.
FULL_SHARE = 2 / 3
# Lab units. Residuals under it are invisible, so an even image is not stretched to full range.
MIN_CONTRAST = 1.0
# A class whose evidence is weaker keeps both sides (see `learn_polarities`). The shifts are 1.0
# to 3.3 spreads on NEU-Seg's training split, all right; on MTD 0.1 to 0.5, of which the 0.5 is
# wrong, and 0.7, which is right; 0.7 to 1.1 on the sample, all right.
MIN_IMAGES = 5
MIN_SHIFT = 0.6
MAX_WINDOW_VOTES = 64  # images per class that windows are chosen from
NEARLY_BEST = 0.8
MAX_VOTES = 200  # images per label that polarities are learnt from; a median needs no more


class Residual(NamedTuple):
    """What is left of an image without its background, in CIE Lab units.

    Attributes:
        lightness: (H, W) float32, below 0 where darker than the background.
        chroma: (H, W) float32, distance from the background in (a, b), which has no sign;
            zero for grey images.
    """

    lightness: np.ndarray
    chroma: np.ndarray


class Polarity(NamedTuple):
    """Whether a class is darker or brighter than its surface, and the evidence for it.

    Attributes:
        side: "dark", "bright", or "both" where the evidence is weak.
        num_images: images the decision rests on, those that carry this class only.
        shift: their median skewness, less that of the defect-free images if there are any.
        spread: of the skewness, 1.4826 * median absolute deviation, the larger of both groups.
    """

    side: str
    num_images: int = 0
    shift: float = 0.0
    spread: float = 0.0


class Look(NamedTuple):
    """What a class looks like against its surface.

    Attributes:
        side: "dark", "bright" or "both".
        windows: sides of the background medians, as shares of the shorter side.
    """

    side: str
    windows: tuple[float, ...]


def prepare(
    settings: SaliencyConfig, data: Data, records: Sequence[Record], device: torch.device
) -> Prepared:
    """Learn each class' polarity and windows from `fit`, if the settings say so.

    Runs on the CPU. Where a defect-free image is asked for, it is looked at as for all classes.
    """
    problems: dict[str, str] = {}
    polarities = _polarities(settings, data, problems)
    looks = [_look(data, k, polarity) for k, polarity in enumerate(polarities)]
    named = {
        name: polarity._asdict() | {"windows": look.windows}
        for name, polarity, look in zip(data.class_names, polarities, looks, strict=True)
    }
    lines = tuple(
        f"{name}: {_evidence(polarity)}, windows {', '.join(map(str, look.windows))}"
        for name, polarity, look in zip(data.class_names, polarities, looks, strict=True)
    )

    def make_map(record: Record, image: np.ndarray) -> np.ndarray:
        wanted = [looks[k] for k in record.classes or range(len(looks))]
        return contrast_map(image, wanted)

    return Prepared(make_map, {"polarities": named}, lines, problems)


def contrast_map(image: np.ndarray, looks: Iterable[Look]) -> np.ndarray:
    """Return the saliency map of one image.

    Args:
        image: (H, W, 3) uint8 RGB.
        looks: of each class the image carries; a defect-free image has none, and its map is all
            zero.

    Returns:
        (H, W) float32 in [0, 1].
    """
    kept = np.zeros(image.shape[:2], np.float32)
    for look in set(looks):
        kept = np.maximum(kept, keep_sides(residual(image, look.windows), {look.side}))
    reference = max(float(np.percentile(kept, PERCENTILE)), MIN_CONTRAST)
    return np.clip(kept / (FULL_SHARE * reference), 0, 1).astype(np.float32)


def residual(image: np.ndarray, windows: Sequence[float]) -> Residual:
    """Subtract the background, a mean of wide medians, from the smoothed image.

    Args:
        image: (H, W, 3) uint8 RGB.
        windows: sides of the medians, as shares of the shorter side.
    """
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2Lab)
    lightness = _channel_residual(lab[..., 0], windows)
    if (image == image[..., :1]).all():
        return Residual(lightness, np.zeros_like(lightness))
    a, b = (_channel_residual(lab[..., channel], windows) for channel in (1, 2))
    return Residual(lightness, np.hypot(a, b))


def keep_sides(parts: Residual, sides: Iterable[str]) -> np.ndarray:
    """Return the (H, W) residual of the given sides, at least 0.

    The lightness of the other side is dropped. A colour difference is kept whatever its
    lightness: sqrt(lightness^2 + chroma^2), as distances add in Lab.
    """
    kept = np.zeros_like(parts.lightness)
    for side in sides:
        if side in ("dark", "both"):
            kept = np.maximum(kept, -parts.lightness)
        if side in ("bright", "both"):
            kept = np.maximum(kept, parts.lightness)
    return np.hypot(kept, parts.chroma)


def skewness(parts: Residual) -> float:
    """Return the skewness of the lightness residual; below 0, its long tail is dark."""
    centred = parts.lightness - parts.lightness.mean(dtype=np.float64)
    deviation = np.sqrt((centred**2).mean())
    return float((centred**3).mean() / deviation**3) if deviation > 1e-6 else 0.0


def one_sidedness(parts: Residual) -> float:
    """Return how much of the lightness residual lies on one side, in [-1, 1]; below 0 dark.

    Residuals count by their third power, so that the strongest decide.
    """
    cubes = parts.lightness.astype(np.float64) ** 3
    return float(cubes.sum() / max(np.abs(cubes).sum(), 1e-12))


def choose_windows(candidates: Sequence[float], values: np.ndarray, side: str) -> tuple[float, ...]:
    """Choose the windows through which a class is seen best, without a mask.

    Uneven light and texture differ from a background median to both sides, a defect to its own
    only. A window narrower than the defect loses its inside and sees its rim brighten; a wide one
    lets uneven light in. So the windows whose residual is most one-sided, and most reliably so,
    are taken: median over spread of `one_sidedness`, at least `NEARLY_BEST` of the highest.

    Args:
        candidates: W windows.
        values: (N, W) `one_sidedness` of N images that carry this class alone.
        side: "dark" or "bright".

    Returns:
        The chosen candidates; none where no window shows the class on that side.
    """
    centred = values if side == "bright" else -values
    certainty = [centre / max(spread, 1e-3) for centre, spread in map(_centre, centred.T)]
    enough = max(NEARLY_BEST * max(certainty), 0)
    return tuple(w for w, c in zip(candidates, certainty, strict=True) if c >= enough)


def learn_polarities(
    skewnesses: Sequence[float], labels: Sequence[tuple[int, ...]], num_classes: int
) -> tuple[Polarity, ...]:
    """Decide from image labels whether each class is dark or bright.

    Only images that carry one class speak for it. Defect-free images, where there are any,
    show how skewed the bare surface is, and are subtracted. The evidence is weak, and the
    class keeps both sides, where it has fewer than `MIN_IMAGES` such images, or where its shift
    is not above both `MIN_SHIFT` spreads and twice its standard error (of the median of n
    images: 1.25 spreads / sqrt(n); the defect-free images add theirs).

    Args:
        skewnesses: (N,) `skewness` of each image's residual.
        labels: (N,) ascending foreground indices of each image.
        num_classes: K.

    Returns:
        One `Polarity` per class.
    """
    normal = np.array([s for s, classes in zip(skewnesses, labels, strict=True) if not classes])
    subtract = len(normal) >= MIN_IMAGES
    surface, surface_spread = _centre(normal) if subtract else (0.0, 0.0)
    polarities = []
    for k in range(num_classes):
        own = np.array([s for s, c in zip(skewnesses, labels, strict=True) if c == (k,)])
        if not own.size:
            polarities.append(Polarity("both"))
            continue
        centre, own_spread = _centre(own)
        shift, spread = centre - surface, max(own_spread, surface_spread)
        error = 1.25 * (1 / len(own) + (1 / len(normal) if subtract else 0)) ** 0.5
        needed = max(MIN_SHIFT, 2 * error) * spread
        clear = len(own) >= MIN_IMAGES and abs(shift) > needed
        side = ("bright" if shift > 0 else "dark") if clear else "both"
        polarities.append(Polarity(side, len(own), shift, spread))
    return tuple(polarities)


def _polarities(
    settings: SaliencyConfig, data: Data, problems: dict[str, str]
) -> tuple[Polarity, ...]:
    """Learn each class' polarity from `fit`, or take the one the config sets."""
    if settings.polarity != "auto":
        return tuple(Polarity(settings.polarity) for _ in data.class_names)
    skewnesses, labels, voters = [], [], []
    for classes in [(), *((k,) for k in range(len(data.class_names)))]:
        alike = [record for record in data.split("fit") if record.classes == classes]
        voters += alike[:: max(1, math.ceil(len(alike) / MAX_VOTES))]
    for record in progress(voters, "polarity"):
        try:
            image = read_image(record.image)
        except (ValueError, FileNotFoundError) as error:
            problems[record.name] = str(error)
            continue
        skewnesses.append(skewness(residual(image, WINDOWS)))
        labels.append(record.classes)
    return learn_polarities(skewnesses, labels, len(data.class_names))


def _look(data: Data, k: int, polarity: Polarity) -> Look:
    """Find the windows of class k; where its side is unknown or not seen, `WINDOWS`."""
    alone = [record for record in data.split("fit") if record.classes == (k,)]
    if polarity.side == "both" or len(alone) < MIN_IMAGES:
        return Look(polarity.side, WINDOWS)
    values = []
    for record in alone[:: max(1, math.ceil(len(alone) / MAX_WINDOW_VOTES))]:
        try:
            image = read_image(record.image)
        except (ValueError, FileNotFoundError):
            continue  # named when its own map is to be made
        parts = [residual(image, (window,)) for window in CLASS_WINDOWS]
        values.append([one_sidedness(part) for part in parts])
    windows = choose_windows(CLASS_WINDOWS, np.array(values), polarity.side)
    return Look(polarity.side, windows or WINDOWS)


def _evidence(polarity: Polarity) -> str:
    if not polarity.num_images:
        return f"{polarity.side} (set, or no training image carries this class alone)"
    return (
        f"{polarity.side} (skewness {polarity.shift:+.2f}, spread {polarity.spread:.2f}, "
        f"{polarity.num_images} images)"
    )


def _centre(values: np.ndarray) -> tuple[float, float]:
    """Return the median and the spread, 1.4826 * median absolute deviation."""
    median = float(np.median(values))
    return median, 1.4826 * float(np.median(np.abs(values - median)))


def _channel_residual(channel: np.ndarray, windows: Sequence[float]) -> np.ndarray:
    """Return one channel's (H, W) difference from its background."""
    height, width = channel.shape
    channel = channel - channel.min()
    shrink = min(1.0, MEDIAN_SIDE / min(height, width))
    size = (max(1, round(width * shrink)), max(1, round(height * shrink)))
    small = cv2.resize(channel, size, interpolation=cv2.INTER_AREA)
    # Wide medians exist for 8 bit only: the channel's own range is divided into 255 steps.
    step = max(float(small.max()), 1e-6) / 255
    levels = np.round(small / step).astype(np.uint8)
    medians = [cv2.medianBlur(levels, _odd(window * min(size))) for window in windows]
    background = np.mean(medians, axis=0, dtype=np.float32) * np.float32(step)
    background = cv2.resize(background, (width, height), interpolation=cv2.INTER_LINEAR)
    sigma = BLUR * min(height, width)
    channel = cv2.GaussianBlur(channel, (0, 0), sigma, borderType=cv2.BORDER_REPLICATE)
    return channel - background


def _odd(length: float) -> int:
    """Return the odd whole number nearest to a length from above 0."""
    return 2 * int(length / 2) + 1
