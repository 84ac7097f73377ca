"""Confusion matrices of masks and of maps cut at thresholds: arrays in, figures out, no files.

Pixels whose mask is 255 are not scored. Map values above the threshold are foreground.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from datasets.record import BACKGROUND, IGNORE, check_num_classes
from scoring.thresholds import levelled, seed_mask

GRID = tuple(i / 100 for i in range(101))  # thresholds of the sweep


class Scores(NamedTuple):
    """What a confusion matrix says, in %.

    Attributes:
        iou: (K + 1,) float64, background first; NaN where a class is neither in truth nor in
            prediction. Such classes are left out of every mean.
        miou: mean of iou.
        fg_iou: IoU of all foreground classes taken as one; None where there is no foreground.
        fp: mean over classes, background included, of (P - TP) / (T + P - TP), where T, P and TP
            count a class' pixels in truth, in prediction and in both. The authors' definition.
        fn: the same of (T - TP) / (T + P - TP), so miou + fp + fn = 100.
    """

    iou: np.ndarray
    miou: float
    fg_iou: float | None
    fp: float
    fn: float


class ConfusionMatrix:
    """Pixel counts, (K + 1, K + 1) int64 in `counts`: rows truth, columns prediction."""

    def __init__(self, num_classes: int, counts: np.ndarray | None = None) -> None:
        check_num_classes(num_classes, "confusion matrix")
        shape = (num_classes + 1, num_classes + 1)
        self.counts = np.zeros(shape, np.int64) if counts is None else counts

    def fresh(self) -> "ConfusionMatrix":
        """Return one without counts."""
        return ConfusionMatrix(len(self.counts) - 1)

    def merge(self, other: "ConfusionMatrix") -> None:
        """Add the counts of another one."""
        self.counts = self.counts + other.counts

    def update(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Count the pixels of one image, or of a batch.

        Args:
            truth: (..., H, W) mask values; 255 is not counted.
            prediction: the same shape, mask values; 255 counts as background.

        Raises:
            ValueError: sizes differ, or a value is neither in 0..K nor 255.
        """
        check_size(prediction.shape, truth.shape)
        size = len(self.counts)
        scored = truth != IGNORE
        columns = np.where(prediction == IGNORE, BACKGROUND, prediction)[scored]
        index = truth[scored].astype(np.int64) * size + columns
        highest = max(truth[scored].max(initial=0), columns.max(initial=0))
        if highest >= size:
            raise ValueError(
                f"expected mask values 0..{size - 1} and {IGNORE}, got {highest}. "
                "Check the number of classes."
            )
        self.counts += np.bincount(index, minlength=size * size).reshape(size, size)

    def scores(self) -> Scores:
        """Return the scores.

        Raises:
            ValueError: nothing was counted.
        """
        hit = np.diag(self.counts)
        truth, predicted = self.counts.sum(axis=1), self.counts.sum(axis=0)
        union = truth + predicted - hit
        if not union.any():
            raise ValueError(f"masks: expected a pixel to score, got only {IGNORE} or no image.")
        with np.errstate(invalid="ignore"):  # 0 / 0 marks an absent class
            iou, fp, fn = (100 * part / union for part in (hit, predicted - hit, truth - hit))
        miou, fp_mean, fn_mean = (float(np.nanmean(share)) for share in (iou, fp, fn))
        foreground = self.counts.sum() - self.counts[BACKGROUND, BACKGROUND]
        fg_iou = float(100 * self.counts[1:, 1:].sum() / foreground) if foreground else None
        return Scores(iou, miou, fg_iou, fp_mean, fn_mean)

    def miou(self) -> float:
        """Return the mean IoU in %; see `scores`."""
        return self.scores().miou


class ThresholdSweep:
    """Confusion matrices of many thresholds from one look at each image.

    The winning class of a pixel does not depend on the threshold, so it is enough to count how
    many thresholds lie below the winning value.

    Attributes:
        thresholds: ascending, without repetitions.
    """

    def __init__(self, thresholds: Iterable[float], num_classes: int) -> None:
        check_num_classes(num_classes, "threshold sweep")
        self.thresholds = tuple(sorted(set(thresholds)))
        self._levels = np.array(self.thresholds, np.float32)
        shape = (num_classes + 1, num_classes, len(self.thresholds) + 1)
        self._counts = np.zeros(shape, np.int64)  # (truth, winning class, thresholds below)

    def fresh(self) -> "ThresholdSweep":
        """Return one of the same thresholds without counts."""
        return ThresholdSweep(self.thresholds, self._counts.shape[1])

    def merge(self, other: "ThresholdSweep") -> None:
        """Add the counts of another one."""
        self._counts = self._counts + other._counts

    def update(self, truth: np.ndarray, cam: np.ndarray, classes: np.ndarray) -> None:
        """Count the pixels of one image.

        Args:
            truth: (H, W) mask values 0..K; 255 is not counted.
            cam: (M, H, W) in [0, 1]; M may be 0, then H and W do not matter.
            classes: (M,) foreground indices in [0, K).

        Raises:
            ValueError: sizes differ, a class is not in [0, K), or cam is not finite.
        """
        shape = self._counts.shape
        if any(not 0 <= k < shape[1] for k in classes):
            raise ValueError(
                f"expected class indices 0..{shape[1] - 1}, got {np.asarray(classes).tolist()}. "
                "Check the number of classes."
            )
        if len(classes):
            check_size(cam.shape[1:], truth.shape)
        else:
            cam, classes = np.zeros((1, *truth.shape), np.float32), np.zeros(1, np.int64)
        scored = truth != IGNORE
        values = cam.max(axis=0)[scored].astype(np.float32)  # (N,)
        if not np.isfinite(values).all():
            raise ValueError("expected finite CAM values, got NaN or infinity. Make it anew.")
        below = np.searchsorted(self._levels, values, side="left")
        winners = np.asarray(classes)[cam.argmax(axis=0)[scored]]
        index = np.ravel_multi_index((truth[scored].astype(np.int64), winners, below), shape)
        self._counts += np.bincount(index, minlength=self._counts.size).reshape(shape)

    def confusion(self, threshold: float) -> ConfusionMatrix:
        """Return the confusion matrix of `seed_mask` at one of `thresholds`."""
        place = self.thresholds.index(threshold)
        size = len(self._counts)
        counts = np.empty((size, size), np.int64)
        counts[:, BACKGROUND] = self._counts[..., : place + 1].sum(axis=(1, 2))
        counts[:, 1:] = self._counts[..., place + 1 :].sum(axis=2)
        return ConfusionMatrix(size - 1, counts)

    def best(self) -> float:
        """Return the threshold of the highest mIoU, the lowest of equals: an oracle."""
        return max(self.thresholds, key=lambda t: self.confusion(t).miou())


class LevelledSeeds(ConfusionMatrix):
    """Pixel counts of seeds that are cut at one threshold per class, see `levelled`.

    Attributes:
        thresholds: of the K classes, in [0, 1].
    """

    def __init__(self, thresholds: Sequence[float]) -> None:
        super().__init__(len(thresholds))
        self.thresholds = tuple(thresholds)

    def fresh(self) -> "LevelledSeeds":
        """Return one of the same thresholds without counts."""
        return LevelledSeeds(self.thresholds)

    def update(self, truth: np.ndarray, cam: np.ndarray, classes: np.ndarray) -> None:
        """Count the pixels of one image; arguments and errors as of `ThresholdSweep.update`."""
        if len(classes):
            cam = levelled(cam, [self.thresholds[k] for k in classes])
            super().update(truth, seed_mask(cam, classes, 0.5))
        else:
            super().update(truth, np.full(truth.shape, BACKGROUND, np.uint8))


def check_size(shape: tuple[int, ...], truth_shape: tuple[int, ...]) -> None:
    """Refuse a map or mask of another (H, W) than its ground truth; raises ValueError."""
    if shape != truth_shape:
        raise ValueError(
            f"expected the size (H, W) of its mask, {truth_shape}, got {shape}. "
            "Make it at the image's own size."
        )
