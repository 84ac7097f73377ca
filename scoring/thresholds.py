"""From maps to seeds: masks cut at thresholds, and thresholds found without masks.

Map values above the threshold are foreground.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from datasets.record import BACKGROUND, Record
from scoring.histogram import NUM_LEVELS, at_least, in_shares, level_counts, to_levels
from scoring.processes import count_over

Item = TypeVar("Item")
MAX_IMAGES = 300  # per rule that refined maps are counted of; a histogram needs no more


def seed_mask(cam: np.ndarray, classes: np.ndarray, threshold: float) -> np.ndarray:
    """Turn the CAMs of one image into a seed mask.

    Background competes as the constant score `threshold` (as float32); ties go to background,
    between classes to the first.

    Args:
        cam: (M, H, W) in [0, 1], one map per present class; M may be 0.
        classes: (M,) foreground indices in [0, K), ascending.
        threshold: background score in [0, 1].

    Returns:
        (H, W) uint8 mask values: 0 background, k + 1 for foreground class k.

    Raises:
        ValueError: cam and classes differ in M.
    """
    if cam.ndim != 3 or len(cam) != len(classes):
        raise ValueError(f"cam: expected shape ({len(classes)}, H, W), got {cam.shape}.")
    if len(classes) == 0:
        return np.full(cam.shape[1:], BACKGROUND, np.uint8)
    winners = np.asarray(classes)[cam.argmax(axis=0)] + 1
    foreground = cam.max(axis=0).astype(np.float32) > np.float32(threshold)
    return np.where(foreground, winners, BACKGROUND).astype(np.uint8)


def levelled(cam: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Rescale the CAMs of one image so that each has its own threshold at 0.5.

    Linear below the threshold and above it; 0 and 1 stay where they are. Maps of classes with
    different thresholds can then compete with each other and with one background score. With equal
    thresholds, `seed_mask` of the result at 0.5 is that of the maps at their threshold, to the
    last bit.

    Args:
        cam: (M, H, W) in [0, 1], rounded to float32; M may be 0.
        thresholds: (M,) in [0, 1], as float32.

    Returns:
        (M, H, W) float64 in [0, 1]; just above 0.5 up to 2e-7 too high.
    """
    cam = cam.astype(np.float32)
    cut = np.asarray(thresholds, np.float32).reshape(-1, 1, 1) + 0.0  # the bits of -0.0 differ
    above, exact = cam > cut, cut.astype(np.float64)
    level = cam - exact
    level /= 2 * np.where(above, 1 - exact, np.where(exact > 0, exact, 1))
    level += 0.5
    # seed_mask compares as float32, in which the least value above 0.5 is 2**-24 higher; and close
    # to 0, float32 is so fine that two values may have one level. So the float32 between a value
    # and its threshold are counted (they are ordered as their bits, and fewer than 2**30).
    near = above & (level < 0.5 + 2.0**-22)
    if near.any():
        between = (cam.view(np.int32) - cut.view(np.int32))[near]
        level[near] = np.maximum(level[near], 0.5 + 2.0**-24 + 2.0**-53 * between)
    return level


class MapCounts:
    """Values of a training split's maps, counted, and the thresholds that follow without a mask."""

    def __init__(self, num_classes: int, salient_from: float | None = None) -> None:
        """Count nothing yet.

        Args:
            num_classes: K.
            salient_from: value in [0, 1] above which a pixel of a saliency map is salient to
                `agreement`, see `salient_level`; None if there is nothing to agree with.
        """
        self._salient_from = salient_from
        self._highest = np.zeros(NUM_LEVELS, np.int64)  # of the maps of each pixel
        self._of_class = np.zeros((num_classes, NUM_LEVELS), np.int64)
        # IoU of each image's seeds with what is salient, by the level they are cut at, added up in
        # units of `SHARE`
        self._agreement = np.zeros((num_classes, NUM_LEVELS), np.int64)

    def fresh(self) -> "MapCounts":
        """Return one without counts."""
        return MapCounts(len(self._of_class), self._salient_from)

    def merge(self, other: "MapCounts") -> None:
        """Add the counts of another one."""
        self._highest += other._highest
        self._of_class += other._of_class
        self._agreement += other._agreement

    def add(
        self, maps: np.ndarray, classes: Sequence[int], saliency: np.ndarray | None = None
    ) -> None:
        """Count the maps of one image.

        Args:
            maps: (M, H, W) in [0, 1]; without any, nothing is counted.
            classes: (M,) foreground indices.
            saliency: (H, W) in [0, 1]; `agreement` needs it.

        Raises:
            ValueError: maps and saliency differ in size.
        """
        if not len(maps):
            return
        if saliency is not None and saliency.shape != maps.shape[1:]:
            raise ValueError(
                f"expected a saliency map of the size {maps.shape[1:]}, got {saliency.shape}. "
                "Make it at the image's own size."
            )
        levels = to_levels(maps)
        self._highest += level_counts(levels.max(axis=0))
        for k, of_class in zip(classes, levels, strict=True):
            self._of_class[k] += level_counts(of_class)
        if saliency is not None and self._salient_from is not None:
            is_salient = to_levels(saliency) > self._salient_from * (NUM_LEVELS - 1)
            winner = levels.argmax(axis=0)
            for i, k in enumerate(classes):
                here = winner == i
                iou = _iou_by_level(levels[i][here], is_salient[here])
                self._agreement[k] += in_shares(iou)

    def say_nothing(self) -> bool:
        """Tell whether all maps are one value, or there are none."""
        return (self._highest > 0).sum() < 2

    def thresholds(self, rule: str) -> list[float]:
        """Return K thresholds by a rule: auto (K equal ones), class or agreement.

        Raises:
            ValueError: the maps say nothing.
        """
        if rule == "auto":
            return [self.auto()] * len(self._of_class)
        return self.by_class() if rule == "class" else self.agreement()

    def auto(self) -> float:
        """Return one threshold for all classes: `auto_threshold` of the highest values.

        Raises:
            ValueError: the maps say nothing.
        """
        return auto_threshold(self._highest)

    def by_class(self) -> list[float]:
        """Return a threshold for each class: `auto_threshold` of its own maps.

        A class whose maps hold no two different values gets that of all maps together.

        Raises:
            ValueError: all maps say nothing.
        """
        common = self.auto()
        return [auto_threshold(c) if (c > 0).sum() > 1 else common for c in self._of_class]

    def agreement(self) -> list[float]:
        """Return a threshold for each class: the one whose seeds agree best with saliency.

        Agreement is the IoU with what is salient, over the pixels in which the class has the
        highest map of its image, averaged over images, so that one whose saliency map covers far
        too much weighs no more than another. A class without any salient pixel gets the threshold
        of `auto`.

        Raises:
            ValueError: all maps say nothing.
        """
        common = self.auto()
        thresholds = []
        for iou in self._agreement:
            best = (int(iou[1:].argmax()) + 0.5) / (NUM_LEVELS - 1)  # of levels from 1
            thresholds.append(best if iou.any() else common)
        return thresholds


def count_maps(
    records: Sequence[Record],
    read_maps: Callable[[Record], tuple[np.ndarray, Sequence[int]]],
    num_classes: int,
    read_saliency: Callable[[Record], np.ndarray] | None = None,
    salient_from: float = 0.0,
    parallel: bool = False,
) -> MapCounts:
    """Count the maps of images, from which all thresholds without masks follow.

    Args:
        records: images of the training split.
        read_maps: gives maps (M, H, W) of a record and their classes (M,).
        num_classes: K.
        read_saliency: gives the map (H, W) that `agreement` is with; None without it.
        salient_from: level above which that is a defect; 0 for `salient_level` of all of them.
        parallel: see `scoring.processes.count_over`.

    Raises:
        ValueError: names the image whose maps do not fit.
    """
    level = None
    if read_saliency:
        labelled = [record for record in records if record.classes]
        level = salient_from or salient_level(labelled, read_saliency, parallel)

    def count(counters: Sequence[MapCounts], record: Record) -> None:
        maps, classes = read_maps(record)
        try:
            counters[0].add(maps, classes, read_saliency(record) if read_saliency else None)
        except ValueError as error:
            raise ValueError(f"CAMs of {record.name}: {error}") from error

    counts = MapCounts(num_classes, level)
    count_over([counts], records, count, "training maps", parallel)
    return counts


def counted_images(records: Sequence[Record], num_classes: int, rule: str) -> list[Record]:
    """Return labelled images enough to find refined maps' thresholds: `MAX_IMAGES`, evenly spaced.

    Where each class has its own threshold, each has its share of them.
    """
    labelled = [record for record in records if record.classes]
    groups = [labelled]
    if rule != "auto":
        groups = [[r for r in labelled if k in r.classes] for k in range(num_classes)]
    limit = max(1, MAX_IMAGES // len(groups))
    chosen = {r.name: r for group in groups for r in group[:: -(-len(group) // limit) or 1]}
    return list(chosen.values())


def salient_level(
    records: Sequence[Item], read_saliency: Callable[[Item], np.ndarray], parallel: bool = False
) -> float | None:
    """Return the value above which pixels of saliency maps are salient: Otsu's of all of them.

    Args:
        records: images.
        read_saliency: gives the map (H, W) of a record, in [0, 1].
        parallel: see `scoring.processes.count_over`.

    Returns:
        See `auto_threshold`; None where all maps are one value.
    """

    def count(counters: Sequence[MapCounts], record: Item) -> None:
        counters[0].add(read_saliency(record)[None], (0,))

    counts = MapCounts(1)
    count_over([counts], records, count, "saliency levels", parallel)
    return None if counts.say_nothing() else counts.auto()


def auto_threshold(histogram: np.ndarray) -> float:
    """Find a threshold without masks: Otsu's method on a histogram of values.

    Takes the cut that maximises the variance between the two sides (Otsu 1979, eq. 18), the
    lowest of equals.

    Args:
        histogram: (L,) counts; entry i counts the values at i / (L - 1).

    Returns:
        Threshold in (0, 1), halfway between the two occupied levels the cut separates.

    Raises:
        ValueError: fewer than two levels are occupied, so there is nothing to separate.
    """
    occupied = np.flatnonzero(histogram)
    if len(occupied) < 2:
        raise ValueError(
            f"maps: expected two or more different values, got {len(occupied)}. "
            "Check the maps or give a fixed threshold."
        )
    counts = histogram[occupied].astype(np.float64)
    low_count = np.cumsum(counts)[:-1]
    low_sum = np.cumsum(counts * occupied)[:-1]
    high_count = counts.sum() - low_count
    high_sum = (counts * occupied).sum() - low_sum
    between = low_count * high_count * (low_sum / low_count - high_sum / high_count) ** 2
    cut = int(between.argmax())
    return float(occupied[cut] + occupied[cut + 1]) / 2 / (len(histogram) - 1)


def _iou_by_level(levels: np.ndarray, is_salient: np.ndarray) -> np.ndarray:
    """Return the IoU of what is at a level or above it with what is salient, (NUM_LEVELS,)."""
    seeds, hits = (at_least(level_counts(x)) for x in (levels, levels[is_salient]))
    return hits / np.maximum(seeds + is_salient.sum() - hits, 1)
