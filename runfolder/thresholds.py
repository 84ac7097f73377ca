"""thresholds.json of a run: thresholds that were found without masks.

    {"fused": {"refined": {"agreement": [0.41, 0.38, 0.5], "made_with": "0f3a..."}}}

They are kept by CAM type, kind of map and rule, a threshold per class. A kind of map is raw (as
make_cams.py writes them), refined (along the edges of the image) or refined_with_saliency (weighted
by the saliency map first); these three need different thresholds. "made_with" changes with all that
the thresholds depend on; where it differs they are found anew.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from configs import to_dict
from datasets.files import write_json
from execution import ranks
from runfolder.run import Run
from scoring.thresholds import MapCounts

MAPS = ("raw", "refined", "refined_with_saliency")


class Place(NamedTuple):
    """Which maps thresholds are of."""

    cam_type: str
    maps: str  # of MAPS


def mask_free_thresholds(
    run: Run, place: Place, rules: Iterable[str], count: Callable[[], MapCounts]
) -> dict[str, list[float]]:
    """Return K thresholds by rule: those that are kept, else those of the counted maps.

    Args:
        run: whose training split is looked at.
        place: which maps.
        rules: auto, class, agreement, fixed (pseudo_label.threshold for all).
        count: counts the maps; called where a threshold is missing or outdated.

    Raises:
        ValueError: the maps hold no two different values.
    """
    num_classes, wanted = run.num_classes, list(dict.fromkeys(rules))
    thresholds = {"fixed": [run.config.pseudo_label.threshold] * num_classes}
    content = _read(run)
    kept = content.get(place.cam_type, {}).get(place.maps, {})
    made_with = _made_with(run, place)
    if kept.get("made_with") != made_with or not made_with:
        kept = {}
    thresholds |= {rule: kept[rule] for rule in wanted if rule in kept}
    missing = [rule for rule in wanted if rule not in thresholds]
    if missing:
        counts = count()
        thresholds |= {rule: counts.thresholds(rule) for rule in missing}
        of_place = {**kept, **{r: thresholds[r] for r in missing}, "made_with": made_with}
        content.setdefault(place.cam_type, {})[place.maps] = of_place
        if ranks.is_first():
            write_json(run.thresholds_path, content)
        ranks.wait()  # so that all find, or do not find, the same the next time
    return {rule: thresholds[rule] for rule in wanted}


def rule_for_new_images(run: Run) -> str:
    """Return the rule of the thresholds that new images, which have no saliency map, are cut at.

    Where pseudo labels are weighted by saliency, their own rule belongs to other maps.
    """
    settings = run.config.pseudo_label
    return "agreement" if settings.saliency_weight else settings.threshold_rule


def thresholds_for_new_images(run: Run, class_names: Sequence[str]) -> list[float]:
    """Return the thresholds of the refined CAMs of a run, found by make_pseudo_labels.py.

    Without them they are pseudo_label.threshold for all classes, with a warning.

    Raises:
        ValueError: thresholds.json names another number of classes.
    """
    settings, rule = run.config.pseudo_label, rule_for_new_images(run)
    of_type = _read(run).get(settings.cam_type, {})
    kept = of_type.get("refined", {}).get(rule)
    if kept is None and rule != "fixed":
        print(
            f"warning: {run.thresholds_path} has no thresholds of {settings.cam_type} by {rule}; "
            f"pseudo_label.threshold = {settings.threshold:g} is taken. Run make_pseudo_labels.py."
        )
    if kept is None:
        return [settings.threshold] * len(class_names)
    if len(kept) != len(class_names):
        raise ValueError(
            f"{run.thresholds_path}: expected thresholds of {len(class_names)} classes, got "
            f"{len(kept)}. Run make_pseudo_labels.py again."
        )
    return kept


def _read(run: Run) -> dict[str, Any]:
    path = run.thresholds_path
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not all(isinstance(of_type, Mapping) for of_type in content.values()):
            raise ValueError("other values than tables")
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f"{path}: expected thresholds by CAM type, got: {error}. Remove the file."
        ) from error
    return content


def _made_with(run: Run, place: Place) -> str:
    """Return what changes with the maps and the settings; empty where maps say nothing of them."""
    meta = run.cam_dir(place.cam_type, "given") / "meta.json"
    if not meta.is_file():
        return ""
    saliency = run.saliency_dir / "meta.json"
    settings = to_dict(run.config)
    labels = [(record.name, record.classes) for record in run.data.split("fit")]
    parts = [json.dumps([labels, list(place), settings["pseudo_label"]])]
    for path in (meta, saliency):  # each is written anew with the maps
        if path.is_file():
            parts += [path.read_text(encoding="utf-8"), str(path.stat().st_mtime_ns)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
