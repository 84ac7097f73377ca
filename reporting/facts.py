"""What a report says: the figures of results.jsonl, and what the files of each image add up to."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from reporting.images import Shown
from runfolder.marks import seconds_of
from runfolder.results import latest_results, stage_of
from runfolder.run import KINDS, Run
from runfolder.scored import Asked, scored_of
from runfolder.training_log import LOG_NAME, read_training_log
from runfolder.verdicts import SCORES_NAME, verdicts_of
from scoring.confusion import ConfusionMatrix
from scoring.images import Verdicts, image_figures

TRAININGS = {"stac": "localiser", "segmentation": "segmentation network"}  # by folder
CLOSE = 1e-6  # %, of figures that are the same


@dataclass(frozen=True)
class Minutes:
    """How long a run took.

    Attributes:
        total: minutes.
        parts: the same of each part.
        whole: whether all stages are in it, not the trainings alone.
    """

    total: float
    parts: dict[str, float]
    whole: bool


@dataclass(frozen=True)
class Facts:
    """What is known of one split of a run.

    Attributes:
        run: of which.
        split: of its data.
        kind: of the masks that are judged: segmentation or pseudo_label.
        images: of the split.
        verdicts: what was said of them as wholes, without their labels; None where nothing was.
        verdict_kind: who said so: segmentation, or cam for the localiser.
        confusion: pixels of the images that are scored; None without masks.
        rows: latest results.
        notes: what a reader must know of outdated or missing figures.
        image: figures of whole images, as `scoring.images.image_figures` gives them.
        mask: figures against masks: iou by class name, miou and fg_iou, in %.
    """

    run: Run
    split: str
    kind: str
    images: Sequence[Shown]
    verdicts: Verdicts | None
    verdict_kind: str
    confusion: ConfusionMatrix | None
    rows: Sequence[dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    image: dict[str, Any] | None = None
    mask: dict[str, Any] | None = None

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names."""
        return self.run.data.class_names

    @property
    def has_scores(self) -> bool:
        """Tell whether the verdicts have scores other than 0 and 1."""
        if self.verdicts is None:
            return False
        is_file = (self.run.prediction_dir / SCORES_NAME).is_file()
        return self.verdict_kind == "cam" or is_file


def facts_of(run: Run, split: str, kind: str, images: Sequence[Shown]) -> Facts:
    """Collect what is known.

    Figures come from results.jsonl. Those that it lacks are computed as evaluation.py does; where
    it has others than the files give, a note says so.

    Raises:
        ValueError: results.jsonl or a file of the run is damaged.
    """
    rows = latest_results(run.results_path) if run.results_path.is_file() else []
    asked, verdicts = _verdicts(run, split, kind)
    labels = "predicted" if kind == "segmentation" else "given"
    defective = [one for one in images if one.record.classes]
    has_masks = not defective or any(one.record.mask for one in defective)
    scored = scored_of(run, Asked(kind, split, "all", "", labels, False)) if has_masks else None
    confusion = None
    if scored is not None:
        names = {record.name for record in scored.records}
        confusion = confusion_of([o for o in images if o.record.name in names], run.num_classes)
    facts = Facts(run, split, kind, images, verdicts, asked.kind, confusion, rows)
    return replace(facts, image=_image_figures(facts, asked), mask=_mask_figures(facts))


def confusion_of(images: Sequence[Shown], num_classes: int) -> ConfusionMatrix:
    """Add up the pixels of images."""
    total = ConfusionMatrix(num_classes)
    for one in images:
        for (truth, said), count in one.pairs.items():
            total.counts[truth, said] += count
    return total


def _verdicts(run: Run, split: str, kind: str) -> tuple[Asked, Verdicts | None]:
    """Return what was said of whole images: by the second stage, else by the localiser."""
    cam_type = run.config.pseudo_label.cam_type
    if kind == "segmentation":
        asked = Asked("segmentation", split, "all", "", "predicted", False)
    else:
        asked = Asked("cam", split, "all", cam_type, "predicted", False)
        if not run.cam_dir(cam_type, "predicted").is_dir():
            return asked, None
    try:
        return asked, verdicts_of(run, asked)
    except FileNotFoundError:  # CAMs of other images alone
        return asked, None


def row_of(facts: Facts, asked: Asked, part: str, rule: str | None = None) -> dict[str, Any] | None:
    """Return the latest result of what is asked for.

    Args:
        facts: with the results.
        asked: kind, split, labels (predicted ones may be learnt) and CAM type.
        part: key that the result must have.
        rule: of its threshold; None for any.
    """
    origins = ("predicted", "learnt") if asked.labels == "predicted" else (asked.labels,)
    for row in facts.rows:
        of_kind = row["kind"] == asked.kind and row.get("cam_type", "") == asked.cam_type
        of_split = row["split"] == asked.split and row.get("part", "all") == asked.part
        of_rule = rule in (None, row["threshold_rule"])
        fits = of_kind and of_split and of_rule and row["labels"] in origins and part in row
        if fits and not row.get("bound"):
            return row
    return None


def _image_figures(facts: Facts, asked: Asked) -> dict[str, Any] | None:
    if facts.verdicts is None:
        return None
    row = row_of(facts, asked, "image")
    if row is None:
        facts.notes.append(_not_scored(asked.kind, facts.split))
        return image_figures(facts.verdicts, facts.class_names)
    now = image_figures(facts.verdicts, facts.class_names, rounds=1)
    for key, what in (("found", "recall"), ("false_alarms", "false alarms")):
        if not _same(row["image"][key], now[key]):
            facts.notes.append(_outdated(what, row["image"][key], now[key], asked.kind))
    return row["image"]


def _mask_figures(facts: Facts) -> dict[str, Any] | None:
    if facts.confusion is None:
        return None
    labels = "predicted" if facts.kind == "segmentation" else "given"
    asked = Asked(facts.kind, facts.split, "all", "", labels, False)
    scores = facts.confusion.scores()
    names = ("background", *facts.class_names)
    iou = {n: float(v) for n, v in zip(names, scores.iou, strict=True) if not np.isnan(v)}
    row = row_of(facts, asked, "iou")
    if row is None:
        facts.notes.append(_not_scored(facts.kind, facts.split))
        return {"iou": iou, "miou": scores.miou, "fg_iou": scores.fg_iou}
    if not _same(row["miou"], scores.miou):
        facts.notes.append(_outdated("mIoU", row["miou"], scores.miou, facts.kind))
    return row


def _same(first: float | None, second: float | None) -> bool:
    if first is None or second is None:
        return first is second
    return abs(first - second) < CLOSE


def _not_scored(kind: str, split: str) -> str:
    return (
        f"results.jsonl has no result of {kind} on {split} yet; the figures were computed for this "
        f"page. Run evaluation.py --kind {kind} to keep them."
    )


def _outdated(what: str, there: float | None, now: float | None, kind: str) -> str:
    told = ["none" if value is None else f"{value:.2f} %" for value in (there, now)]
    return (
        f"results.jsonl has a {what} of {told[0]}, the files of this run give {told[1]}. "
        f"Run evaluation.py --kind {kind} again."
    )


def minutes_of(run: Run) -> Minutes | None:
    """Return how long a run took; None where nothing tells."""
    if spent := seconds_of(run):
        parts = {name: seconds / 60 for name, seconds in spent.items()}
        done = {path.stem for path in (run.folder / "stages").glob("*.done")}
        return Minutes(sum(parts.values()), parts, whole=done <= set(parts))
    parts = {}
    for folder, name in TRAININGS.items():
        if log := read_training_log(run.folder / folder / LOG_NAME):
            parts[f"training of the {name}"] = sum(line["seconds"] for line in log) / 60
    return Minutes(sum(parts.values()), parts, whole=False) if parts else None


def by_stage(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return results by stage, in the order of the stages."""
    ordered = sorted(rows, key=lambda row: list(KINDS).index(row["kind"]))
    stages: dict[str, list[dict[str, Any]]] = {}
    for row in ordered:
        stages.setdefault(stage_of(row), []).append(row)
    return stages
