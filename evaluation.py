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
  auto       found without masks, on the maps that were trained on (Otsu's method)
  class      of CAMs: the same, one for each class; classes then compete by their rescaled maps
  agreement  of CAMs: for each class the one whose seeds agree best with the saliency maps of what
             was trained on (IoU, mean over images)
  oracle     the best of a sweep on the very masks that are scored: an upper bound, not a result

Thresholds of CAMs that were found without masks are kept in thresholds.json of the run. Labels are
given, predicted, or learnt: predicted of images whose own labels took part in the training. Where
data.develop_list names the images that settings were chosen on, the mIoU of the others, the report
part, stands apart.
"""

import argparse
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from configs.command_line import run_stage, stage_parser
from configs.fields import CAM_TYPES, LABEL_ORIGINS, SPLITS
from execution import ranks
from runfolder.doubts import doubts
from runfolder.results import append_results, origin, results_table, write_results_csv
from runfolder.run import KINDS, Run, open_run
from runfolder.scored import Asked, Scored, about_of, in_part, scored_of
from runfolder.scores import (
    PER_CLASS,
    RULES,
    default_rules,
    judge_cams,
    judge_masks,
    judge_saliency,
)
from runfolder.suspects import write_suspects
from runfolder.verdicts import verdicts_of
from scoring.detailed import ROUNDS
from scoring.images import ROUNDS as IMAGE_ROUNDS
from scoring.images import image_figures
from scoring.lines import (
    Judged,
    detailed_lines,
    image_lines,
    print_curve,
    print_lines,
    result_row,
    saliency_lines,
    saliency_row,
    score_lines,
)
from scoring.passes import count_details
from scoring.released import score_released

WITH_THRESHOLD = ("saliency", "cam")
NO_MASKS = {"threshold": None, "threshold_rule": "none"}  # of a row of whole images alone
# Only with --kind.
RUN_FLAGS = ("split", "part", "labels", "cam_type", "threshold_rule", "detailed", "bootstrap")
RUN_FLAGS += ("bound",)
RELEASED_FLAGS = ("list", "gt_dir", "sal_dir", "logfile", "comment", "type", "t", "num_classes")
RELEASED_FLAGS += ("start", "end")  # only with --predict_dir


def main(argv: Sequence[str] | None = None) -> None:
    """Score a run, print its table, or score files under the authors' flags."""
    args = _parser().parse_args(argv)
    if sum(map(bool, (args.kind, args.table, args.predict_dir))) != 1:
        raise ValueError("expected one of --kind, --table and --predict_dir. See --help.")
    _refuse_useless_flags(args)
    args.curve = args.curve == "True"
    if args.predict_dir:
        row = score_released(args)
        if args.logfile:
            append_results(Path(args.logfile), [{**row, **origin()}])
        return
    ranks.join("cpu")
    run = open_run(args)
    if args.table:
        print(results_table(run.results_path))
        write_results_csv(run.results_path, run.table_path)
        if number := write_suspects(run, run.suspects_path):
            print(
                f"{run.suspects_path}: the {number} training images, those whose labels the "
                "localiser doubts most first"
            )
        reasons = doubts(run)
        if reasons:
            print(f"warning: {len(reasons)} reason(s) to doubt these masks, found without masks:")
            print("\n".join(f"  {reason}" for reason in reasons))
        return
    for asked in _all_asked(run, args):
        score_run(run, asked, args)


def _all_asked(run: Run, args: argparse.Namespace) -> list[Asked]:
    """Return what is asked for: every combination of labels, CAM types and splits."""
    kind, config = args.kind, run.config
    splits = args.split or ["train" if kind == "pseudo_label" else config.data.eval_split]
    cam_types = args.cam_type or [config.pseudo_label.cam_type]
    labels = args.labels or ["predicted" if kind == "segmentation" else "given"]
    part, bound = args.part or "all", bool(args.bound)
    return [
        Asked(kind, split, part, cam_type, of_whom, bound)
        for of_whom, cam_type, split in product(labels, cam_types, splits)
    ]


def score_run(run: Run, asked: Asked, args: argparse.Namespace) -> None:
    """Score one kind of map of a run, print the table and append to results.jsonl."""
    kind, split, _, cam_type, labels, _ = asked
    config = run.config
    scored, of_images = scored_of(run, asked), _of_images(run, asked, args.bootstrap)
    if scored is None:
        print(f"{config.data.source}, {split}: no masks, so there are no maps to score.")
        # No row is written too, so that --table can tell "no masks" from "not scored yet".
        rows = []
        if of_images:
            about = about_of(run, asked, in_part(run, asked))
            rows.append(about | NO_MASKS | of_images | origin(run))
        if ranks.is_first():
            append_results(run.results_path, rows)
        return

    # The counts: masks as they are, maps at every threshold.
    rules, histogram = args.threshold_rule or default_rules(run, kind), None
    if kind == "cam":
        judged, sweep = judge_cams(run, (cam_type, labels), rules, scored.parts)
    elif kind == "saliency":
        judged, sweep, histogram = judge_saliency(run, rules, scored.parts)
    else:
        judged = judge_masks(run, scored.parts)
    if args.curve:
        print_curve(sweep)

    # The table.
    class_names = run.data.class_names
    names = ("background", *class_names)
    images = f"{len(scored.records)} images, labels {scored.about['labels']}"
    print(f"{kind}, {split}, {images}: {run.maps_dir(kind, cam_type, labels)}")
    lines = score_lines(judged, names)
    lines += [] if histogram is None else saliency_lines(histogram, judged, class_names)
    print_lines(lines)
    details = _details(run, scored, judged[0], args.bootstrap) if args.detailed else {}

    # The rows of results.jsonl.
    rows = [result_row(one, names) for one in judged]
    if histogram is not None:
        rows = [row | saliency_row(histogram, row["threshold"], class_names) for row in rows]
    rows[0] |= details | of_images
    if ranks.is_first():
        append_results(run.results_path, [{**scored.about, **row, **origin(run)} for row in rows])


def _of_images(run: Run, asked: Asked, rounds: int | None) -> dict[str, Any]:
    """Print the figures of whole images, and return them as part of a row; none of given labels."""
    verdicts = verdicts_of(run, asked)
    if verdicts is None:
        return {}
    figures = image_figures(verdicts, run.data.class_names, rounds or IMAGE_ROUNDS)
    print(f"{asked.kind}, {asked.split}, {len(verdicts.labels)} images against their labels:")
    print_lines(image_lines(figures))
    return {"image": figures}


def _details(run: Run, scored: Scored, judged: Judged, rounds: int | None) -> dict[str, Any]:
    """Print the scores of --detailed at the first threshold, and return them as part of its row."""
    is_given = scored.about["labels"] == "given"
    kind, empties = scored.about["kind"], run.config.saliency.empty_defect_free
    see_labels = is_given and (kind == "cam" or kind == "saliency" and empties)
    counted = count_details(
        scored.records, scored.paths, run.num_classes, judged.threshold, see_labels
    )
    scores = counted.scores(rounds or ROUNDS)
    if is_given:
        scores["false_alarms"] = None  # given to be defect-free, such an image is left empty
    rule = f", threshold {judged.rule}" if judged.threshold is not None else ""
    print(f"in detail{rule}:")
    print_lines(detailed_lines(scores, run.data.class_names))
    return {"detailed": scores}


def _parser() -> argparse.ArgumentParser:
    parser = stage_parser(__doc__)
    add = parser.add_argument
    add("--kind", choices=tuple(KINDS), help="what to score of the run folder")
    add("--table", action="store_true", help="print the latest results of the run as Markdown")
    add = parser.add_argument_group("with --kind").add_argument
    splits = "(default: data.eval_split; pseudo_label: train)"
    add("--split", nargs="+", choices=SPLITS, help=f"images to score {splits}")
    parts = "images that settings are chosen on, or the others, by data.develop_list (default: all)"
    add("--part", choices=("develop", "report"), help=parts)
    bound = "score images whose masks were used too: an upper bound, not a result"
    add("--bound", action="store_true", default=None, help=bound)
    which = "CAMs of which image labels (default: given)"
    add("--labels", nargs="+", choices=LABEL_ORIGINS, help=which)
    which = "CAMs of which type (default: pseudo_label.cam_type)"
    add("--cam-type", nargs="+", choices=CAM_TYPES, help=which)
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
    flags = RUN_FLAGS if args.predict_dir else RELEASED_FLAGS
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
    if args.bootstrap is not None and args.bootstrap < 1:
        raise ValueError(f"--bootstrap: expected 1 or more draws, got {args.bootstrap}.")


if __name__ == "__main__":
    run_stage(main)
