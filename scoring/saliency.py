"""Scores of saliency maps, which know no classes, whatever the threshold.

Pixels whose mask is 255 are not scored. Map values above the threshold are foreground.
"""

from typing import NamedTuple

import numpy as np

from datasets.record import BACKGROUND, IGNORE
from scoring.confusion import check_size
from scoring.histogram import NUM_LEVELS, SHARE, at_least, auroc, in_shares, to_levels

# Values of an 8-bit map, as read_saliency gives them.
LEVELS = np.arange(NUM_LEVELS, dtype=np.float32) / (NUM_LEVELS - 1)
BETA_SQUARED = 0.3  # of F-beta; Achanta et al. 2009, "Frequency-tuned salient region detection"


class SaliencyScores(NamedTuple):
    """What saliency maps are worth whatever the threshold; in % but for best_fg_threshold.

    All pixels are pooled, none is averaged by image first. None where a measure is not defined.

    Attributes:
        auroc: share of the pairs of a defect and a background pixel in which the defect's value is
            higher, ties counting half. None unless there are both.
        ap: precision at the value of each defect pixel, averaged over the defect pixels, without
            interpolation. None without defects, as the next two and best_fg_threshold.
        max_f: highest of (1 + b) * precision * recall / (b * precision + recall) over all
            thresholds, b = BETA_SQUARED.
        best_fg_iou: highest foreground IoU over all thresholds. An oracle.
        best_fg_threshold: the lowest of LEVELS, as threshold, that gives best_fg_iou.
        mae: mean of |value - truth|, truth 1 in defects and 0 elsewhere. None without pixels.
    """

    auroc: float | None
    ap: float | None
    max_f: float | None
    best_fg_iou: float | None
    best_fg_threshold: float | None
    mae: float | None


class SaliencyHistogram:
    """Saliency values counted by truth class; 8-bit maps lose nothing by it.

    Images without a class label are kept out of all measures but the false-alarm area: easy
    background would flatter the rest.

    Attributes:
        counts: (K + 1, 256) int64, rows truth, columns levels; images with a class label.
        defect_free_images: images that have no class label, or no defect in their mask.
    """

    def __init__(self, num_classes: int) -> None:
        self.counts = np.zeros((num_classes + 1, len(LEVELS)), np.int64)
        self.defect_free_images = 0
        self._free_shares = np.zeros(len(LEVELS), np.int64)  # of defect-free images, see `SHARE`

    def fresh(self) -> "SaliencyHistogram":
        """Return one without counts."""
        return SaliencyHistogram(len(self.counts) - 1)

    def merge(self, other: "SaliencyHistogram") -> None:
        """Add the counts of another one."""
        self.counts += other.counts
        self.defect_free_images += other.defect_free_images
        self._free_shares += other._free_shares

    def update(self, truth: np.ndarray, saliency: np.ndarray, labelled: bool) -> None:
        """Count the pixels of one image.

        Args:
            truth: (H, W) mask values 0..K; 255 is not counted.
            saliency: (H, W) in [0, 1]; rounded to LEVELS.
            labelled: whether the image has a class label.

        Raises:
            ValueError: sizes differ, or a value is out of range.
        """
        check_size(saliency.shape, truth.shape)
        if not ((saliency >= 0) & (saliency <= 1)).all():
            got = f"{saliency.min()} to {saliency.max()}"
            raise ValueError(f"expected saliency values from 0 to 1, got {got}. Make it anew.")
        scored = truth != IGNORE
        levels = to_levels(saliency[scored])  # (N,)
        index = np.ravel_multi_index((truth[scored].astype(np.int64), levels), self.counts.shape)
        counts = np.bincount(index, minlength=self.counts.size).reshape(self.counts.shape)
        if labelled:
            self.counts += counts
        defect_free = not labelled or not counts[1:].any()
        if defect_free and scored.any():
            self.defect_free_images += 1
            self._free_shares += in_shares(counts.sum(axis=0) / scored.sum())

    def scores(self) -> SaliencyScores:
        """Return the measures that need no threshold."""
        background, defects = self.counts[BACKGROUND], self.counts[1:].sum(axis=0)  # (256,) each
        num_background, num_defects = background.sum(), defects.sum()
        ap = max_f = best_fg_iou = best_fg_threshold = mae = None
        if num_background + num_defects:
            steps = np.arange(len(LEVELS))
            error = (background @ steps + defects @ steps[::-1]) / steps[-1]
            mae = float(100 * error / (num_background + num_defects))
        if num_defects:
            hits, alarms = at_least(defects), at_least(background)
            positives = hits + alarms  # pixels of at least each level
            ap = float(100 * (defects / num_defects) @ (hits / np.maximum(positives, 1)))
            hits, alarms, positives = (np.append(p[1:], 0) for p in (hits, alarms, positives))
            # Now pixels strictly above each level. 1 / F = (b / recall + 1 / precision) / (1 + b).
            f_beta = (1 + BETA_SQUARED) * hits / (BETA_SQUARED * num_defects + positives)
            fg_iou = hits / (num_defects + alarms)
            max_f, best_fg_iou = (float(100 * part.max()) for part in (f_beta, fg_iou))
            best_fg_threshold = float(fg_iou.argmax() / steps[-1])
        return SaliencyScores(
            auroc(background, defects), ap, max_f, best_fg_iou, best_fg_threshold, mae
        )

    def recall(self, threshold: float) -> np.ndarray:
        """Return the share of each class' true pixels above the threshold, in %.

        Returns:
            (K,) float64; NaN where a class has no pixel.
        """
        defects = self.counts[1:]
        with np.errstate(invalid="ignore"):  # 0 / 0 marks an absent class
            return 100 * defects[:, _above(threshold)].sum(axis=1) / defects.sum(axis=1)

    def false_alarm(self, threshold: float) -> float | None:
        """Return the area above the threshold in %, the mean over defect-free images, or None."""
        if not self.defect_free_images:
            return None
        area = SHARE * self._free_shares[_above(threshold)].sum()
        return float(100 * area / self.defect_free_images)


def _above(threshold: float) -> np.ndarray:
    """Return (256,) bool: the LEVELS that are foreground, compared as in `seed_mask`."""
    return np.float32(threshold) < LEVELS
