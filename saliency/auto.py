"""Saliency by what the training images allow: defect-free images, or contrast.

With `AUTO_DEFECT_FREE` defect-free images or more, of which two halves can be made that share no
picture, each class gets its maps from `normal`, if that tells its images from defect-free ones,
else from `variation`. With fewer all maps are those of `contrast`.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from configs import SaliencyConfig
from datasets.files import read_image
from datasets.record import Record, spread
from datasets.sources import Data
from execution.progress import progress
from saliency import contrast, normal, variation
from saliency.generator import Prepared
from saliency.surfaces import can_be_halved

PARTS = {"normal": normal.prepare, "variation": variation.prepare}  # in the order of preference
AUTO_DEFECT_FREE = 20  # images from which `normal` knows what is normal
SEES_FROM = 0.88  # AUROC from which a generator sees a class
MAX_IMAGES = 100  # per class, and defect-free, that generators are compared on
TOP_SHARE = 0.01  # of a map's pixels, the highest: their mean says how salient the image is


def prepare(
    settings: SaliencyConfig, data: Data, records: Sequence[Record], device: torch.device
) -> Prepared:
    """Prepare what the training images allow."""
    surfaces = [record for record in data.split("fit") if not record.classes]
    defect_free, groups = len(surfaces), len({record.group for record in surfaces})
    if defect_free < AUTO_DEFECT_FREE or not can_be_halved(surfaces):
        generator = contrast.prepare(settings, data, records, device)
        line = (
            f"auto: contrast, as only {defect_free} training images, of {groups} groups, are "
            "defect-free"
        )
        return replace(generator, lines=(line, *generator.lines))
    parts = [make(settings, data, records, device) for make in PARTS.values()]
    chosen, lines = choose_parts(parts, data)
    names = tuple(PARTS)
    facts = {key: value for part in parts for key, value in part.facts.items()}
    facts["auto"] = {data.class_names[k]: names[part] for k, part in enumerate(chosen)}
    lines = [
        f"auto: normal and variation, from {defect_free} defect-free training images",
        *(line for part in parts for line in part.lines),
        *lines,
    ]
    problems = {key: value for part in parts for key, value in part.problems.items()}

    def make_map(record: Record, image: np.ndarray) -> np.ndarray:
        asked = [(chosen[k], replace(record, classes=(k,))) for k in record.classes]
        # Without a label: whatever a generator that serves some class sees.
        asked = asked or [(part, record) for part in sorted(set(chosen))]
        maps = [parts[part].make_map(one, image) for part, one in asked]
        return np.max(maps, axis=0).astype(np.float32)

    return Prepared(make_map, facts, tuple(lines), problems)


def choose_parts(parts: Sequence[Prepared], data: Data) -> tuple[list[int], list[str]]:
    """Choose, for each class, the first of the generators that sees it, or the last one.

    A generator sees a class if the most salient pixels of the class' images are more salient than
    those of defect-free ones, with an AUROC of `SEES_FROM`. Image labels are all that is used.

    Args:
        parts: generators, as many as `PARTS`.
        data: whose `fit` has defect-free images.

    Returns:
        For each class an index into `parts`, and lines to print.
    """
    train, names = data.split("fit"), tuple(PARTS)
    defect_free = spread([r for r in train if not r.classes], MAX_IMAGES)
    chosen, lines = [], []
    peaks_of_surfaces: dict[int, list[float]] = {}  # by generator: of the defect-free images
    for k, class_name in enumerate(data.class_names):
        alone = spread([r for r in train if r.classes == (k,)], MAX_IMAGES)
        choice = len(parts) - 1
        for p, part in enumerate(parts[:-1] if alone else ()):
            if p not in peaks_of_surfaces:
                peaks_of_surfaces[p] = _peaks(part, defect_free, names[p])
            peaks = _peaks(part, alone, class_name)
            truth = [1] * len(alone) + [0] * len(defect_free)
            auroc = roc_auc_score(truth, peaks + peaks_of_surfaces[p])
            lines.append(f"{class_name}: AUROC {auroc:.3f} by {names[p]}")
            if auroc >= SEES_FROM:
                choice = p
                break
        lines.append(f"{class_name}: maps by {names[choice]}")
        chosen.append(choice)
    return chosen, lines


def _peaks(part: Prepared, records: Sequence[Record], title: str) -> list[float]:
    """Return the mean of the highest values of each image's map."""
    peaks = []
    for record in progress(records, title):
        saliency = part.make_map(record, read_image(record.image))
        count = max(1, round(TOP_SHARE * saliency.size))
        peaks.append(float(np.partition(saliency, -count, axis=None)[-count:].mean()))
    return peaks
