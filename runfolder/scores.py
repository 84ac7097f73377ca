"""The maps of a run against masks, at thresholds that are fixed or were found without masks."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.files import read_saliency
from datasets.record import Record
from runfolder.run import Run
from runfolder.scored import Part, maps_of
from runfolder.thresholds import Place, mask_free_thresholds
from scoring.confusion import GRID, ConfusionMatrix, LevelledSeeds, ThresholdSweep
from scoring.lines import Judged
from scoring.passes import (
    Threshold,
    count_cams,
    count_masks,
    count_saliency,
    read_map,
)
from scoring.saliency import SaliencyHistogram
from scoring.thresholds import MapCounts, count_maps

RULES = ("fixed", "auto", "class", "agreement", "oracle")
WITHOUT_MASKS = ("auto", "class", "agreement")
PER_CLASS = ("class", "agreement")  # a threshold for each class; of CAMs only


def default_rules(run: Run, kind: str) -> tuple[str, ...]:
    """Return the rule of the config, agreement where saliency maps are there, auto and oracle."""
    agreement = ("agreement",) if run.saliency_dir.is_dir() else ()
    rules = dict.fromkeys((run.config.pseudo_label.threshold_rule, *agreement, "auto", "oracle"))
    return tuple(rule for rule in rules if kind == "cam" or rule not in PER_CLASS)


def judge_cams(
    run: Run, made: tuple[str, str], rules: Sequence[str], parts: Sequence[Part]
) -> tuple[list[Judged], ThresholdSweep]:
    """Score CAMs at the threshold of each rule.

    Args:
        run: whose CAMs they are.
        made: their type, and the origin of their labels.
        rules: of RULES.
        parts: of the images, as `runfolder.scored.Scored` has them.

    Returns:
        Scores of each rule, and the counts of every threshold.
    """
    cam_type, labels = made
    thresholds: dict[str, Threshold] = {"fixed": run.config.pseudo_label.threshold}
    if without_masks := [rule for rule in rules if rule in WITHOUT_MASKS]:
        # Predicted labels exist to test the localiser; its threshold comes from training.
        given = run.cam_dir(cam_type, "given")
        folder = given if given.is_dir() else run.cam_dir(cam_type, labels)
        with_saliency = "agreement" in rules
        thresholds |= _without_masks(
            run,
            Place(cam_type, "raw"),
            without_masks,
            lambda: _count_training_maps(run, folder, "cam", with_saliency),
        )
    seeds = {rule: LevelledSeeds(thresholds[rule]) for rule in rules if rule in PER_CLASS}
    single = [level for rule, level in thresholds.items() if rule not in PER_CLASS]
    counts = {"sweep": ThresholdSweep((*GRID, *single), run.num_classes), **seeds}
    counted = []  # after each part
    for records, paths in parts:
        count_cams([*counts.values()], records, paths, run.num_classes)
        counted.append(copy.deepcopy(counts))
    thresholds |= {"oracle": counts["sweep"].best()} if "oracle" in rules else {}

    def matrix(rule: str, counts: dict[str, Any]) -> ConfusionMatrix:
        return counts[rule] if rule in seeds else counts["sweep"].confusion(thresholds[rule])

    judged = [
        _judged(rule, thresholds[rule], [matrix(rule, counts) for counts in counted])
        for rule in rules
    ]
    return judged, counts["sweep"]


def judge_saliency(
    run: Run, rules: Sequence[str], parts: Sequence[Part]
) -> tuple[list[Judged], ThresholdSweep, SaliencyHistogram]:
    """Score saliency maps, painted at the threshold of each rule, and as they are.

    Arguments and results as of `judge_cams`.
    """
    thresholds: dict[str, float] = {"fixed": run.config.pseudo_label.threshold}
    if "auto" in rules:
        counts = _count_training_maps(run, run.saliency_dir, "saliency", with_saliency=False)
        thresholds["auto"] = 1.0 if _says_nothing(counts) else counts.auto()
    sweep = ThresholdSweep((*GRID, *thresholds.values()), run.num_classes)
    histogram = SaliencyHistogram(run.num_classes)
    counted = []
    for records, paths in parts:
        count_saliency(sweep, histogram, records, paths, run.num_classes)
        counted.append(copy.deepcopy(sweep))
    thresholds |= {"oracle": sweep.best()} if "oracle" in rules else {}
    judged = [
        _judged(rule, thresholds[rule], [s.confusion(thresholds[rule]) for s in counted])
        for rule in rules
    ]
    return judged, sweep, histogram


def judge_masks(run: Run, parts: Sequence[Part]) -> list[Judged]:
    """Score masks as they are; arguments and results as of `judge_cams`."""
    total = ConfusionMatrix(run.num_classes)
    counted = []
    for records, paths in parts:
        total.counts = total.counts + count_masks(records, paths, run.num_classes).counts
        counted.append(ConfusionMatrix(run.num_classes, total.counts))
    return [_judged("none", None, counted)]


def _judged(rule: str, threshold: Threshold, counted: Sequence[ConfusionMatrix]) -> Judged:
    """Score what was counted after the first part, if there is another, and after all."""
    report = counted[0].scores() if len(counted) > 1 else None
    return Judged(rule, threshold, counted[-1].scores(), report)


def _count_training_maps(run: Run, folder: Path, kind: str, with_saliency: bool) -> MapCounts:
    """Count the maps of `fit`, from which thresholds follow; no mask is opened.

    Args:
        run: whose `fit` it is.
        folder: of the maps.
        kind: of the maps, saliency or cam.
        with_saliency: count how CAMs agree with saliency maps too.
    """
    records = [r for r in run.data.split("fit") if kind == "cam" or r.classes]
    paths = dict(zip(records, maps_of(folder, kind, records), strict=True))
    if with_saliency:
        maps_of(run.saliency_dir, "saliency", records)

    def read(record: Record) -> tuple[np.ndarray, Sequence[int]]:
        return read_map(paths[record], record.classes)

    def read_paired(record: Record) -> np.ndarray:
        return read_saliency(run.saliency_dir / f"{record.name}.png")

    salient_from = run.config.pseudo_label.salient_from
    paired = read_paired if with_saliency else None
    counts = count_maps(records, read, run.num_classes, paired, salient_from, parallel=True)
    print(f"thresholds from {len(paths)} training maps in {folder}")
    return counts


def _without_masks(
    run: Run, place: Place, rules: Sequence[str], count: Callable[[], MapCounts]
) -> dict[str, Threshold]:
    """Return the thresholds of the rules that need no mask; 1 where the maps say nothing."""
    counted: list[MapCounts] = []

    def kept_count() -> MapCounts:
        counted.append(count())
        return counted[0]

    try:
        by_rule = mask_free_thresholds(run, place, rules, kept_count)
    except ValueError:
        if not (counted and _says_nothing(counted[0])):
            raise
        by_rule = {rule: [1.0] * run.num_classes for rule in rules}
    for rule in (rule for rule in rules if rule in PER_CLASS):
        pairs = zip(run.data.class_names, by_rule[rule], strict=True)
        print(f"  {rule}: {', '.join(f'{name} {level:.3f}' for name, level in pairs)}")
    return {
        rule: tuple(thresholds) if rule in PER_CLASS else thresholds[0]
        for rule, thresholds in by_rule.items()
    }


def _says_nothing(counts: MapCounts) -> bool:
    if counts.say_nothing():
        print("all training maps are one value, so all is scored as background")
    return counts.say_nothing()
