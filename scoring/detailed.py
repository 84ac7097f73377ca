"""Further scores of masks and maps: what an inspection asks beyond IoU. Arrays in, figures out.

Pixels whose mask is 255 are not scored. All shares are in %.
"""

from typing import Any

import cv2
import numpy as np
from sklearn.metrics import auc, roc_auc_score

from datasets.record import BACKGROUND, IGNORE
from scoring.confusion import ConfusionMatrix, check_size
from scoring.histogram import SHARE, auroc, in_shares, level_counts, to_levels

TOLERANCE = 2  # pixels that a predicted border may lie off the true one
MAX_FPR = 0.3  # of AUPRO; Bergmann et al. 2021, "The MVTec Anomaly Detection Dataset"
NUM_LEVELS = 1001  # map values are rounded to steps of 0.001
ROUNDS = 1000  # of the bootstrap


class DetailedScores:
    """Collects images one by one, keeps counts only."""

    def __init__(self, num_classes: int, maps_see_labels: bool = False) -> None:
        """Count nothing yet.

        Args:
            num_classes: K.
            maps_see_labels: whether score maps depend on the labels of their images, so that
                scores of the maps and of the images would only tell the labels: they become None.
        """
        self.num_classes = num_classes
        self.maps_see_labels = maps_see_labels
        self._confusions: dict[str | int, np.ndarray] = {}  # (K + 1, K + 1) of each group
        self._borders = np.zeros((num_classes, 4), np.int64)  # hits and all, predicted and true
        self._alarms: list[int] = []  # predicted regions of each defect-free image
        # Per level: background pixels, defect pixels, and the shares of regions, see `SHARE`.
        self._levels = np.zeros((3, NUM_LEVELS), np.int64)
        self._num_regions = 0
        self._has_maps = False
        self._image_scores: list[tuple[bool, float]] = []

    def fresh(self) -> "DetailedScores":
        """Return one without counts."""
        return DetailedScores(self.num_classes, self.maps_see_labels)

    def merge(self, other: "DetailedScores") -> None:
        """Add what another one has counted of the images that follow."""
        for key, counts in other._confusions.items():
            self._add_confusion(key if isinstance(key, str) else None, counts)
        self._borders += other._borders
        self._alarms += other._alarms
        self._levels += other._levels
        self._num_regions += other._num_regions
        self._has_maps |= other._has_maps
        self._image_scores += other._image_scores

    def _add_confusion(self, group: str | None, counts: np.ndarray) -> None:
        key = group or len(self._confusions)  # a number that no image had before
        self._confusions[key] = self._confusions.get(key, 0) + counts

    def update(
        self,
        truth: np.ndarray,
        prediction: np.ndarray,
        score_map: np.ndarray | None = None,
        image_score: float | None = None,
        group: str | None = None,
    ) -> None:
        """Count one image; one whose pixels are all 255 is neither defective nor defect-free.

        Args:
            truth: (H, W) mask values 0..K; 255 is not counted.
            prediction: (H, W) mask values; 255 counts as background.
            score_map: (H, W) in [0, 1], how far each pixel looks like any defect; None where
                only masks are there.
            image_score: how far the image does; None for the highest value of the map in pixels
                that are scored.
            group: what other images show the same part as this one, or are copies of one picture,
                have in common; None or "" for an image by itself.

        Raises:
            ValueError: sizes differ or a value is out of range.
        """
        confusion = ConfusionMatrix(self.num_classes)
        confusion.update(truth, prediction)
        self._add_confusion(group, confusion.counts)
        known = truth != IGNORE
        prediction = np.where(known & (prediction != IGNORE), prediction, BACKGROUND)
        defect = known & (truth != BACKGROUND)
        for k in range(self.num_classes):
            pair = ((prediction == k + 1) & known, truth == k + 1)
            self._borders[k] += border_counts(*pair, TOLERANCE)
        if known.any() and not defect.any():
            foreground = (prediction != BACKGROUND).astype(np.uint8)
            self._alarms.append(cv2.connectedComponents(foreground, connectivity=8)[0] - 1)
        if score_map is not None:
            self._count_map(score_map, image_score, defect, known)

    def _count_map(
        self,
        score_map: np.ndarray,
        image_score: float | None,
        defect: np.ndarray,
        known: np.ndarray,
    ) -> None:
        check_size(score_map.shape, defect.shape)
        if not (score_map.min() >= 0 and score_map.max() <= 1):  # NaN too
            raise ValueError("expected map values in [0, 1]. Make the map anew.")
        self._has_maps = True
        if self.maps_see_labels or not known.any():
            return
        if image_score is None:
            image_score = float(score_map[known].max())
        self._image_scores.append((bool(defect.any()), image_score))
        levels = to_levels(score_map, NUM_LEVELS)
        for row, pixels in enumerate((known & ~defect, defect)):
            self._levels[row] += level_counts(levels[pixels], NUM_LEVELS)
        count, regions = cv2.connectedComponents(defect.astype(np.uint8), connectivity=8)
        for region in range(1, count):
            of_region = levels[regions == region]
            self._levels[2] += in_shares(level_counts(of_region, NUM_LEVELS) / len(of_region))
        self._num_regions += count - 1

    def scores(self, rounds: int = ROUNDS, seed: int = 0) -> dict[str, Any]:
        """Return the scores; None where the images do not tell.

        Returns:
            pixel_accuracy; area_ratio, the predicted area of all defects in % of the true one;
            dice and boundary_f1 (see there), a list with one entry per class (dice with the
            background first); false_alarms, regions per defect-free image;
            miou_interval, (low, high) of 95 % of `rounds` sets of as many groups of images, drawn
            with repetition; and of maps pixel_auroc, aupro, max_f1 of pixels, image_auroc of the
            image scores.

        Raises:
            ValueError: no pixel was counted.
        """
        size = self.num_classes + 1
        confusions = np.reshape([*self._confusions.values()], (-1, size, size))
        interval = miou_interval(confusions, rounds, seed)
        total = confusions.sum(axis=0)
        hit, both = np.diag(total), total.sum(axis=0) + total.sum(axis=1)
        one_sided = (total.sum(axis=0)[1:] > 0) != (total.sum(axis=1)[1:] > 0)
        scores: dict[str, Any] = {
            "pixel_accuracy": float(100 * hit.sum() / total.sum()),
            "area_ratio": _numbers(_share(total[:, 1:].sum(), total[1:].sum())[None])[0],
            "dice": _numbers(_share(2 * hit, both)),
            "boundary_f1": _numbers(boundary_f1(self._borders, one_sided)),
            "false_alarms": float(np.mean(self._alarms)) if self._alarms else None,
            "miou_interval": interval,
        }
        return scores | (self._map_scores() if self._has_maps else {})

    def _map_scores(self) -> dict[str, float | None]:
        background, defect, overlap = self._levels
        defective = [is_defective for is_defective, _ in self._image_scores]
        image_auroc = None
        if len(set(defective)) == 2:
            highest = [score for _, score in self._image_scores]
            image_auroc = 100 * float(roc_auc_score(defective, highest))
        if not (background.any() and defect.any()):
            return {"pixel_auroc": None, "aupro": None, "max_f1": None, "image_auroc": image_auroc}
        # From the strictest threshold to the mildest, begun where nothing is foreground.
        false, true, pro = (
            np.concatenate([[0], np.cumsum(row[::-1])]) for row in (background, defect, overlap)
        )
        false_rate = false / false[-1]
        f1 = 2 * true / (true + false + true[-1])
        return {
            "pixel_auroc": auroc(background, defect),
            "aupro": 100 * area_up_to(false_rate, SHARE * pro / self._num_regions, MAX_FPR),
            "max_f1": 100 * float(f1.max()),
            "image_auroc": image_auroc,
        }


def border_counts(predicted: np.ndarray, truth: np.ndarray, tolerance: int) -> np.ndarray:
    """Count border pixels of two bool masks (H, W).

    A border pixel is one of the mask with a neighbour, of four, outside it; the image's edge is
    no border.

    Returns:
        (4,) int64: predicted ones within `tolerance` pixels (Euclidean) of a true one, all
        predicted ones, true ones within reach of a predicted one, all true ones.
    """
    borders = [_border(mask) for mask in (predicted, truth)]
    counts = []
    for of_one, of_other in (borders, borders[::-1]):
        if of_one.any() and of_other.any():
            distance = cv2.distanceTransform(
                (~of_other).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE
            )
            near = int((distance[of_one] <= tolerance + 1e-3).sum())
        else:
            near = 0
        counts += [near, int(of_one.sum())]
    return np.array(counts, np.int64)


def boundary_f1(borders: np.ndarray, one_sided: np.ndarray) -> np.ndarray:
    """Return the harmonic mean of the shares of border pixels within reach, in %, of each class.

    A class without a border in truth or in prediction, but with one in the other, scores 0: none
    of its border is right. So does a class with pixels on one side alone, even if it fills whole
    images and so has no border there. NaN where truth and prediction have no border, and both or
    neither have pixels: a class that is nowhere, or one that fills the same whole images.

    Args:
        borders: (K, 4) as `border_counts` gives them, added over images.
        one_sided: (K,) bool: pixels of the class are in truth or in prediction, not in both.
    """
    near_predicted, predicted, near_true, true = borders.T
    precision, recall = near_predicted / np.maximum(predicted, 1), near_true / np.maximum(true, 1)
    f1 = 200 * precision * recall / np.maximum(precision + recall, 1e-12)
    return np.where((predicted + true > 0) | one_sided, f1, np.nan)


def miou_interval(confusions: np.ndarray, rounds: int, seed: int) -> tuple[float, float]:
    """Return the 2.5 and 97.5 percentile of the mIoU of groups of images drawn with repetition.

    Images that are not independent belong into one group: drawn one by one, ten pictures of one
    part would pass for ten parts, and the interval would be too narrow.

    Args:
        confusions: (N, K + 1, K + 1) of N groups. Those without a scored pixel are left out: a draw
            of them alone would have no mIoU.
        rounds: draws of as many groups as are left; of one, all are the same.
        seed: of the draws.

    Raises:
        ValueError: no group is left.
    """
    confusions = confusions[confusions.any(axis=(1, 2))]
    num, size = len(confusions), confusions.shape[1]
    if not num:
        raise ValueError(
            f"bootstrap: expected an image with a pixel to score, got only {IGNORE} or no image. "
            "Check the masks."
        )
    rng = np.random.default_rng(seed)
    flat = confusions.reshape(num, -1).astype(np.float64)
    values = []
    for _ in range(rounds):
        times = rng.multinomial(num, np.full(num, 1 / num))
        values.append(ConfusionMatrix(size - 1, (times @ flat).reshape(size, size)).miou())
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def area_up_to(x: np.ndarray, y: np.ndarray, limit: float) -> float:
    """Return the mean of y over x in [0, limit], x ascending from 0, linear between points."""
    inside = x <= limit
    xs = np.append(x[inside], limit)
    ys = np.append(y[inside], np.interp(limit, x, y))
    return float(auc(xs, ys)) / limit


def _numbers(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]


def _border(mask: np.ndarray) -> np.ndarray:
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    return mask & (cv2.erode(padded, cross)[1:-1, 1:-1] == 0)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Return part / whole in %, NaN where whole is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(whole > 0, 100 * part / np.maximum(whole, 1), np.nan)
