"""The first screen of a report: what was found, how good it is, and where it fails."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from datasets.record import BACKGROUND
from reporting.facts import Facts, Minutes
from reporting.images import Shown
from reporting.pictures import class_colours
from scoring.lines import percent

WHO = {  # says what of whole images
    "segmentation": "the segmentation network, which sees no label,",
    "cam": "the localiser, without seeing labels,",
}
NUM_TELLING = 6


class Key(NamedTuple):
    """One of the figures that matter.

    Attributes:
        title: what it is of.
        value: in large letters.
        text: what it means.
    """

    title: str
    value: str
    text: str


class Bar(NamedTuple):
    """One class.

    Attributes:
        name: of the class.
        colour: of the class.
        percent: length; None where the images do not tell.
        value: the same as text.
        text: further figures.
        weakest: whether it is the lowest of several.
    """

    name: str
    colour: str
    percent: float | None
    value: str
    text: str
    weakest: bool


class Telling(NamedTuple):
    """An image of the first screen.

    Attributes:
        why: it is there.
        place: of the image among `Facts.images`.
    """

    why: str
    place: int


def sentences(facts: Facts) -> dict[str, str]:
    """Return what was found, how good that is and where it fails."""
    told = {"Found": _found(facts), "How good": _how_good(facts), "Where it fails": _fails(facts)}
    return {title: text for title, text in told.items() if text}


def _found(facts: Facts) -> str:
    images, names = facts.images, facts.class_names
    shows = sum(bool(one.areas) for one in images)
    counts = {name: sum(k in one.areas for one in images) for k, name in enumerate(names)}
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    each = ", ".join(f"{name} in {count}" for name, count in ordered[:8])
    more = f" and {len(ordered) - 8} classes more" if len(ordered) > 8 else ""
    what = "The masks" if facts.kind == "segmentation" else "The pseudo labels, made with labels,"
    return (
        f"{what} show a defect in {shows} of {len(images)} images and nothing in "
        f"{len(images) - shows}: {each}{more}."
    )


def _how_good(facts: Facts) -> str:
    parts = []
    if facts.image:
        good = f"{_of_good(facts)} of {facts.image['good']} good ones"
        alarm = f", and raises a false alarm in {good}" if facts.image["good"] else ""
        who = WHO[facts.verdict_kind]
        flagged = f"{_flagged(facts)} of {facts.image['defective']} images with a defect"
        parts.append(f"{who[0].upper()}{who[1:]} flags {flagged}{alarm}.")
    if facts.mask:
        counts = facts.confusion.counts
        empty = 100 * counts[BACKGROUND].sum() / counts.sum() / len(facts.mask["iou"])
        parts.append(
            f"Its masks overlap the true ones by {percent(facts.mask['miou'])} % (mIoU, background "
            f"included); masks without any defect would reach {empty:.2f} %."
        )
    return " ".join(parts)


def _flagged(facts: Facts) -> int:
    return round((facts.image["found"] or 0) * facts.image["defective"] / 100)


def _of_good(facts: Facts) -> int:
    return round((facts.image["false_alarms"] or 0) * facts.image["good"] / 100)


def _fails(facts: Facts) -> str:
    parts = []
    if facts.mask:
        iou = {name: facts.mask["iou"].get(name) for name in facts.class_names}
        known = {name: value for name, value in iou.items() if value is not None}
        if known:
            name = min(known, key=known.get)
            row = facts.class_names.index(name) + 1
            parts.append(f"Weakest is {name} (IoU {percent(known[name])} %): {_why(facts, row)}.")
    elif facts.image:
        classes = facts.image["classes"]
        told = {name: one for name, one in classes.items() if one["f1"] is not None}
        if told:
            name = min(told, key=lambda name: told[name]["f1"])
            one = told[name]
            parts.append(
                f"Weakest is {name} (F1 {percent(one['f1'])} %): missed in {one['missed']} of "
                f"{one['hit'] + one['missed']} images, named by mistake in {one['extra']}."
            )
    if facts.verdicts is not None and facts.kind == "segmentation":
        other = sum(bool(one.extra and one.record.classes and one.areas) for one in facts.images)
        missed = sum(not one.areas and bool(one.record.classes) for one in facts.images)
        alarms = sum(bool(one.areas) and not one.record.classes for one in facts.images)
        parts.append(
            f"Defective images without a mask: {missed}. Good images with one: {alarms}. Defective "
            f"images with another class than their label: {other}."
        )
    low = [one.iou for one in facts.images if one.iou is not None and one.record.classes]
    if facts.mask and low:
        count = sum(iou < 50 for iou in low)
        parts.append(f"In {count} of {len(low)} defective images the IoU is below 50 %.")
    return " ".join(parts)


def _why(facts: Facts, row: int) -> str:
    """Say what the errors of a class, whose mask value is `row`, mostly are."""
    counts, names = facts.confusion.counts, ("background", *facts.class_names)
    others = [k for k in range(1, len(counts)) if k != row]
    errors = {
        f"true pixels of {names[row]} that were left out": int(counts[row, BACKGROUND]),
        f"sound surface that was marked as {names[row]}": int(counts[BACKGROUND, row]),
        **{f"mixed up with {names[k]}": int(counts[row, k] + counts[k, row]) for k in others},
    }
    wrong = sum(errors.values())
    if not wrong:
        return "no pixel is wrong"
    text = max(errors, key=errors.get)
    return f"{100 * errors[text] / wrong:.0f} % of its wrong pixels are {text}"


def keys(facts: Facts, minutes: Minutes | None) -> list[Key]:
    """Return the figures that matter, as far as they are known."""
    found = []
    if facts.image:
        image, good = facts.image, facts.image["good"]
        told = f"{_flagged(facts)} of {image['defective']} images with a defect"
        found.append(
            Key("Defects flagged", f"{percent(image['found'])} %", told + _interval(image, "found"))
        )
        told = f"{_of_good(facts)} of {good} images without a defect"
        told = told + _interval(image, "false_alarms") if good else "no image without a defect"
        value = f"{percent(image['false_alarms'])} %" if good else "-"
        found.append(Key("False alarms", value, told))
    if facts.mask:
        fg = percent(facts.mask["fg_iou"])
        text = f"overlap with true masks, background included; all defects as one: {fg} %"
        found.append(Key("mIoU", f"{percent(facts.mask['miou'])} %", text))
    if minutes:
        longest = sorted(minutes.parts.items(), key=lambda item: -item[1])[:3]
        text = ", ".join(f"{name} {_minutes(part)}" for name, part in longest)
        text = f"all stages; {text}" if minutes.whole else f"{text}; no other stage was timed"
        found.append(Key("Minutes", _minutes(minutes.total), text))
    return found


def _minutes(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def _interval(image: dict, key: str) -> str:
    between = image["interval"][key]
    return f"; 95 % interval {between[0]:.1f} to {between[1]:.1f}" if between else ""


def bars(facts: Facts) -> tuple[str, list[Bar]]:
    """Return what the bars are of, and a bar per class: IoU, else F1 of images, else areas."""
    names, colours = facts.class_names, class_colours(len(facts.class_names))
    classes = facts.image["classes"] if facts.image else {}
    counted = [sum(k in one.areas for one in facts.images) for k in range(len(names))]
    if facts.mask:
        title, values = "IoU per class in %", [facts.mask["iou"].get(name) for name in names]
    elif facts.image:
        title, values = "F1 of whole images per class in %", [classes[n]["f1"] for n in names]
    else:
        title = "Images with the class in %"
        values = [100 * count / max(1, len(facts.images)) for count in counted]
    known = [value for value in values if value is not None]
    made = []
    for name, colour, value, count in zip(names, colours, values, counted, strict=True):
        text = f"in {count} masks"
        if name in classes:
            one = classes[name]
            text = f"named in {one['hit']} of its {one['hit'] + one['missed']} images, "
            text += f"by mistake in {one['extra']}"
        weakest = len(known) > 1 and value == min(known) and bool(facts.mask or facts.image)
        made.append(Bar(name, colour, value, percent(value), text, weakest))
    return title, made


def telling(facts: Facts) -> list[Telling]:
    """Choose the six images that tell most: a typical one, and the worst of each kind of error."""
    images = facts.images
    judged = facts.kind == "segmentation"
    typical = [i for i, one in enumerate(images) if one.record.classes and one.areas]
    middle = _middle(images, typical)

    def is_missed(one: Shown) -> bool:
        return judged and bool(one.record.classes) and not one.areas

    def is_alarm(one: Shown) -> bool:
        return judged and not one.record.classes and bool(one.areas)

    def is_other(one: Shown) -> bool:
        return judged and bool(one.extra and one.record.classes)

    def has_overlap(one: Shown) -> bool:
        return bool(one.areas) and one.iou is not None

    def true_area(one: Shown) -> float:
        return sum((one.true_areas or {}).values())

    kinds: list[tuple[str, Callable[[Shown], bool], Callable[[int], float]]] = [
        ("Missed", is_missed, lambda i: true_area(images[i])),
        ("False alarm", is_alarm, lambda i: images[i].area),
        ("Another class", is_other, lambda i: sum(images[i].areas[k] for k in images[i].extra)),
        ("Least overlap", has_overlap, lambda i: -images[i].iou),
    ]
    if judged and facts.has_scores:
        kinds.append(("Least sure", lambda one: True, lambda i: -sureness(facts, i)))
    kinds.append(("Largest area", lambda one: bool(one.areas), lambda i: images[i].area))
    chosen = [Telling("Typical", middle)] if middle is not None else []
    while len(chosen) < min(NUM_TELLING, len(images)):
        before = len(chosen)
        for why, fits, weight in kinds:
            used = {one.place for one in chosen}
            left = [i for i, one in enumerate(images) if i not in used and fits(one)]
            if left and len(chosen) < NUM_TELLING:
                chosen.append(Telling(why, max(left, key=weight)))
        if len(chosen) == before:
            break
    return chosen


def _middle(images: Sequence[Shown], places: Sequence[int]) -> int | None:
    """Return the place of the median IoU, or of the median area where there is no truth."""
    if not places:
        return None
    with_iou = [i for i in places if images[i].iou is not None]
    ordered = sorted(with_iou, key=lambda i: images[i].iou)
    ordered = ordered or sorted(places, key=lambda i: images[i].area)
    return ordered[len(ordered) // 2]


def sureness(facts: Facts, place: int) -> float:
    """Return the distance of an image's least sure class score from 1/2, scaled to [0, 1]."""
    return float(np.abs(2 * facts.verdicts.scores[place] - 1).min())


def caption(one: Shown, class_names: Sequence[str]) -> str:
    """Say what the label and the mask of an image show."""
    label = ", ".join(class_names[k] for k in one.record.classes) or "no defect"
    areas = sorted(one.areas.items(), key=lambda item: -item[1])
    said = ", ".join(f"{class_names[k]} {100 * share:.2f} %" for k, share in areas) or "nothing"
    overlap = "" if one.iou is None else f"; IoU {one.iou:.1f} %"
    return f"label: {label}; mask: {said}{overlap}"
