"""The drawings of a report: each takes an empty figure and says what to read from it.

A drawing returns "" and leaves the figure as it is where the run has not the data for it.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from reporting.facts import Facts, row_of
from reporting.pictures import class_colours
from runfolder.scored import Asked, scored_of
from runfolder.training_log import LOG_NAME, read_training_log
from scoring.calibration import calibration_error, reliability
from scoring.confusion import GRID, ThresholdSweep
from scoring.passes import count_cams

GOOD, BAD, MEAN = "#009e73", "#d55e00", "#777777"
MOST_NAMES = 12  # classes that are written into a chart
LEAST_AREA = 1e-5  # share of an image at which the axis of areas begins
TERM_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999")


def localiser_training(figure: Figure, facts: Facts) -> str:
    """Draw loss and learning rate of the first training."""
    return _training(figure, read_training_log(facts.run.stac_dir / LOG_NAME))


def segmentation_training(figure: Figure, facts: Facts) -> str:
    """Draw loss and learning rate of the second training."""
    return _training(figure, read_training_log(facts.run.segmentation_dir / LOG_NAME))


def _training(figure: Figure, log: Sequence[dict[str, Any]]) -> str:
    if not log:
        return ""
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    epochs = [line["epoch"] for line in log]
    names = list(dict.fromkeys(name for line in log for name in line["train"]))
    marker = "o" if len(log) == 1 else None
    for number, name in enumerate(names):
        values = [_number(line["train"].get(name)) for line in log]
        colour = TERM_COLOURS[number % len(TERM_COLOURS)]
        upper.plot(epochs, values, color=colour, label=name, marker=marker)
    values = [line["train"].get(name) for line in log for name in names]
    if all(value is not None and value > 0 for value in values):
        _logarithmic(upper, "y")
    upper.set_ylabel("loss")
    upper.legend(ncols=2, handlelength=1.2)
    lower.plot(epochs, [line["lr"] for line in log], color=MEAN, marker=marker)
    lower.set_ylabel("lr")
    lower.set_xlabel("epoch")
    lower.xaxis.get_major_locator().set_params(integer=True)
    last, total = log[-1], _number(log[-1]["train"].get("total"))
    measured = [line for line in log if line["val"]]
    told = ""
    if measured:
        values = (f"{name} {_number(value):.2f}" for name, value in measured[-1]["val"].items())
        told = f"; last validation: {', '.join(values)}"
    return f"Epoch {last['epoch']:.0f}: total loss {total:.3f}{told}. Below: the learning rate."


def thresholds(figure: Figure, facts: Facts) -> str:
    """Draw the IoU of the CAMs, cut at one threshold for all classes, against masks."""
    run, settings = facts.run, facts.run.config.pseudo_label
    asked = Asked("cam", facts.split, "all", settings.cam_type, "given", False)
    if facts.confusion is None or not run.cam_dir(settings.cam_type, "given").is_dir():
        return ""
    try:
        scored = scored_of(run, asked)
    except FileNotFoundError:  # CAMs of other images alone
        return ""
    sweep = ThresholdSweep(GRID, run.num_classes)
    count_cams([sweep], scored.records, scored.paths, run.num_classes)
    scores = [sweep.confusion(level).scores() for level in sweep.thresholds]
    axes = figure.subplots()
    colours, names = class_colours(run.num_classes), facts.class_names
    for k in range(min(run.num_classes, MOST_NAMES)):
        axes.plot(sweep.thresholds, [s.iou[k + 1] for s in scores], color=colours[k], lw=1)
        axes.plot([], [], color=colours[k], label=names[k])
    axes.plot(sweep.thresholds, [s.miou for s in scores], color=MEAN, lw=2.4, label="mIoU")
    chosen = row_of(facts, asked, "iou", settings.threshold_rule)
    text = (
        _chosen(axes, chosen, colours)
        if chosen
        else "No threshold of the config's rule was scored yet. "
    )
    axes.set(xlabel="threshold", ylabel="IoU in %", xlim=(0, 1), ylim=(0, 100))
    axes.legend(ncols=2)
    best = max(range(len(scores)), key=lambda i: scores[i].miou)
    return (
        f"{text}The highest mIoU of one threshold for all classes is {scores[best].miou:.2f} % at "
        f"{sweep.thresholds[best]:.2f}, found with the masks: a bound, not a result."
    )


def _chosen(axes: Axes, row: dict[str, Any], colours: Sequence[str]) -> str:
    """Mark the threshold that was chosen without masks."""
    level, rule = row["threshold"], row["threshold_rule"]
    if isinstance(level, list):
        for k, of_class in enumerate(level[:MOST_NAMES]):
            axes.axvline(of_class, color=colours[k], linestyle="--", lw=1.2)
        where = "Dashed: the threshold of each class"
    else:
        axes.axvline(level, color=MEAN, linestyle="--", lw=1.6)
        where = f"Dashed: the chosen threshold, {level:.3f}"
    axes.plot([0, 1], [row["miou"]] * 2, color=MEAN, linestyle=":", lw=1.2)
    return f"{where} (rule {rule}), which gives {row['miou']:.2f} % (dotted). "


def confusion(figure: Figure, facts: Facts) -> str:
    """Draw the share of each true class' pixels that every class got."""
    if facts.confusion is None:
        return ""
    counts = facts.confusion.counts.astype(np.float64)
    rows = counts.sum(axis=1, keepdims=True)
    share = np.divide(100 * counts, rows, out=np.zeros_like(counts), where=rows > 0)
    names = ("background", *facts.class_names)
    axes = figure.subplots()
    axes.grid(False)
    axes.pcolormesh(share, cmap="Blues", vmin=0, vmax=100, edgecolors="#8a8a8a", linewidth=0.4)
    axes.invert_yaxis()
    axes.set(xlabel="prediction", ylabel="truth", aspect="equal")
    if len(names) <= MOST_NAMES:
        places = np.arange(len(names)) + 0.5
        axes.set_xticks(places, [_short(name) for name in names], rotation=30, ha="right")
        axes.set_yticks(places, [_short(name) for name in names])
        for (i, j), value in np.ndenumerate(share):
            colour = "white" if value > 55 else "black"
            axes.text(j + 0.5, i + 0.5, f"{value:.1f}", ha="center", va="center", color=colour)
    return "Of 100 true pixels in each row, how many got the class of the column."


def precision_recall(figure: Figure, facts: Facts) -> str:
    """Draw the precision of each class' image scores against recall."""
    said = facts.verdicts
    if said is None or not facts.has_scores or not said.labels.any():
        return ""
    axes, colours = figure.subplots(), class_colours(len(facts.class_names))
    for k, name in enumerate(facts.class_names[:MOST_NAMES]):
        truth, scores = said.labels[:, k], said.scores[:, k]
        if not truth.any():
            continue
        recall, precision = precision_recall_of(truth, scores)
        ap = facts.image["classes"][name]["ap"]
        axes.step(
            recall, precision, where="pre", color=colours[k], label=f"{_short(name)} {ap:.1f}"
        )
    axes.set(xlabel="recall in %", ylabel="precision in %", xlim=(0, 101), ylim=(0, 101))
    axes.legend(title="average precision in %", title_fontsize=8, loc="lower left")
    return "A curve near the upper right corner ranks the images of the class before all others."


def precision_recall_of(truth: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return recall and precision in % at each different score, from the highest.

    Args:
        truth: (N,) bool, some of it true.
        scores: (N,).
    """
    levels = np.unique(scores, return_inverse=True)[1]
    hits = np.bincount(levels, truth)[::-1].cumsum()
    flagged = np.bincount(levels)[::-1].cumsum()
    recall, precision = 100 * hits / truth.sum(), 100 * hits / flagged
    return np.append(0, recall), np.append(precision[0], precision)


def image_ious(figure: Figure, facts: Facts) -> str:
    """Draw how many images have which IoU."""
    ious = [one.iou for one in facts.images if one.iou is not None]
    if facts.confusion is None or not ious:
        return ""
    axes = figure.subplots()
    axes.hist(ious, bins=np.arange(0, 101, 5), color="#0072b2")
    axes.set(xlabel="IoU of an image in %", ylabel="images", xlim=(0, 100))
    axes.axvline(float(np.median(ious)), color=BAD, linestyle="--")
    rest = len(facts.images) - len(ious)
    text = f"Dashed: the median, {np.median(ious):.1f} %. {sum(iou < 50 for iou in ious)} of "
    text += f"{len(ious)} images have less than 50 %. An image's IoU is the mean over the defect "
    text += "classes that its truth or its mask shows"
    return text + (f"; {rest} images show none in both." if rest else ".")


def image_scores(figure: Figure, facts: Facts) -> str:
    """Draw the highest class score of good and of defective images."""
    said = facts.verdicts
    if said is None or not facts.has_scores:
        return ""
    highest, defective = said.scores.max(axis=1), said.labels.any(axis=1)
    axes, bins = figure.subplots(), np.linspace(0, 1, 26)
    axes.hist(
        highest[defective], bins, color=BAD, alpha=0.65, label=f"defective, {defective.sum()}"
    )
    axes.hist(
        highest[~defective], bins, color=GOOD, alpha=0.65, label=f"good, {(~defective).sum()}"
    )
    axes.set(xlabel="highest class score of an image", ylabel="images", xlim=(0, 1))
    axes.legend()
    auroc = facts.image["auroc"]
    told = "" if auroc is None else f"; AUROC {auroc:.2f} %"
    return (
        f"The further apart the two heaps are, the better good and defective are told apart{told}."
    )


def areas(figure: Figure, facts: Facts) -> str:
    """Draw how large the predicted areas of each class are, and the true ones."""
    of_class = [
        [one.areas[k] for one in facts.images if k in one.areas]
        for k in range(len(facts.class_names))
    ]
    every = [area for of_one in of_class for area in of_one]
    if not every:
        return ""
    with_truth = facts.confusion is not None
    axes, colours = figure.subplots(), class_colours(len(of_class))
    low = 100 * max(LEAST_AREA, 10 ** np.floor(np.log10(min(every))))
    bins = np.geomspace(low, 100, 25)
    for k, name in enumerate(facts.class_names[:MOST_NAMES]):
        shares = 100 * np.clip(of_class[k], low / 100, 1)
        axes.hist(shares, bins, histtype="step", lw=1.8, color=colours[k], label=_short(name))
        true = [one.true_areas[k] for one in facts.images if k in (one.true_areas or {})]
        if with_truth and true:
            true = 100 * np.clip(true, low / 100, 1)
            axes.hist(true, bins, histtype="step", lw=0.9, linestyle=":", color=colours[k])
    _logarithmic(axes, "x")
    axes.set(xlabel="area in % of the image", ylabel="images")
    axes.legend()
    return "Images by the area that a class has in them." + (
        " Dotted: truth." if with_truth else ""
    )


def calibration(figure: Figure, facts: Facts) -> str:
    """Draw how often a class is there against the score that it has."""
    said = facts.verdicts
    if said is None or not facts.has_scores:
        return ""
    centres, shares, counts = reliability(said.scores.ravel(), said.labels.ravel())
    error = calibration_error(said.scores, said.labels)
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color=MEAN, lw=1, linestyle="--")
    sizes = 12 + 160 * counts / counts.max()
    axes.plot(centres, shares, color="#0072b2", lw=1)
    axes.scatter(centres, shares, s=sizes, color="#0072b2", alpha=0.8)
    axes.set(
        xlabel="mean score in %", ylabel="class is there, in %", xlim=(-3, 103), ylim=(-5, 105)
    )
    return (
        f"Of all classes with a score of 70 %, 70 % should be there (dashed). Mean distance: "
        f"{error:.1f} points (expected calibration error). Larger dots stand for more images."
    )


def _logarithmic(axes: Axes, which: str) -> None:
    """Make an axis logarithmic, with plain numbers at it."""
    axes.set(**{f"{which}scale": "log"})
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if which == "y" else (1,), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)


def _short(name: str) -> str:
    return name if len(name) <= 16 else f"{name[:15]}…"
