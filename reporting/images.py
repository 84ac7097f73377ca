"""One image of a report: what its files say, and small pictures of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.files import read_cam, read_image, read_mask, read_saliency, read_truth
from datasets.record import BACKGROUND, IGNORE, Record
from reporting import pictures
from runfolder.run import Run

MASK_PANELS = {"segmentation": "prediction", "pseudo_label": "pseudo_label"}  # by kind of mask


class Panel(NamedTuple):
    """One picture that an image of the gallery may have.

    Attributes:
        title: over it.
        mime: of its bytes.
    """

    title: str
    mime: str


PANELS = {
    "image": Panel("image", pictures.IMAGE_MIME),
    "saliency": Panel("saliency", pictures.SOFT_MIME),
    "cam": Panel("CAM", pictures.SOFT_MIME),
    "pseudo_label": Panel("pseudo label", pictures.MASK_MIME),
    "prediction": Panel("prediction", pictures.MASK_MIME),
    "truth": Panel("truth", pictures.MASK_MIME),
}
COMMON = ("image", "truth")  # panels that are the same for all runs


@dataclass(frozen=True)
class Shown:
    """One image.

    Attributes:
        record: of the data set.
        size: of the image, (H, W).
        areas: share of the image that its mask gives to each class, those above 0.
        true_areas: the same of the ground truth; None without it.
        pairs: pixels by (truth, mask value), 255 in the mask counted as background; empty without
            ground truth.
        pictures: bytes by `PANELS`, of what is there.
    """

    record: Record
    size: tuple[int, int]
    areas: dict[int, float]
    true_areas: dict[int, float] | None
    pairs: dict[tuple[int, int], int]
    pictures: dict[str, bytes] = field(repr=False)

    @cached_property
    def iou(self) -> float | None:
        """IoU in %: the mean over the defect classes in truth or mask; None where there is none."""
        return mean_iou(self.pairs)

    @property
    def extra(self) -> list[int]:
        """Classes of the mask that the label lacks."""
        return sorted(set(self.areas) - set(self.record.classes))

    @property
    def missed(self) -> list[int]:
        """Classes of the label that the mask lacks."""
        return sorted(set(self.record.classes) - set(self.areas))

    @property
    def area(self) -> float:
        """Share of the image that is any defect in its mask."""
        return sum(self.areas.values())


def look(run: Run, kind: str, record: Record, side: int) -> Shown:
    """Read the files of an image.

    Args:
        run: that they are of; what it has not made is left out.
        kind: of the masks that are judged: segmentation or pseudo_label.
        record: the image.
        side: of its pictures, in pixels.

    Raises:
        FileNotFoundError: the image, or its mask of that kind, is missing.
        ValueError: a file is damaged, or the mask has another size than the ground truth.
    """
    num_classes = run.num_classes
    image = read_image(record.image)
    made = {"image": pictures.image_bytes(image, side)}
    saliency_path = run.saliency_dir / f"{record.name}.png"
    if saliency_path.is_file():
        made["saliency"] = pictures.saliency_bytes(read_saliency(saliency_path), side)
    cam_path = cam_folder(run) / f"{record.name}.npz"
    if cam_path.is_file():
        made["cam"] = pictures.cam_bytes(read_cam(cam_path), side)
    masks = masks_of(run, kind, record)
    for panel, mask in masks.items():
        made[panel] = pictures.mask_bytes(mask, num_classes, side)
    mask = masks[MASK_PANELS[kind]]
    truth = masks.get("truth")
    if truth is not None and truth.shape != mask.shape:
        raise ValueError(
            f"{run.maps_dir(kind) / record.name}.png: expected the size (H, W) of its ground "
            f"truth, {truth.shape}, got {mask.shape}. Make it at the image's own size."
        )
    return Shown(
        record,
        image.shape[:2],
        areas_of(mask),
        None if truth is None else areas_of(truth),
        {} if truth is None else pairs_of(truth, mask),
        {panel: made[panel] for panel in PANELS if panel in made},
    )


def masks_of(run: Run, kind: str, record: Record) -> dict[str, np.ndarray]:
    """Return the masks (H, W) of an image by their panel; that of `kind` must be there."""
    masks = {}
    for of_kind, panel in MASK_PANELS.items():
        path = run.maps_dir(of_kind) / f"{record.name}.png"
        if of_kind == kind or path.is_file():
            masks[panel] = read_mask(path, run.num_classes)
    if record.mask is not None:
        masks["truth"] = read_truth(record, run.num_classes)
    return masks


def cam_folder(run: Run) -> Path:
    """Return the folder of the CAMs that are shown: those that pseudo labels are made of."""
    cam_type = run.config.pseudo_label.cam_type
    given = run.cam_dir(cam_type, "given")
    return given if given.is_dir() else run.cam_dir(cam_type, "predicted")


def areas_of(mask: np.ndarray) -> dict[int, float]:
    """Return the share of a mask (H, W) that each class has, those above 0."""
    values, counts = np.unique(mask, return_counts=True)
    shares = zip(values.tolist(), (counts / mask.size).tolist(), strict=True)
    return {value - 1: share for value, share in shares if value not in (BACKGROUND, IGNORE)}


def pairs_of(truth: np.ndarray, mask: np.ndarray) -> dict[tuple[int, int], int]:
    """Count pixels by (truth, mask value) as `scoring.confusion.ConfusionMatrix` does."""
    scored = truth != IGNORE
    said = np.where(mask == IGNORE, BACKGROUND, mask)[scored]
    codes, counts = np.unique(truth[scored].astype(np.int64) * 256 + said, return_counts=True)
    return {divmod(code, 256): n for code, n in zip(codes.tolist(), counts.tolist(), strict=True)}


def mean_iou(pairs: Mapping[tuple[int, int], int]) -> float | None:
    """Return the mean IoU in % of the defect classes that are in truth or mask; None of none."""
    classes = {value for pair in pairs for value in pair} - {BACKGROUND}
    if not classes:
        return None
    ious = []
    for k in classes:
        union = sum(count for pair, count in pairs.items() if k in pair)
        ious.append(100 * pairs.get((k, k), 0) / union)
    return sum(ious) / len(ious)
