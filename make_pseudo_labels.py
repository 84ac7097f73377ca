"""Turn CAMs into pseudo labels, the training masks of the second stage.

Reads images, cams/<pseudo_label.cam_type>/given/ and saliency/ of the run. The CAMs are weighted by
the saliency map (pseudo_label.saliency_weight), refined along the edges of the image and cut.
Writes pseudo_labels/<name>.png (mask values, VOC palette; 255 where a map is too close to the
threshold to tell, or where the image's label says that the mask is wrong) and, once all are
written, pseudo_labels/meta.json. A stopped call goes on where it was when it is given again.
Thresholds come from the refined maps of `fit`, without a mask, and are kept in thresholds.json. By
pseudo_label.threshold_rule they are, for each class, the one whose seeds agree best with the
saliency maps ("agreement") or the one that splits its values best ("class", Otsu's method); that of
all classes together ("auto"); or pseudo_label.threshold ("fixed"). Where CAMs are weighted by
saliency, the thresholds of the CAMs alone (agreement) are found too, for new images, which have no
saliency map.
With --masks, images of `fit` that data.annotations holds get their mask from there. That is no
longer image labels alone: meta.json names these images, no evaluation scores them, and every result
that follows says how many masks were used.
"""

import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from configs.command_line import run_stage, stage_parser
from datasets.files import read_mask, read_truth, write_json, write_mask
from datasets.image_maps import require_files
from datasets.record import BACKGROUND, IGNORE, Record
from datasets.sources import annotated_in
from execution import ranks
from execution.cores import on_cores
from execution.progress import progress
from inference.refined import RefinedCams
from models.device import processes_for, select_device
from pipeline import next_step
from runfolder.run import (
    MaskMeta,
    Run,
    SaliencyMeta,
    begin_folder,
    masked_in,
    open_run,
    read_meta,
    write_meta,
)
from runfolder.thresholds import rule_for_new_images
from scoring.thresholds import levelled, seed_mask

BAND = 0.05  # this near the threshold, map values with that at 0.5, a pixel becomes 255
MAX_AREA = 0.95  # a class that covers more of an image than this is not believed: 255


@dataclasses.dataclass
class Summary:
    """What the pseudo labels of one split look like."""

    num_images: int = 0
    pixels: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(IGNORE + 1, np.int64))
    without_foreground: list[str] = dataclasses.field(default_factory=list)  # though labelled

    def add(self, record: Record, values: np.ndarray) -> None:
        """Count one image by the number of its pixels with each mask value, (256,)."""
        self.num_images += 1
        self.pixels += values
        if record.classes and not values[BACKGROUND + 1 : IGNORE].any():
            self.without_foreground.append(record.name)

    def lines(self, class_names: Sequence[str]) -> list[str]:
        """Return the summary as text, areas in %."""
        shares = 100 * self.pixels / self.pixels.sum()
        areas = [f"{n} {shares[i]:.2f} %" for i, n in enumerate(("background", *class_names))]
        lines = [f"area: {', '.join(areas)}, ignored {shares[IGNORE]:.2f} %"]
        empty = self.without_foreground
        listed = f" ({', '.join(empty[:5])}{', ...' if len(empty) > 5 else ''})" if empty else ""
        lines.append(f"labelled, but without any foreground: {len(empty)} images{listed}")
        return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Write the pseudo labels of the training split and the evaluation split."""
    parser = stage_parser(__doc__)
    parser.add_argument(
        "--split",
        nargs="+",
        metavar="SPLIT",
        help="train, val or test (default: train, val and, if their CAMs are there, test); "
        "thresholds always come from train",
    )
    parser.add_argument(
        "--masks",
        action="store_true",
        help="train the second stage on the masks of data.annotations too, where it has some",
    )
    args = parser.parse_args(argv)
    run = open_run(args)
    lent = lent_masks(run) if args.masks else frozenset()
    device = ranks.join(select_device(args.device))
    settings, class_names = run.config.pseudo_label, run.data.class_names

    # The CAMs.
    cam_meta = run.read_cam_meta(settings.cam_type, "given")
    masked = sorted({*masked_in(cam_meta, read_meta(run.saliency_dir, SaliencyMeta)), *lent})
    cams = RefinedCams(run, device, with_saliency=True)
    splits = args.split or default_splits(run, cams.cam_dir)
    made_by = ("the CAMs with given labels", "make_cams.py with given among cam.labels")
    for split in dict.fromkeys(["train", *splits]):
        require_files(run.data.split(split), cams.cam_dir, ".npz", made_by)

    # The thresholds, of these maps and of those of new images.
    run.begin_stage(run.pseudo_label_dir)
    begin_folder(run.pseudo_label_dir)
    thresholds = cams.thresholds(settings.threshold_rule)
    listed = ", ".join(f"{n} {t:.3f}" for n, t in zip(class_names, thresholds, strict=True))
    print(f"thresholds ({settings.threshold_rule}): {listed}")
    if settings.saliency_weight:
        RefinedCams(run, device, with_saliency=False).thresholds(rule_for_new_images(run))

    # The masks.
    meta = MaskMeta(dataclasses.asdict(settings), {"thresholds": thresholds}, masked)
    with ranks.first_alone():
        since = begin(run.pseudo_label_dir / "begun.json", dataclasses.asdict(meta))
    write = partial(write_pseudo_label, cams=cams, thresholds=thresholds, since=since, lent=lent)
    for split in splits:
        records, summary = ranks.part(run.data.split(split)), Summary()
        counts_of = on_cores(write, records, processes_for(device))
        shown = progress(counts_of, f"pseudo labels, {split}", len(records))
        counted = list(zip(records, shown, strict=True))
        for record, counts in sum(ranks.gathered(counted), []):
            summary.add(record, counts)
        print(f"{split}: wrote {summary.num_images} pseudo labels to {run.pseudo_label_dir}/")
        print("\n".join(f"  {line}" for line in summary.lines(class_names)))
    if lent:
        count = f"{len(lent)} of {len(run.data.split('fit'))} images of fit"
        print(f"made with the masks of {count}: no longer image labels alone")
    write_meta(run.pseudo_label_dir, meta)
    if ranks.is_first():
        (run.pseudo_label_dir / "begun.json").unlink()
    print(next_step("pseudo_labels", run))


def lent_masks(run: Run) -> frozenset[str]:
    """Return the names of the images of fit whose masks data.annotations holds.

    Raises:
        ValueError: there are none.
    """
    names = {record.name for record in annotated_in(run.data, run.config.data).get("fit", ())}
    if not names:
        raise ValueError(
            f"--masks: expected masks of images of fit in data.annotations, got none in "
            f"{run.config.data.annotations!r}. Give --set data.annotations=FILE, or leave --masks "
            "out."
        )
    return frozenset(names)


def begin(path: Path, meta: dict[str, Any]) -> float:
    """Return when masks of these settings began to be made, in seconds; now if there are none.

    Args:
        path: of the file that says so until all masks are made.
        meta: the settings and the thresholds.
    """
    try:
        if json.loads(path.read_text(encoding="utf-8")) == meta:
            return path.stat().st_mtime
    except (OSError, ValueError):
        pass
    write_json(path, meta)
    return path.stat().st_mtime


def pseudo_label(
    maps: np.ndarray, classes: Sequence[int], thresholds: Sequence[float], band: float = BAND
) -> np.ndarray:
    """Return the seed mask of one image with an uncertain band around the thresholds.

    Args:
        maps: (M, H, W) in [0, 1]; without any the mask is all background.
        classes: (M,) foreground indices.
        thresholds: (K,) in [0, 1], background scores of all classes.
        band: pixels whose highest value, rescaled to a threshold of 0.5 (see `levelled`), is less
            than this away from 0.5 become 255.

    Returns:
        (H, W) uint8 mask values.
    """
    maps = levelled(maps, [thresholds[k] for k in classes])
    mask = seed_mask(maps, classes, 0.5)
    if len(classes):
        mask[np.abs(maps.max(axis=0) - 0.5) < band] = IGNORE
    return mask


def doubted(mask: np.ndarray, classes: Sequence[int], max_area: float = MAX_AREA) -> np.ndarray:
    """Return a mask with 255 where it cannot be right.

    A class that the image carries, but that is nowhere, must be in what is background now; one
    that covers nearly all of the image says nothing about where it is.

    Args:
        mask: (H, W) uint8 mask values.
        classes: (M,) foreground indices of the image's labels.
        max_area: share of the image, in [0, 1].
    """
    mask = mask.copy()
    counts = np.bincount(mask.reshape(-1), minlength=IGNORE + 1)
    for value in (BACKGROUND + 1 + k for k in classes):
        if counts[value] > max_area * mask.size:
            mask[mask == value] = IGNORE
        elif not counts[value]:
            mask[mask == BACKGROUND] = IGNORE
    return mask


def write_pseudo_label(
    record: Record,
    cams: RefinedCams,
    thresholds: Sequence[float],
    since: float,
    lent: frozenset[str] = frozenset(),
) -> np.ndarray:
    """Write the pseudo label of a record, and return its (256,) counts of mask values.

    A mask that is newer than all it is made from is left as it is.

    Args:
        record: of an image.
        cams: maps that are cut.
        thresholds: of the K classes.
        since: seconds; masks older than that are of other settings.
        lent: names of the records whose ground truth is taken.
    """
    path = cams.run.pseudo_label_dir / f"{record.name}.png"
    if record.name in lent:
        mask = read_truth(record, cams.run.num_classes)
        write_mask(path, mask)
        return np.bincount(mask.reshape(-1), minlength=IGNORE + 1)
    files = [file for file in cams.sources(record) if file.is_file()]
    begun = max([since, *(file.stat().st_mtime for file in files)])
    if path.is_file() and path.stat().st_mtime > begun:
        mask = read_mask(path, cams.run.num_classes)
    else:
        mask = pseudo_label(cams.maps(record), record.classes, thresholds)
        mask = doubted(mask, record.classes)
        write_mask(path, mask)
    return np.bincount(mask.reshape(-1), minlength=IGNORE + 1)


def default_splits(run: Run, cam_dir: Path) -> list[str]:
    """Return the splits of the maps; test, which nothing is trained on, only with CAMs of it."""
    splits = run.data.default_splits(run.config.data.eval_split)
    tested = run.data.splits.get("test", ())
    there = any((cam_dir / f"{record.name}.npz").is_file() for record in tested)
    return [split for split in splits if split != "test" or there]


if __name__ == "__main__":
    run_stage(main)
