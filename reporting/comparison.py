"""Several runs on one page: figures with their differences, and the images that changed most."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from configs import flat
from datasets.record import Record
from reporting import gallery
from reporting.facts import Facts, minutes_of
from reporting.images import COMMON, MASK_PANELS, PANELS, Shown
from reporting.page import environment, legend
from reporting.pictures import class_colours
from runfolder.run import Run
from scoring.lines import percent

RIGHT = 100.0  # IoU of an image that shows no defect in truth and in mask
IGNORED = ("data.root",)  # settings that make no other run


class Bars(NamedTuple):
    """One class, or the mean, in all runs.

    Attributes:
        name: of the class.
        cells: of each run, its value in % (or None) and the value as text, with the difference
            from the first run.
        colour: of the class.
    """

    name: str
    cells: list[tuple[float | None, str]]
    colour: str


def comparison_page(runs: Sequence[Facts], count: int | None) -> tuple[str, int]:
    """Return the page of several runs, and how many images its gallery has.

    Args:
        runs: facts of each, on the same split; the first is what the others are compared with.
        count: of images at most; None for all that fit.

    Raises:
        ValueError: the runs have different classes, or no image in common.
    """
    names = called([facts.run for facts in runs])
    pairs = _in_common(runs)
    found = _entries(runs, pairs, count)
    page = (
        environment()
        .get_template("comparison.html.j2")
        .render(
            title=" against ".join(names),
            names=names,
            split=runs[0].split,
            total=len(pairs),
            notes=[*_notes(runs, names, len(pairs)), *_told(runs, names)],
            figures=figures(runs),
            bars_title="IoU in %" if runs[0].mask else "F1 of whole images in %",
            bars=class_bars(runs),
            settings=different_settings(runs),
            legend=legend(runs[0].class_names),
            entries=found,
            panels=_panels(names, found),
            choices=_choices(runs[0].class_names, found),
        )
    )
    return page, len(found)


def called(runs: Sequence[Run]) -> list[str]:
    """Return what runs are called: their folder, with those above it where two are equal."""
    folders = [run.folder.resolve() for run in runs]
    short = [folder.name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]


def _in_common(runs: Sequence[Facts]) -> list[list[int]]:
    """Return for each image that all runs have its place in each of them."""
    records = [[one.record for one in facts.images] for facts in runs]
    shared = in_common([facts.run for facts in runs], records)
    places = [{record.name: i for i, record in enumerate(of_run)} for of_run in records]
    return [[of_run[record.name] for of_run in places] for record in shared]


def in_common(runs: Sequence[Run], records: Sequence[Sequence[Record]]) -> list[Record]:
    """Return the records of the first run whose images all runs have.

    Args:
        runs: that are compared.
        records: of one split of each.

    Raises:
        ValueError: the runs have different classes, or no image in common.
    """
    classes = {run.data.class_names for run in runs}
    if len(classes) > 1:
        told = " and ".join(", ".join(names) for names in sorted(classes))
        raise ValueError(f"runs: expected the same classes in all, got {told}. Leave one out.")
    shared = set.intersection(*({record.name for record in of_run} for of_run in records))
    if not shared:
        raise ValueError(
            "runs: expected images that all have, got none. Check data.root, or give another "
            "--split."
        )
    return [record for record in records[0] if record.name in shared]


def _notes(runs: Sequence[Facts], names: Sequence[str], shared: int) -> list[str]:
    """Say where the figures of two runs are not of the same images or the same kind of mask."""
    notes = [
        f"{name} has {len(facts.images)} images, {shared} of them in all runs; its figures are of "
        "all of its own."
        for name, facts in zip(names, runs, strict=True)
        if len(facts.images) != shared
    ]
    if len({facts.kind for facts in runs}) > 1:
        kinds = ", ".join(f"{n}: {facts.kind}" for n, facts in zip(names, runs, strict=True))
        notes.append(f"The masks are not of one stage: {kinds}.")
    return notes


def _told(runs: Sequence[Facts], names: Sequence[str]) -> list[str]:
    pairs = zip(names, runs, strict=True)
    return [f"{name}: {note}" for name, facts in pairs for note in facts.notes]


def figures(runs: Sequence[Facts]) -> list[list[str]]:
    """Return the figures that matter: a row each, with its title and a cell for each run."""
    rows = []
    for title, key in (("defects flagged %", "found"), ("false alarms %", "false_alarms")):
        rows.append([title, *_differences([(facts.image or {}).get(key) for facts in runs])])
    for title, key in (("mIoU %", "miou"), ("all defects as one, IoU %", "fg_iou")):
        rows.append([title, *_differences([(facts.mask or {}).get(key) for facts in runs])])
    times = [minutes_of(facts.run) for facts in runs]
    rows.append(["minutes", *("-" if time is None else f"{time.total:.1f}" for time in times)])
    return rows


def class_bars(runs: Sequence[Facts]) -> list[Bars]:
    """Return the bars of each class: IoU where the first run has masks, else F1 of images."""
    names = runs[0].class_names
    made = []
    for name, colour in zip(names, class_colours(len(names)), strict=True):
        if runs[0].mask:
            values = [(facts.mask or {"iou": {}})["iou"].get(name) for facts in runs]
        else:
            classes = [(facts.image or {"classes": {}})["classes"] for facts in runs]
            values = [of_run.get(name, {}).get("f1") for of_run in classes]
        made.append(Bars(name, list(zip(values, _differences(values), strict=True)), colour))
    return made


def _differences(values: Sequence[float | None]) -> list[str]:
    """Return values as text, all but the first with their difference from it."""
    first, *others = values
    told = [percent(first)]
    for value in others:
        known = value is not None and first is not None
        told.append(percent(value) + (f" ({value - first:+.2f})" if known else ""))
    return told


def different_settings(runs: Sequence[Facts]) -> list[list[str]]:
    """Return the settings that differ: name, and value in each run."""
    of_runs = [flat(facts.run.config) for facts in runs]
    rows = [[key, *(str(settings[key]) for settings in of_runs)] for key in of_runs[0]]
    return [row for row in rows if len(set(row[1:])) > 1 and row[0] not in IGNORED]


def change(images: Sequence[Shown]) -> float:
    """Return how much the runs differ in an image, from 0 to 100.

    The largest difference in IoU; without ground truth in the area, or 100 where the classes
    differ. An image without a defect in truth and mask has an IoU of 100.
    """
    if all(one.true_areas is not None for one in images):
        values = [_overlap(one) for one in images]
    elif len({frozenset(one.areas) for one in images}) > 1:
        return 100.0
    else:
        values = [100 * one.area for one in images]
    return max(values) - min(values)


def _overlap(one: Shown) -> float:
    return RIGHT if one.iou is None else one.iou


def _entries(
    runs: Sequence[Facts], pairs: Sequence[Sequence[int]], count: int | None
) -> list[dict[str, Any]]:
    """Return what the script needs of the images, those that changed most first."""
    every = [[facts.images[i] for facts, i in zip(runs, at, strict=True)] for at in pairs]
    every.sort(key=lambda images: (-change(images), images[0].record.name))
    found, room = [], gallery.MAX_BYTES
    for images in every[:count]:
        first, last = images[0], images[-1]
        made = {key: first.pictures[key] for key in COMMON if key in first.pictures}
        for number, (facts, one) in enumerate(zip(runs, images, strict=True)):
            made[f"run{number}"] = one.pictures[MASK_PANELS[facts.kind]]
        room -= gallery.text_size(made)
        if room < 0:
            break
        gain = _overlap(last) - _overlap(first) if first.true_areas is not None else None
        better = [("better" if gain > 0 else "worse")] if gain else []
        found.append(
            {
                "name": first.record.name,
                "caption": _caption(images, runs[0].class_names),
                "size": first.size,
                "tags": [*(f"class-{k}" for k in first.record.classes), *better],
                "order": {
                    "change": -change(images),
                    "gain": None if gain is None else -gain,
                    "loss": gain,
                },
                "pictures": gallery.encoded(made),
            }
        )
    return found


def _caption(images: Sequence[Shown], class_names: Sequence[str]) -> str:
    label = ", ".join(class_names[k] for k in images[0].record.classes) or "no defect"
    if images[0].true_areas is None:
        told = [f"{100 * one.area:.2f} %" for one in images]
        return f"label: {label}; area: {', '.join(told)}"
    told = ["nothing to find" if one.iou is None else f"{one.iou:.1f} %" for one in images]
    return f"label: {label}; IoU: {', '.join(told)}"


def _panels(names: Sequence[str], found: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    used = {key for one in found for key in one["pictures"]}
    common = [
        {"key": key, "title": PANELS[key].title, "mime": PANELS[key].mime}
        for key in COMMON
        if key in used
    ]
    mime = PANELS["prediction"].mime
    return common + [
        {"key": f"run{number}", "title": name, "mime": mime} for number, name in enumerate(names)
    ]


def _choices(names: Sequence[str], found: Sequence[dict[str, Any]]) -> dict[str, dict[str, str]]:
    orders = {"change": "largest change", "gain": "last run better", "loss": "last run worse"}
    tags = {"better": "last run better", "worse": "last run worse"}
    known = {key for one in found for key, value in one["order"].items() if value is not None}
    used = {tag for one in found for tag in one["tags"]}
    return {
        "orders": {k: title for k, title in orders.items() if k in known} | {"name": "name"},
        "classes": {f"class-{k}": name for k, name in enumerate(names)},
        "tags": {tag: title for tag, title in tags.items() if tag in used},
    }
