"""The images of a page, as the script of the page reads them."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from datasets.record import Record, spread
from execution.cores import on_cores
from execution.progress import progress
from reporting.facts import Facts
from reporting.images import Shown, look
from reporting.pictures import SIDES
from reporting.words import caption, sureness
from runfolder.run import Run

MAX_BYTES = 13_500_000  # of all pictures, as text; the whole page stays below 15 MB
TRIED = 16  # images whose pictures tell how large those of all will be
MARGIN = 1.15  # by which the others may be larger than these

ORDERS = {  # sort keys of an image: what the page calls them; the lowest value comes first
    "iou": "worst IoU",
    "sure": "least sure",
    "area": "largest area",
    "contradiction": "label contradicted",
    "name": "name",
}
TAGS = {
    "several": "several classes",
    "defect-free": "defect-free",
    "false-alarm": "false alarm",
    "missed": "missed",
    "contradicted": "label contradicted",
}


def look_at_all(run: Run, kind: str, records: Sequence[Record]) -> list[Shown]:
    """Read the files of all images, with pictures as large as the page can take."""
    side = fitting_side(run, kind, records)
    looked = on_cores(lambda record: look(run, kind, record, side), records)
    return list(progress(looked, "report", len(records)))


def fitting_side(run: Run, kind: str, records: Sequence[Record]) -> int:
    """Return the largest of `SIDES` at which the pictures of all images fit the page.

    The smallest, if none does.
    """
    tried = spread(records, TRIED)
    for side in SIDES[:-1]:
        sizes = [text_size(look(run, kind, record, side).pictures) for record in tried]
        if MARGIN * sum(sizes) / len(tried) * len(records) <= MAX_BYTES:
            return side
    return SIDES[-1]


def text_size(pictures: Mapping[str, bytes]) -> int:
    """Return how many letters the pictures of an image take."""
    return sum(-(-len(content) // 3) * 4 for content in pictures.values())


def kept(facts: Facts, count: int | None) -> list[int]:
    """Return the places of the images that are shown, all that fit, the most telling ones first.

    Args:
        facts: of all images.
        count: at most so many; None for all.
    """
    judged = facts.kind == "segmentation"

    def order(place: int) -> tuple[Any, ...]:
        one = facts.images[place]
        wrong = judged and bool(one.extra or one.missed)
        worst = 101.0 if one.iou is None else one.iou
        return not wrong, worst, -one.area, one.record.name

    places, room = [], MAX_BYTES
    for place in sorted(range(len(facts.images)), key=order)[:count]:
        room -= text_size(facts.images[place].pictures)
        if room < 0:
            break
        places.append(place)
    return places


def entries(facts: Facts, places: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Give what the script needs of each image."""
    for place in places:
        one = facts.images[place]
        yield {
            "name": one.record.name,
            "caption": caption(one, facts.class_names),
            "size": one.size,
            "tags": tags(facts, one),
            "order": orders(facts, place),
            "pictures": encoded(one.pictures),
        }


def encoded(pictures: Mapping[str, bytes]) -> dict[str, str]:
    """Return pictures as text."""
    return {key: base64.b64encode(content).decode() for key, content in pictures.items()}


def tags(facts: Facts, one: Shown) -> list[str]:
    """Return what an image can be filtered by: class-<k> of its label, and `TAGS`."""
    found = [f"class-{k}" for k in one.record.classes]
    if facts.kind == "segmentation":
        said = {
            "false-alarm": bool(one.areas) and not one.record.classes,
            "missed": not one.areas and bool(one.record.classes),
            "contradicted": bool(one.extra or one.missed),
        }
        found += [tag for tag, holds in said.items() if holds]
    return [
        *found,
        *(["several"] if len(one.record.classes) > 1 else []),
        *(["defect-free"] if not one.record.classes else []),
    ]


def orders(facts: Facts, place: int) -> dict[str, float | None]:
    """Return where an image stands by each of `ORDERS`; None is last."""
    one = facts.images[place]
    judged = facts.kind == "segmentation"
    return {
        "iou": one.iou,
        "sure": sureness(facts, place) if judged and facts.has_scores else None,
        "area": -one.area,
        "contradiction": -contradiction(facts, place) if judged else None,
    }


def contradiction(facts: Facts, place: int) -> float:
    """Return how surely the verdict differs from the label: 0 where it does not.

    The scores of the classes that the label lacks, and the distances from 1 of those that the mask
    lacks, added.
    """
    one, scores = facts.images[place], facts.verdicts.scores[place]
    extra = sum(float(scores[k]) for k in one.extra)
    return extra + sum(1 - float(scores[k]) for k in one.missed)


def choices(found: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the sort keys, classes and filters that the images can be shown by.

    Args:
        found: `entries`.
        names: of the K classes.
    """
    known = {key for one in found for key, value in one["order"].items() if value is not None}
    used = {tag for one in found for tag in one["tags"]}
    return {
        "orders": {k: title for k, title in ORDERS.items() if k in known or k == "name"},
        "classes": {f"class-{k}": name for k, name in enumerate(names)},
        "tags": {tag: title for tag, title in TAGS.items() if tag in used},
    }
