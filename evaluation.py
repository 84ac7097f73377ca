"""Score saliency maps, CAMs, pseudo labels and predictions of a run against pixel masks.

Prints a table and appends one JSON line a result to results.jsonl of the run; --table writes
results.csv beside it. Three ways to call, the last with the flags of the authors' released script:

  python evaluation.py --config configs/neu_seg.toml --out runs/neu_seg --kind cam
  python evaluation.py --out runs/neu_seg --table
  python evaluation.py --list FILE --predict_dir DIR --gt_dir DIR --type npy --num_classes 4 --t .6

Pixels whose mask is 255 are not scored; a 255 in a pseudo label counts as background. A saliency
map knows no classes: its foreground is painted with the image's label, in an image of several
classes with the first of them, and a defect-free image stays empty. Its values are scored too, in
the images with a label: AUROC, AP, max F, MAE and each class' recall; false alarm is the area found
in defect-free images. Map values above the threshold are foreground. How the threshold was chosen
is part of every result:

  fixed      pseudo_label.threshold of the config
  auto       found without masks, on the maps of the training split (Otsu's method)
  class      of CAMs: likewise, one for each class; classes then compete by their rescaled maps
  agreement  of CAMs: for each class the one whose seeds agree best with the saliency maps of the
             training split (IoU, mean over images)
  oracle     the best of a sweep on the very masks that are scored: an upper bound, not a result
"""

import argparse
import json
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from configs import Config, fingerprint
from configs.command_line import load_run, run_stage, stage_parser
from configs.schema import CAM_TYPES, LABEL_ORIGINS, SPLITS
from datasets.files import read_cam, read_mask, read_saliency, read_truth
from datasets.published import read_published_cam, read_published_list
from datasets.record import IGNORE, Record
from datasets.sources import Data, read_data
from inspection import ROUNDS, InspectionScores, detailed_lines
from metrics import (
    GRID,
    ConfusionMatrix,
    LevelledSeeds,
    SaliencyHistogram,
    Scores,
    ThresholdSweep,
)
from results import KINDS, append_results, percent, results_table, write_results_csv
from seeds import MapCounts, levelled, salient_level, seed_mask

CAM_SUFFIXES, PICTURE_SUFFIXES = (".npz", ".npy"), (".png",)
WITH_THRESHOLD = ("saliency", "cam")
RULES = ("fixed", "auto", "class", "agreement", "oracle")
WITHOUT_MASKS = ("auto", "class", "agreement")
PER_CLASS = ("class", "agreement")  # a threshold for each class; of CAMs only
# Only with --kind.
RUN_FLAGS = ("split", "labels", "cam_type", "threshold_rule", "detailed", "bootstrap")
PUBLISHED_FLAGS = ("list", "gt_dir", "sal_dir", "logfile", "comment", "type", "t", "num_classes")
PUBLISHED_FLAGS += ("start", "end")  # only with --predict_dir


class Judged(NamedTuple):
    """Scores, the threshold they belong to, and how it was chosen."""

    rule: str
    threshold: float | tuple[float, ...] | None  # K where each class has one; None: index masks
    scores: Scores


def find_maps(
    folder: Path, names: Sequence[str], suffixes: Sequence[str], remedy: str
) -> list[Path]:
    """Return the file of each name in a folder, with the first of the suffixes that is there.

    Raises:
        FileNotFoundError: some are missing; names the first five and says how many.
    """
    there = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    found = [next((n + s for s in suffixes if n + s in there), None) for n in names]
    missing = [name for name, file in zip(names, found, strict=True) if file is None]
    if missing:
        raise FileNotFoundError(
            f"{folder}: expected a {' or '.join(suffixes)} file for each of {len(names)} images, "
            f"{len(missing)} are missing: {', '.join(missing[:5])}. {remedy}"
        )
    return [folder / file for file in found]


def _read_map(path: Path, classes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Read a CAM file, or a saliency map painted with its image's classes."""
    if path.suffix in PICTURE_SUFFIXES:
        return _paint(read_saliency(path), classes)
    cam = read_published_cam(path) if path.suffix == ".npy" else read_cam(path)
    return cam.cam, cam.classes


def _paint(saliency: np.ndarray, classes: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Take a saliency map as CAM of the first of its image's classes; of none without classes."""
    painted = np.array(classes[:1], np.int64)
    return np.repeat(saliency[None], len(painted), axis=0), painted


def _count_masks(
    records: Sequence[Record], paths: Sequence[Path], num_classes: int
) -> ConfusionMatrix:
    """Count the masks in `paths` against those of the records."""
    confusion = ConfusionMatrix(num_classes)
    for record, path in zip(tqdm(records, "scoring", disable=None), paths, strict=True):
        truth = read_truth(record, num_classes)
        try:
            confusion.update(truth, read_mask(path, num_classes))
        except ValueError as error:
            raise ValueError(f"{path} against {record.mask}: {error}") from error
    return confusion


def _count_cams(
    counters: Sequence[ThresholdSweep | LevelledSeeds],
    records: Sequence[Record],
    paths: Sequence[Path],
    num_classes: int,
) -> None:
    """Count the CAMs in `paths` against the masks of the records, in one pass over the files."""
    for record, path in zip(tqdm(records, "scoring", disable=None), paths, strict=True):
        truth, found = read_truth(record, num_classes), _read_map(path, record.classes)
        try:
            for counter in counters:
                counter.update(truth, *found)
        except ValueError as error:
            raise ValueError(f"{path} against {record.mask}: {error}") from error


def _count_saliency(
    sweep: ThresholdSweep,
    histogram: SaliencyHistogram,
    records: Sequence[Record],
    paths: Sequence[Path],
    num_classes: int,
) -> None:
    """Count saliency maps, painted and as they are, in one pass over the files."""
    for record, path in zip(tqdm(records, "scoring", disable=None), paths, strict=True):
        truth, saliency = read_truth(record, num_classes), read_saliency(path)
        try:
            sweep.update(truth, *_paint(saliency, record.classes))
            histogram.update(truth, saliency, labelled=bool(record.classes))
        except ValueError as error:
            raise ValueError(f"{path} against {record.mask}: {error}") from error


def _inspect(
    records: Sequence[Record],
    paths: Sequence[Path],
    num_classes: int,
    threshold: float | tuple[float, ...] | None,
) -> InspectionScores:
    """Count masks, or maps cut at a threshold, once more for the scores of `--detailed`.

    Labels decide what is cut out of a map. Scores without a threshold are taken from what knows no
    label, as far as there is such: the saliency map as it is, and the localiser's image scores.
    """
    counted = InspectionScores(num_classes)
    for record, path in zip(tqdm(records, "details", disable=None), paths, strict=True):
        truth, score_map, image_score = read_truth(record, num_classes), None, None
        if threshold is None:
            mask = read_mask(path, num_classes)
        else:
            maps, classes = _read_map(path, record.classes)
            maps = maps if len(classes) else np.zeros((0, *truth.shape), np.float32)
            cut = threshold
            if isinstance(threshold, tuple):
                maps, cut = levelled(maps, [threshold[k] for k in classes]), 0.5
            mask = seed_mask(maps, classes, cut)
            if path.suffix in PICTURE_SUFFIXES:
                score_map = read_saliency(path)
            else:
                score_map = maps.max(axis=0, initial=0)
                if path.suffix == ".npz":  # published CAMs hold no image scores
                    image_score = float(read_cam(path).scores.max())
        try:
            counted.update(truth, mask, score_map, image_score)
        except ValueError as error:
            raise ValueError(f"{path} against {record.mask}: {error}") from error
    return counted


def score_run(config: Config, out_dir: Path, args: argparse.Namespace) -> None:
    """Score one kind of map of a run, print the table and append to results.jsonl."""
    kind = args.kind
    split = args.split or ("train" if kind == "pseudo_label" else config.data.eval_split)
    data = read_data(config.data, out_dir / "labels.csv")
    unfair = _unfair(out_dir, config, kind)
    records = [r for r in data.split(split) if r.mask is not None and r.name not in unfair]
    if learnt_from := sum(record.name in unfair for record in data.split(split)):
        print(f"{learnt_from} images that the saliency maps were learnt from are not scored.")
    if not records:
        print(f"{config.data.source}, {split}: no masks, so there is nothing to score against.")
        # So that --table can tell "no masks" from "not scored yet".
        append_results(out_dir / "results.jsonl", [])
        return
    _refuse_missing_masks(data.split(split), split, config)
    unscored = [record.name for record in data.split(split) if record.mask is None]
    if unscored:
        print(f"{len(unscored)} images have no mask, not scored: {', '.join(unscored[:5])}.")

    cam_type = args.cam_type or config.cam.types[0]
    labels = args.labels or ("predicted" if kind == "segmentation" else "given")
    folder, given = (
        out_dir / _folder(kind, origin, "" if cam_type == config.cam.types[0] else cam_type)
        for origin in (labels, "given")
    )
    paths = _maps_of(folder, kind, records)
    num_classes = len(data.class_names)
    histogram = SaliencyHistogram(num_classes) if kind == "saliency" else None
    if kind in WITH_THRESHOLD:
        rules = args.threshold_rule or _default_rules(config, kind, out_dir)
        thresholds: dict[str, Any] = {"fixed": config.pseudo_label.threshold}
        if found_without_masks := [rule for rule in rules if rule in WITHOUT_MASKS]:
            # Predicted labels exist to test the localiser; its threshold comes from training.
            training_maps = given if given.is_dir() else folder
            beside = out_dir / KINDS["saliency"][0] if "agreement" in rules else None
            salient_from = config.pseudo_label.salient_from
            counts = _count_training_maps(training_maps, kind, data, beside, salient_from)
            thresholds |= _without_masks(counts, found_without_masks, data.class_names)
        seeds = {rule: LevelledSeeds(thresholds[rule]) for rule in rules if rule in PER_CLASS}
        single = [level for rule, level in thresholds.items() if rule not in PER_CLASS]
        sweep = ThresholdSweep((*GRID, *single), num_classes)
        if histogram is None:
            _count_cams([sweep, *seeds.values()], records, paths, num_classes)
        else:
            _count_saliency(sweep, histogram, records, paths, num_classes)
        thresholds["oracle"] = sweep.best()
        judged = [
            Judged(rule, seeds[rule].thresholds, seeds[rule].scores())
            if rule in seeds
            else _judged(sweep, rule, thresholds[rule])
            for rule in rules
        ]
        if args.curve:
            _print_curve(sweep)
    else:
        judged = [Judged("none", None, _count_masks(records, paths, num_classes).scores())]

    names = ("background", *data.class_names)
    print(f"{kind}, {split}, {len(records)} images, labels {labels}: {folder}")
    lines = _score_lines(judged, names)
    lines += [] if histogram is None else _saliency_lines(histogram, judged, data.class_names)
    _print_lines(lines)
    details: dict[str, Any] = {}
    if args.detailed:
        found = _inspect(records, paths, num_classes, judged[0].threshold).scores(
            args.bootstrap or ROUNDS
        )
        if labels == "given":
            found["false_alarms"] = None  # given to be defect-free, such an image is left empty
        rule = f", threshold {judged[0].rule}" if judged[0].threshold is not None else ""
        print(f"in detail{rule}:")
        _print_lines(detailed_lines(found, data.class_names))
        details = {"detailed": found}
    about = {"kind": kind, "split": split, "images": len(records), "labels": labels}
    about |= {"cam_type": cam_type} if kind == "cam" else {}
    about |= {"masks_used": config.refinement.masks} if config.refinement.masks else {}
    origin = {"config_sha": fingerprint(config), "commit": _commit(), "date": _now()}
    rows = [_row(one, names) for one in judged]
    if histogram is not None:
        rows = [row | _saliency_row(histogram, row["threshold"], data.class_names) for row in rows]
    rows[0] |= details
    append_results(out_dir / "results.jsonl", [{**about, **row, **origin} for row in rows])


def _refuse_missing_masks(records: Sequence[Record], split: str, config: Config) -> None:
    """Check that some image with a defect has a mask: all background would score 100 else."""
    defective = [record for record in records if record.classes]
    if not defective or any(record.mask for record in defective):
        return
    root = config.data.root
    places = {"folder": f"below {root}/masks", "csv": f"in the column mask of {config.data.table}"}
    where = places.get(config.data.source, f"below {root}, where docs/datasets.md says")
    raise ValueError(
        f"{config.data.source}, {split}: expected masks of images with a defect, got none of "
        f"{len(defective)}: {', '.join(record.name for record in defective[:5])}. "
        f"Add masks {where}, or correct their names."
    )


def _unfair(out_dir: Path, config: Config, kind: str) -> set[str]:
    """Return images it would be unfair to score.

    Those whose pixel masks the saliency was made with; and defect-free images that a generator
    learnt from, where false alarms are to be counted.
    """
    path = out_dir / KINDS["saliency"][0] / "meta.json"
    if not path.is_file():
        return set()
    meta = json.loads(path.read_text(encoding="utf-8"))
    counts_alarms = kind == "saliency" and not config.saliency.empty_defect_free
    return {*meta.get("masked", ()), *(meta.get("seen_defect_free", ()) if counts_alarms else ())}


def _default_rules(config: Config, kind: str, out_dir: Path) -> tuple[str, ...]:
    """Return the rule of the config, agreement where saliency maps are there, auto and oracle."""
    has_saliency = (out_dir / KINDS["saliency"][0]).is_dir()
    agreement = ("agreement",) if has_saliency else ()
    rules = dict.fromkeys((config.pseudo_label.threshold_rule, *agreement, "auto", "oracle"))
    return tuple(rule for rule in rules if kind == "cam" or rule not in PER_CLASS)


def _folder(kind: str, labels: str, other_type: str) -> str:
    """Return the folder of a kind; `other_type` is a CAM type beside the main one."""
    if kind != "cam":
        return KINDS[kind][0]
    parts = (KINDS[kind][0], other_type, "predicted" if labels == "predicted" else "")
    return "_".join(filter(None, parts))


def _maps_of(folder: Path, kind: str, records: Sequence[Record]) -> list[Path]:
    suffixes = CAM_SUFFIXES if kind == "cam" else PICTURE_SUFFIXES
    return find_maps(folder, [r.name for r in records], suffixes, f"Run {KINDS[kind][1]} first.")


def _count_training_maps(
    folder: Path, kind: str, data: Data, saliency_dir: Path | None, salient_from: float
) -> MapCounts:
    """Count the training split's maps, from which thresholds follow; no mask is opened.

    Args:
        folder: of the maps.
        kind: of the maps, saliency or cam.
        data: whose training split it is.
        saliency_dir: of the maps that `agreement` is with, or None.
        salient_from: pseudo_label.salient_from.
    """
    records = [r for r in data.split("train") if kind == "cam" or r.classes]
    paths = _maps_of(folder, kind, records)
    salient, level = [None] * len(paths), None
    if saliency_dir:
        salient = _maps_of(saliency_dir, "saliency", records)
        of_defects = (p for r, p in zip(records, salient, strict=True) if r.classes)
        level = salient_from or salient_level(map(read_saliency, of_defects))
    counts = MapCounts(len(data.class_names), level)
    found = zip(records, paths, salient, strict=True)
    for record, path, beside in tqdm(found, "training maps", len(paths), disable=None):
        maps, classes = _read_map(path, record.classes)
        try:
            counts.add(maps, classes.tolist(), None if beside is None else read_saliency(beside))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    print(f"thresholds from {len(paths)} training maps in {folder}")
    return counts


def _without_masks(
    counts: MapCounts, rules: Sequence[str], class_names: Sequence[str]
) -> dict[str, float | tuple[float, ...]]:
    """Return the thresholds of the rules that need none; 1 where the maps say nothing."""
    if counts.say_nothing():
        print("all training maps are one value, so all is scored as background")
        return {r: (1.0,) * len(class_names) if r in PER_CLASS else 1.0 for r in rules}
    thresholds: dict[str, float | tuple[float, ...]] = {}
    for rule in rules:
        found = counts.thresholds(rule)
        thresholds[rule] = tuple(found) if rule in PER_CLASS else found[0]
        if rule in PER_CLASS:
            pairs = zip(class_names, found, strict=True)
            print(f"  {rule}: {', '.join(f'{name} {level:.3f}' for name, level in pairs)}")
    return thresholds


def _judged(sweep: ThresholdSweep, rule: str, threshold: float) -> Judged:
    return Judged(rule, threshold, sweep.confusion(threshold).scores())


def score_published(args: argparse.Namespace) -> None:
    """Score files under the flags of the authors' script; prints 12 significant digits."""
    for flag in ("list", "gt_dir"):
        if getattr(args, flag) is None:
            raise ValueError(f"--{flag}: expected a path beside --predict_dir, got none.")
    names = read_published_list(Path(args.list))
    num_mask_classes = 21 if args.num_classes is None else args.num_classes
    if not 2 <= num_mask_classes <= IGNORE:
        raise ValueError(f"--num_classes: expected 2..{IGNORE}, got {num_mask_classes}.")
    num_classes = num_mask_classes - 1
    masks = find_maps(Path(args.gt_dir), names, PICTURE_SUFFIXES, "Check --gt_dir.")
    records = [
        Record(name, image=mask, classes=(), mask=mask)
        for name, mask in zip(names, masks, strict=True)
    ]
    if args.sal_dir:
        print("--sal_dir is accepted for old command lines; scoring does not use it.")
    suffixes = CAM_SUFFIXES[::-1] if args.type == "npy" else PICTURE_SUFFIXES
    paths = find_maps(Path(args.predict_dir), names, suffixes, "Check --predict_dir.")
    if args.type == "npy":
        sweep = ThresholdSweep(_published_thresholds(args), num_classes)
        _count_cams([sweep], records, paths, num_classes)
        if args.curve:
            _print_curve(sweep)
        judged = _judged(sweep, "oracle" if args.curve else "fixed", sweep.best())
        note = ", the best mIoU on these masks" if args.curve else ""
        print(f"t = {judged.threshold:g}{note}")
    else:
        judged = Judged("none", None, _count_masks(records, paths, num_classes).scores())

    row = _row(judged, ("background", *(f"class {k}" for k in range(1, num_mask_classes))))
    means = {"mIoU": row["miou"], "FP": row["fp"], "FN": row["fn"]}
    for name, value in (row["iou"] | means).items():
        print(f"{name:<12}{value:#.12g}")
    if row["absent"]:
        print(f"neither in masks nor predicted, left out: {', '.join(row['absent'])}")
    if args.logfile:
        inputs = {"list": args.list, "predict_dir": args.predict_dir, "images": len(names)}
        about = {"comment": args.comment or "", **inputs, "commit": _commit(), "date": _now()}
        append_results(Path(args.logfile), [{**about, **row}])


def _published_thresholds(args: argparse.Namespace) -> list[float]:
    if not args.curve:
        if args.t is None or not 0 <= args.t <= 1:
            raise ValueError(f"--t: expected a threshold from 0 to 1, got {args.t}.")
        return [args.t]
    start, end = args.start or 0, 60 if args.end is None else args.end
    if not 0 <= start <= end <= 100:
        raise ValueError(f"--start, --end: expected 0 <= start <= end <= 100, got {start}, {end}.")
    return [percent / 100 for percent in range(start, end + 1)]


def _row(judged: Judged, names: Sequence[str]) -> dict[str, Any]:
    rule, threshold, scores = judged
    absent = [name for name, iou in zip(names, scores.iou, strict=True) if np.isnan(iou)]
    iou = {name: float(iou) for name, iou in zip(names, scores.iou, strict=True)}
    return {
        "threshold": threshold,
        "threshold_rule": rule,
        "iou": {name: value for name, value in iou.items() if name not in absent},
        **{"miou": scores.miou, "fg_iou": scores.fg_iou, "fp": scores.fp, "fn": scores.fn},
        "absent": absent,
    }


def _saliency_row(
    histogram: SaliencyHistogram, threshold: float, class_names: Sequence[str]
) -> dict[str, Any]:
    recalls = zip(class_names, histogram.recall(threshold).tolist(), strict=True)
    return {
        **histogram.scores()._asdict(),
        "recall": {name: recall for name, recall in recalls if not np.isnan(recall)},
        "false_alarm": histogram.false_alarm(threshold),
        "defect_free_images": histogram.defect_free_images,
    }


def _print_curve(sweep: ThresholdSweep) -> None:
    print("threshold    mIoU  fg IoU      FP      FN")
    for threshold in sweep.thresholds:
        scores = sweep.confusion(threshold).scores()
        print(f"{threshold:9.4f}" + "".join(f"{percent(mean):>8}" for mean in scores[1:]))


def _score_lines(judged: Sequence[Judged], names: Sequence[str]) -> list[list[str]]:
    """Return one line a class or mean: its title and a cell for each threshold rule."""
    heads = [
        f"{one.rule} {one.threshold:.3f}"
        if isinstance(one.threshold, float)
        else ("IoU" if one.threshold is None else one.rule)
        for one in judged
    ]
    columns = [[*one.scores.iou, *one.scores[1:]] for one in judged]
    titles = (*names, "mIoU", "fg IoU", "FP", "FN")
    lines = zip(titles, *columns, strict=True)
    return [["class", *heads], *([title, *map(percent, cells)] for title, *cells in lines)]


def _saliency_lines(
    histogram: SaliencyHistogram, judged: Sequence[Judged], class_names: Sequence[str]
) -> list[list[str]]:
    """Return the lines of saliency alone; what holds for all thresholds has a single cell."""
    scores = histogram.scores()
    lines = zip(class_names, *(histogram.recall(one.threshold) for one in judged), strict=True)
    best = "-" if scores.best_fg_threshold is None else f"{scores.best_fg_threshold:.3f}"
    return [
        *([f"recall {name}", *map(percent, recalls)] for name, *recalls in lines),
        ["false alarm", *(percent(histogram.false_alarm(one.threshold)) for one in judged)],
        ["defect-free images", str(histogram.defect_free_images)],
        ["AUROC", percent(scores.auroc)],
        ["AP", percent(scores.ap)],
        ["max F", percent(scores.max_f)],
        ["MAE", percent(scores.mae)],
        ["best fg IoU", percent(scores.best_fg_iou)],
        ["its threshold", best],
    ]


def _print_lines(lines: Sequence[Sequence[str]]) -> None:
    width = max(len(title) for title, *_ in lines)
    for title, *cells in lines:
        print(f"{title:<{width}}" + "".join(f"{cell:>16}" for cell in cells))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _commit() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def _parser() -> argparse.ArgumentParser:
    parser = stage_parser(__doc__)
    add = parser.add_argument
    add("--kind", choices=tuple(KINDS), help="what to score of the run folder")
    add("--table", action="store_true", help="print the latest results of the run as Markdown")
    add = parser.add_argument_group("with --kind").add_argument
    splits = "(default: data.eval_split; pseudo_label: train)"
    add("--split", choices=SPLITS, help=f"images to score {splits}")
    add("--labels", choices=LABEL_ORIGINS, help="CAMs of which image labels (default: given)")
    add("--cam-type", choices=CAM_TYPES, help="CAMs of which type (default: first of cam.types)")
    rules = "how thresholds are chosen (default: as the config says, of CAMs agreement, auto, "
    rules += "oracle)"
    add("--threshold-rule", nargs="+", choices=RULES, help=rules)
    curve = "print the scores of every threshold"
    add("--curve", nargs="?", const="True", choices=("True", "False"), help=curve)
    details = "also Dice, boundary F1, pixel accuracy, false alarms, a bootstrap interval of the "
    details += "mIoU, and of maps AUROC, AUPRO and max F1; at the first threshold"
    add("--detailed", action="store_true", default=None, help=details)
    add("--bootstrap", type=int, metavar="N", help="draws of the interval (default: 1000)")
    add = parser.add_argument_group("flags of the authors' released script").add_argument
    add("--predict_dir", metavar="DIR", help="files to score, <name>.npy or <name>.png")
    add("--list", metavar="FILE", help="text file with one image name a line")
    add("--gt_dir", metavar="DIR", help="index masks <name>.png")
    add("--sal_dir", metavar="DIR", help="accepted, not used")
    add("--type", choices=("npy", "png"), help="CAMs or index masks (default: png)")
    add("--t", type=float, help="background threshold from 0 to 1, for npy")
    add("--start", type=int, help="with --curve: first threshold in %% (default: 0)")
    add("--end", type=int, help="with --curve: last threshold in %% (default: 60)")
    add("--num_classes", type=int, help="classes, background included (default: 21)")
    add("--logfile", metavar="FILE", help="append the result as a JSON line")
    add("--comment", help="text kept with the result")
    return parser


def _refuse_useless_flags(args: argparse.Namespace) -> None:
    flags = RUN_FLAGS if args.predict_dir else PUBLISHED_FLAGS
    if not args.predict_dir:
        flags += () if args.kind == "cam" else ("labels", "cam_type")
        flags += () if args.detailed else ("bootstrap",)
        flags += () if args.kind in WITH_THRESHOLD else ("threshold_rule", "curve")
    given = [flag for flag in flags if getattr(args, flag) is not None]
    if given:
        mode = next(f"--{m}" for m in ("kind", "table", "predict_dir") if getattr(args, m))
        raise ValueError(f"{', '.join(given)}: expected no such flag with {mode}. Leave it out.")
    per_class = [rule for rule in args.threshold_rule or () if rule in PER_CLASS]
    if args.kind == "saliency" and per_class:
        raise ValueError(
            "--threshold-rule: expected fixed, auto or oracle with --kind saliency, as its maps "
            f"know no classes, got {per_class[0]}. Leave it out."
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Score a run, print its table, or score files under the authors' flags."""
    args = _parser().parse_args(argv)
    if sum(map(bool, (args.kind, args.table, args.predict_dir))) != 1:
        raise ValueError("expected one of --kind, --table and --predict_dir. See --help.")
    _refuse_useless_flags(args)
    if args.bootstrap is not None and args.bootstrap < 1:
        raise ValueError(f"--bootstrap: expected 1 or more draws, got {args.bootstrap}.")
    args.curve = args.curve == "True"
    if args.predict_dir:
        score_published(args)
        return
    config, out_dir = load_run(args)
    if args.table:
        print(results_table(out_dir / "results.jsonl"))
        write_results_csv(out_dir / "results.jsonl", out_dir / "results.csv")
    else:
        score_run(config, out_dir, args)


if __name__ == "__main__":
    run_stage(main)
