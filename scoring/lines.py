"""Scores as rows of results.jsonl, and as the lines that evaluation.py prints."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from scoring.confusion import Scores, ThresholdSweep
from scoring.detailed import MAX_FPR, TOLERANCE
from scoring.passes import Threshold
from scoring.saliency import SaliencyHistogram

Line = list[str]  # a title and a cell for each column


class Judged(NamedTuple):
    """Scores, the threshold they belong to, and how it was chosen.

    Attributes:
        rule: how.
        threshold: the one, or one of each class.
        scores: of all images.
        report: of those alone that no setting was chosen on; None where no list names them.
    """

    rule: str
    threshold: Threshold
    scores: Scores
    report: Scores | None = None


def percent(value: float | None) -> str:
    """Return a value in % with two decimals, - where there is none."""
    return "-" if value is None or math.isnan(value) else f"{value:.2f}"


def result_row(judged: Judged, names: Sequence[str]) -> dict[str, Any]:
    """Return the figures of a line of results.jsonl; absent classes are left out and named."""
    rule, threshold, scores, report = judged
    absent = [name for name, iou in zip(names, scores.iou, strict=True) if np.isnan(iou)]
    iou = {name: float(iou) for name, iou in zip(names, scores.iou, strict=True)}
    return {
        "threshold": threshold,
        "threshold_rule": rule,
        "iou": {name: value for name, value in iou.items() if name not in absent},
        **{"miou": scores.miou, "fg_iou": scores.fg_iou, "fp": scores.fp, "fn": scores.fn},
        "absent": absent,
        **({} if report is None else {"report": {"miou": report.miou, "fg_iou": report.fg_iou}}),
    }


def saliency_row(
    histogram: SaliencyHistogram, threshold: float, class_names: Sequence[str]
) -> dict[str, Any]:
    """Return what a line of results.jsonl has of saliency alone."""
    recalls = zip(class_names, histogram.recall(threshold).tolist(), strict=True)
    return {
        **histogram.scores()._asdict(),
        "recall": {name: recall for name, recall in recalls if not np.isnan(recall)},
        "false_alarm": histogram.false_alarm(threshold),
        "defect_free_images": histogram.defect_free_images,
    }


def score_lines(judged: Sequence[Judged], names: Sequence[str]) -> list[Line]:
    """Return one line a class or mean: its title and a cell for each threshold rule."""
    heads = [
        f"{one.rule} {one.threshold:.3f}"
        if isinstance(one.threshold, float)
        else ("IoU" if one.threshold is None else one.rule)
        for one in judged
    ]
    columns = [[*one.scores.iou, *one.scores[1:]] for one in judged]
    titles = (*names, "mIoU", "fg IoU", "FP", "FN")
    lines = [[title, *map(percent, cells)] for title, *cells in zip(titles, *columns, strict=True)]
    if all(one.report for one in judged):
        lines.append(["mIoU, report part", *(percent(one.report.miou) for one in judged)])
    return [["class", *heads], *lines]


def saliency_lines(
    histogram: SaliencyHistogram, judged: Sequence[Judged], class_names: Sequence[str]
) -> list[Line]:
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


def detailed_lines(scores: dict[str, Any], class_names: Sequence[str]) -> list[list[str]]:
    """Return the scores as rows of a table: name, value."""
    low, high = scores["miou_interval"]
    lines = [["mIoU, 95 % interval", f"{low:.2f} to {high:.2f}"]]
    for key, name, names in (
        ("dice", "Dice", ("background", *class_names)),
        ("boundary_f1", f"boundary F1 ({TOLERANCE} px)", class_names),
    ):
        for of_class, value in zip(names, scores[key], strict=True):
            lines.append([f"{name} {of_class}", percent(value)])
    for key, name in (
        ("pixel_accuracy", "pixel accuracy"),
        ("area_ratio", "area of the true one"),
        ("pixel_auroc", "pixel AUROC"),
        ("aupro", f"AUPRO (FPR {MAX_FPR})"),
        ("max_f1", "pixel max F1"),
        ("image_auroc", "image AUROC"),
        ("false_alarms", "regions per defect-free image"),
    ):
        if key in scores:
            lines.append([name, percent(scores[key])])
    return lines


def image_lines(figures: dict[str, Any]) -> list[Line]:
    """Return the figures of whole images as rows of a table."""
    columns = ("precision", "recall", "f1", "ap", "hit", "extra", "missed")
    heads = ("precision", "recall", "F1", "AP", "hit", "extra", "missed")
    lines = [["class", *heads]]
    for name, of_class in figures["classes"].items():
        cells = [of_class[column] for column in columns]
        lines.append([name, *map(percent, cells[:4]), *map(str, cells[4:])])
    for key, title in (
        ("found", "defective images flagged"),
        ("false_alarms", "false alarms per 100 good"),
        ("auroc", "AUROC, defective or good"),
        ("map", "mean AP"),
    ):
        lines.append([title, with_interval(figures, key)])
    lines.append(["calibration error of scores", percent(figures["ece"])])
    contradicted = figures["contradicted"]
    return [
        *lines,
        ["defective and good images", f"{figures['defective']} and {figures['good']}"],
        ["images with a class that their label lacks", str(contradicted["extra"])],
        ["images without a class of their label", str(contradicted["missed"])],
    ]


def with_interval(figures: dict[str, Any], key: str) -> str:
    """Return a figure of whole images with its 95 % interval."""
    interval = figures["interval"][key]
    between = f" ({interval[0]:.1f} to {interval[1]:.1f})" if interval else ""
    return percent(figures[key]) + between


def print_lines(lines: Sequence[Sequence[str]]) -> None:
    """Print lines as a table, titles to the left and cells to the right."""
    width = max(len(title) for title, *_ in lines)
    for title, *cells in lines:
        print(f"{title:<{width}}" + "".join(f"{cell:>16}" for cell in cells))


def print_curve(sweep: ThresholdSweep) -> None:
    """Print the means of every threshold."""
    print("threshold    mIoU  fg IoU      FP      FN")
    for threshold in sweep.thresholds:
        scores = sweep.confusion(threshold).scores()
        print(f"{threshold:9.4f}" + "".join(f"{percent(mean):>8}" for mean in scores[1:]))
