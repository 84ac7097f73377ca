"""Saliency maps of several generators combined into one."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from datasets.files import read_image
from datasets.record import Record, spread
from datasets.sources import Data
from saliency import contrast, external, feature, normal, variation
from saliency.edges import smoothed
from saliency.generator import Prepared, Settings

PARTS = {
    "contrast": contrast.prepare,
    "external": external.prepare,
    "feature": feature.prepare,
    "normal": normal.prepare,
    "variation": variation.prepare,
}
MAX_IMAGES = 100  # per class, and defect-free, that parts are compared on
AUTO_DEFECT_FREE = 20  # images from which `normal` knows what is normal
TOP_SHARE = 0.01  # of a map's pixels, the highest: their mean says how salient the image is


def prepare(
    settings: Settings, data: Data, records: Sequence[Record], device: torch.device
) -> Prepared:
    """Prepare the generators that `settings.fuse` names, each with the same settings."""
    parts = [PARTS[name](settings, data, records, device) for name in settings.fuse]
    facts = {key: value for part in parts for key, value in part.facts.items()}
    problems = {key: value for part in parts for key, value in part.problems.items()}
    lines = [line for part in parts for line in part.lines]
    chosen: list[int] = []
    if settings.fuse_rule == "first":
        chosen, told = choose_parts(settings, parts, data)
        named = dict(zip(data.class_names, (settings.fuse[p] for p in chosen), strict=True))
        facts["fuse"] = named
        lines += told

    def make_map(record: Record, image: np.ndarray) -> np.ndarray:
        if not chosen:
            return combine([part.make_map(record, image) for part in parts], settings.fuse_rule)
        asked = [(chosen[k], replace(record, classes=(k,))) for k in record.classes]
        # Without a label: whatever a part that serves some class finds.
        asked = asked or [(p, record) for p in sorted(set(chosen))]
        return combine([parts[p].make_map(one, image) for p, one in asked], "max")

    return Prepared(make_map, facts, tuple(lines), problems)


def prepare_auto(
    settings: Settings, data: Data, records: Sequence[Record], device: torch.device
) -> Prepared:
    """Prepare what the training images allow.

    With `AUTO_DEFECT_FREE` defect-free images or more, `normal` and for classes that it does not
    see `variation`; else `contrast`.
    """
    defect_free = sum(not record.classes for record in data.split("train"))
    if defect_free < AUTO_DEFECT_FREE:
        found = contrast.prepare(settings, data, records, device)
        line = f"auto: contrast, as only {defect_free} training images are defect-free"
    else:
        settings = replace(settings, fuse=("normal", "variation"), fuse_rule="first")
        found = prepare(settings, data, records, device)
        line = f"auto: normal and variation, from {defect_free} defect-free training images"
    return replace(found, lines=(line, *found.lines))


def choose_parts(
    settings: Settings, parts: Sequence[Prepared], data: Data
) -> tuple[list[int], list[str]]:
    """Choose, for each class, the first part that sees it.

    A part sees a class if the most salient pixels of the class' images are more salient than those
    of defect-free ones, with `settings.fuse_auroc`. Image labels are all that is used.

    Returns:
        For each class an index into `parts`, and lines to print.

    Raises:
        ValueError: the training split has no defect-free image.
    """
    train = data.split("train")
    defect_free = spread([r for r in train if not r.classes], MAX_IMAGES)
    if not defect_free:
        raise ValueError(
            "saliency.fuse_rule=first: expected defect-free images in the training split, got "
            "none. Set saliency.fuse_rule to geometric."
        )
    chosen, lines = [], []
    peaks_of_surfaces: dict[int, list[float]] = {}  # part: of the defect-free images
    for k, class_name in enumerate(data.class_names):
        alone = spread([r for r in train if r.classes == (k,)], MAX_IMAGES)
        found = len(parts) - 1
        for p, part in enumerate(parts[:-1] if alone else ()):
            if p not in peaks_of_surfaces:
                peaks_of_surfaces[p] = _peaks(part, defect_free, settings.fuse[p])
            peaks = _peaks(part, alone, class_name)
            truth = [1] * len(alone) + [0] * len(defect_free)
            auroc = roc_auc_score(truth, peaks + peaks_of_surfaces[p])
            lines.append(f"{class_name}: AUROC {auroc:.3f} by {settings.fuse[p]}")
            if auroc >= settings.fuse_auroc:
                found = p
                break
        lines.append(f"{class_name}: maps by {settings.fuse[found]}")
        chosen.append(found)
    return chosen, lines


def _peaks(part: Prepared, records: Sequence[Record], title: str) -> list[float]:
    """Return the mean of the highest values of each image's map."""
    peaks = []
    for record in tqdm(records, desc=title, unit="image", disable=None):
        saliency = part.make_map(record, read_image(record.image))
        count = max(1, round(TOP_SHARE * saliency.size))
        peaks.append(float(np.partition(saliency, -count, axis=None)[-count:].mean()))
    return peaks


def combine(maps: Sequence[np.ndarray], rule: str) -> np.ndarray:
    """Combine maps of one image.

    Args:
        maps: each (H, W) in [0, 1].
        rule: mean; geometric, salient where all maps agree; max, salient where one map says so;
            rank, the mean of ranks, which compares maps whose values are not comparable but
            always makes some pixels salient.

    Returns:
        (H, W) float32 in [0, 1].
    """
    stack = np.stack(maps).astype(np.float32)  # (M, H, W)
    if rule == "geometric":
        fused = np.prod(stack, axis=0) ** (1 / len(stack))
    elif rule == "max":
        fused = stack.max(axis=0)
    elif rule == "rank":
        fused = np.mean([_ranks(values) for values in stack], axis=0)
    else:
        fused = stack.mean(axis=0)
    return fused.astype(np.float32)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return the share of the other pixels that lie below each pixel, (H, W) in [0, 1]."""
    below = np.searchsorted(np.sort(values, axis=None), values.ravel(), side="left")
    return (below / max(values.size - 1, 1)).reshape(values.shape)


GENERATORS = {**PARTS, "auto": prepare_auto, "fuse": prepare}  # saliency.generator: its `prepare`


def make_generator(
    settings: Settings, data: Data, records: Sequence[Record], device: torch.device
) -> Prepared:
    """Prepare the generator of `saliency.generator`, with `saliency.smoothing` of its maps."""
    generator = GENERATORS[settings.generator](settings, data, records, device)
    if settings.smoothing:
        return smoothed(generator, settings.smoothing, device)
    return generator
