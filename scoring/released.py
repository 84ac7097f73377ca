"""Scores under the flags of the authors' released evaluation script."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from datasets.record import IGNORE, Record
from released.arrays import read_released_list
from scoring.confusion import ThresholdSweep
from scoring.lines import Judged, print_curve, result_row
from scoring.passes import CAM_SUFFIXES, PICTURE_SUFFIXES, count_cams, count_masks, find_maps

LAST_THRESHOLD = 60  # of --curve, in %


def score_released(args: argparse.Namespace) -> dict:
    """Score CAMs or masks in a folder and print 12 significant digits.

    Args:
        args: list, predict_dir, gt_dir, sal_dir, type, t, curve, start, end, num_classes,
            logfile and comment, as the released script names them.

    Returns:
        The line for --logfile.

    Raises:
        ValueError: a flag is missing or impossible.
        FileNotFoundError: files are missing.
    """
    for flag in ("list", "gt_dir"):
        if getattr(args, flag) is None:
            raise ValueError(f"--{flag}: expected a path with --predict_dir, got none.")
    names = read_released_list(Path(args.list))
    num_mask_classes = 21 if args.num_classes is None else args.num_classes
    if not 2 <= num_mask_classes <= IGNORE:
        raise ValueError(f"--num_classes: expected 2..{IGNORE}, got {num_mask_classes}.")
    masks = find_maps(Path(args.gt_dir), names, PICTURE_SUFFIXES, "Check --gt_dir.")
    records = [
        Record(name, image=mask, classes=(), mask=mask)
        for name, mask in zip(names, masks, strict=True)
    ]
    if args.sal_dir:
        print("--sal_dir is accepted for old command lines; scoring does not use it.")
    judged = _judged(args, records, names, num_mask_classes - 1)
    row = result_row(judged, ("background", *(f"class {k}" for k in range(1, num_mask_classes))))
    means = {"mIoU": row["miou"], "FP": row["fp"], "FN": row["fn"]}
    for name, value in (row["iou"] | means).items():
        print(f"{name:<12}{value:#.12g}")
    if row["absent"]:
        print(f"neither in masks nor predicted, left out: {', '.join(row['absent'])}")
    inputs = {"list": args.list, "predict_dir": args.predict_dir, "images": len(names)}
    return {"comment": args.comment or "", **inputs, **row}


def _judged(
    args: argparse.Namespace, records: Sequence[Record], names: Sequence[str], num_classes: int
) -> Judged:
    suffixes = CAM_SUFFIXES[::-1] if args.type == "npy" else PICTURE_SUFFIXES
    paths = find_maps(Path(args.predict_dir), names, suffixes, "Check --predict_dir.")
    if args.type != "npy":
        return Judged("none", None, count_masks(records, paths, num_classes).scores())
    sweep = ThresholdSweep(_thresholds(args), num_classes)
    count_cams([sweep], records, paths, num_classes)
    if args.curve:
        print_curve(sweep)
    best = sweep.best()
    print(f"t = {best:g}{', the best mIoU on these masks' if args.curve else ''}")
    return Judged("oracle" if args.curve else "fixed", best, sweep.confusion(best).scores())


def _thresholds(args: argparse.Namespace) -> list[float]:
    if not args.curve:
        if args.t is None or not 0 <= args.t <= 1:
            raise ValueError(f"--t: expected a threshold from 0 to 1, got {args.t}.")
        return [args.t]
    start, end = args.start or 0, LAST_THRESHOLD if args.end is None else args.end
    if not 0 <= start <= end <= 100:
        raise ValueError(f"--start, --end: expected 0 <= start <= end <= 100, got {start}, {end}.")
    return [percent / 100 for percent in range(start, end + 1)]
