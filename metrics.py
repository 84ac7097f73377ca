"""Scores of masks and maps from pixel counts: arrays in, figures out, no files.

Pixels whose mask is 255 are not scored. Map values above the threshold are foreground.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from datasets.record import BACKGROUND, IGNORE
from seeds import levelled, seed_mask

GRID = tuple(i / 100 for i in range(101))  # thresholds of the sweep
LEVELS = np.arange(256, dtype=np.float32) / 255  # values of an 8-bit map, as read_saliency gives
BETA_SQUARED = 0.3  # of F-beta; Achanta et al. 2009, "Frequency-tuned salient region detection"


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
        shape = (num_classes + 1, num_classes + 1)
        self.counts = np.zeros(shape, np.int64) if counts is None else counts

    def update(self, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Count the pixels of one image, or of a batch.

        Args:
            truth: (..., H, W) mask values; 255 is not counted.
            prediction: the same shape, mask values; 255 counts as background.

        Raises:
            ValueError: sizes differ, or a value is neither in 0..K nor 255.
        """
        _check_size(prediction.shape, truth.shape)
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
        self.thresholds = tuple(sorted(set(thresholds)))
        self._levels = np.array(self.thresholds, np.float32)
        shape = (num_classes + 1, num_classes, len(self.thresholds) + 1)
        self._counts = np.zeros(shape, np.int64)  # (truth, winning class, thresholds below)

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
            _check_size(cam.shape[1:], truth.shape)
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

    def update(self, truth: np.ndarray, cam: np.ndarray, classes: np.ndarray) -> None:
        """Count the pixels of one image; arguments and errors as of `ThresholdSweep.update`."""
        if len(classes):
            cam = levelled(cam, [self.thresholds[k] for k in classes])
            super().update(truth, seed_mask(cam, classes, 0.5))
        else:
            super().update(truth, np.full(truth.shape, BACKGROUND, np.uint8))


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
        self._free_shares = np.zeros(len(LEVELS))  # shares of a defect-free image, summed

    def update(self, truth: np.ndarray, saliency: np.ndarray, labelled: bool) -> None:
        """Count the pixels of one image.

        Args:
            truth: (H, W) mask values 0..K; 255 is not counted.
            saliency: (H, W) in [0, 1]; rounded to LEVELS.
            labelled: whether the image has a class label.

        Raises:
            ValueError: sizes differ, or a value is out of range.
        """
        _check_size(saliency.shape, truth.shape)
        if not ((saliency >= 0) & (saliency <= 1)).all():
            got = f"{saliency.min()} to {saliency.max()}"
            raise ValueError(f"expected saliency values from 0 to 1, got {got}. Make it anew.")
        scored = truth != IGNORE
        levels = np.rint(255 * saliency[scored]).astype(np.int64)  # (N,)
        index = np.ravel_multi_index((truth[scored].astype(np.int64), levels), self.counts.shape)
        counts = np.bincount(index, minlength=self.counts.size).reshape(self.counts.shape)
        if labelled:
            self.counts += counts
        defect_free = not labelled or not counts[1:].any()
        if defect_free and scored.any():
            self.defect_free_images += 1
            self._free_shares += counts.sum(axis=0) / scored.sum()

    def scores(self) -> SaliencyScores:
        """Return the measures that need no threshold."""
        background, defects = self.counts[BACKGROUND], self.counts[1:].sum(axis=0)  # (256,) each
        num_background, num_defects = background.sum(), defects.sum()
        auroc = ap = max_f = best_fg_iou = best_fg_threshold = mae = None
        if num_background + num_defects:
            steps = np.arange(len(LEVELS))
            error = (background @ steps + defects @ steps[::-1]) / steps[-1]
            mae = float(100 * error / (num_background + num_defects))
        if num_defects and num_background:
            lower = background.cumsum() - background / 2  # of equals one half
            auroc = float(100 * (defects / num_defects) @ (lower / num_background))
        if num_defects:
            hits, alarms = (part[::-1].cumsum()[::-1] for part in (defects, background))
            found = hits + alarms  # pixels of at least each level
            ap = float(100 * (defects / num_defects) @ (hits / np.maximum(found, 1)))
            hits, alarms, found = (np.append(part[1:], 0) for part in (hits, alarms, found))
            # Now pixels strictly above each level. 1 / F = (b / recall + 1 / precision) / (1 + b).
            f_beta = (1 + BETA_SQUARED) * hits / (BETA_SQUARED * num_defects + found)
            fg_iou = hits / (num_defects + alarms)
            max_f, best_fg_iou = (float(100 * part.max()) for part in (f_beta, fg_iou))
            best_fg_threshold = float(fg_iou.argmax() / steps[-1])
        return SaliencyScores(auroc, ap, max_f, best_fg_iou, best_fg_threshold, mae)

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
        return float(100 * self._free_shares[_above(threshold)].sum() / self.defect_free_images)


def _above(threshold: float) -> np.ndarray:
    """Return (256,) bool: the LEVELS that are foreground, compared as in `seed_mask`."""
    return np.float32(threshold) < LEVELS


def _check_size(shape: tuple[int, ...], truth_shape: tuple[int, ...]) -> None:
    if shape != truth_shape:
        raise ValueError(
            f"expected the size (H, W) of its mask, {truth_shape}, got {shape}. "
            "Make it at the image's own size."
        )
