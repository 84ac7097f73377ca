"""What a trained run is asked, and what it answers; see `inference.predictor`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from datasets.record import Record
from inference.localise import Localised
from scoring.limits import Limits


@dataclass(frozen=True)
class Options:
    """How pictures are judged.

    Attributes:
        max_false_alarm: share of good images, in [0, 1], that may be called defective among those
            held out.
        min_recall: share of defective images that must not be called ok among those held out.
        keep_all: images that are ok keep their masks.
        min_area: smaller objects, in pixels, are left out; 0 keeps all; None: the least areas that
            were learnt from the pseudo labels.
        threshold: of all classes, or by class, in [0, 1]; the lower, the larger the masks. Of a
            segmentation network: the share, of the background's and the class' probability, from
            which a pixel is of the class; None: 0.5, the highest probability. Where a localiser
            alone is there: of the CAMs; None: the kept ones.
        roi: region in which defects are looked for, see `inference.roi.Roi`; empty: everywhere. The
            localiser, which judges whole images, then has no say where there is a segmentation
            network.
        tile: side in pixels of the tiles that larger images are seen in; 0 = whole; None: as
            configured in training.
    """

    max_false_alarm: float = 0.05
    min_recall: float = 0.99
    keep_all: bool = False
    min_area: int | None = None
    threshold: float | Mapping[str, float] | None = None
    tile: int | None = None
    roi: str = ""

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            ValueError: a number is out of its range.
        """
        for name in ("max_false_alarm", "min_recall", "threshold"):
            value = getattr(self, name)
            values = value.values() if isinstance(value, Mapping) else (value,)
            for one in values:
                if one is not None and not 0 <= one <= 1:
                    raise ValueError(f"{name}: expected a number in [0, 1], got {one}.")
        if self.min_area is not None and self.min_area < 0:
            raise ValueError(
                f"min_area: expected 0 pixels or more, got {self.min_area}. 0 keeps all objects."
            )

    def thresholds(self, class_names: Sequence[str], otherwise: Sequence[float]) -> list[float]:
        """Return K thresholds: those that are wanted, else the others.

        Raises:
            ValueError: one for an unknown class.
        """
        if not isinstance(self.threshold, Mapping):
            return list(otherwise) if self.threshold is None else [self.threshold] * len(otherwise)
        if unknown := sorted(set(self.threshold) - set(class_names)):
            raise ValueError(
                f"threshold: expected classes among {', '.join(class_names)}, got {unknown[0]}."
            )
        named = zip(class_names, otherwise, strict=True)
        return [self.threshold.get(name, level) for name, level in named]


class Result(NamedTuple):
    """What the models say of one image.

    Attributes:
        record: name and file of the image.
        pixels: (H, W, 3) uint8 RGB.
        verdict: ok, unsure or defective.
        defect_score: in [0, 1], which the verdict follows from; None where no image was held out:
            the verdict then follows from the mask.
        reason: of the verdict, in a few words.
        class_scores: in [0, 1], by class.
        class_probabilities: how sure it is that the class is there, by class, learnt from held-out
            images; None where none was held out.
        mask: (H, W) uint8, 0 background, k + 1 class k; empty of an image that is ok.
        objects: connected regions of the mask, see `inference.objects.objects_of`.
    """

    record: Record
    pixels: np.ndarray
    verdict: str
    defect_score: float | None
    reason: str
    class_scores: dict[str, float]
    class_probabilities: dict[str, float] | None
    mask: np.ndarray
    objects: list[dict[str, Any]]

    def page(self, limits: Limits | None) -> dict[str, Any]:
        """Return what the JSON file of the image holds; `limits` are those of its verdict."""
        page: dict[str, Any] = {
            "verdict": self.verdict,
            "reason": self.reason,
            "defect_score": self.defect_score,
        }
        if limits:
            page |= {"ok_below": limits.ok_below, "defective_from": limits.defective_from}
        names = list(self.class_scores)
        counts = np.bincount(self.mask.reshape(-1), minlength=len(names) + 1)
        return page | {
            "image": str(self.record.image),
            "height": self.mask.shape[0],
            "width": self.mask.shape[1],
            "class_scores": _rounded(self.class_scores),
            "class_probabilities": self.class_probabilities and _rounded(self.class_probabilities),
            "areas_px": dict(zip(names, counts[1:].tolist(), strict=True)),
            "objects": [{k: v for k, v in one.items() if k != "pixels"} for one in self.objects],
        }


class Seen(NamedTuple):
    """What the networks say of one image, before anything is judged or left out.

    Attributes:
        record: name and file of the image.
        pixels: (H, W, 3) uint8 RGB.
        scores: (K,) in [0, 1].
        confidence: (H, W) in [0, 1], of the class in the mask, of `best` where that is background.
        mask: (H, W) uint8 mask values.
        best: (H, W) uint8 mask values, the best class without regard to the background.
        share: (H, W) in [0, 1], of `best`: what a threshold is compared with.
        found: (K,) in [0, 1], the scores of the network that made the mask.
        localised: what the localiser says; None where it was not asked.
    """

    record: Record
    pixels: np.ndarray
    scores: np.ndarray
    confidence: np.ndarray
    mask: np.ndarray
    best: np.ndarray
    share: np.ndarray
    found: np.ndarray
    localised: Localised | None


def _rounded(numbers: dict[str, float]) -> dict[str, float]:
    return {name: round(number, 4) for name, number in numbers.items()}
