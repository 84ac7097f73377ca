"""Which images of a split a sheet shows."""

import difflib
from collections.abc import Sequence

from datasets.record import Record
from reporting import gallery
from reporting.facts import Facts


def named(records: Sequence[Record], names: Sequence[str]) -> list[Record]:
    """Return the records of some names, in the order of the names.

    Raises:
        ValueError: there is no such image; the names nearest to it are told.
    """
    by_name = {record.name: record for record in records}
    for name in names:
        if name not in by_name:
            near = difflib.get_close_matches(name, by_name, n=3) or list(by_name)[:3]
            raise ValueError(
                f"--names {name}: expected an image of the split, got none of that name. "
                f"There is {', '.join(near)}. Correct it, or give another --split."
            )
    return [by_name[name] for name in names]


def worst(facts: Facts) -> list[Record]:
    """Return the images of a split, those first whose masks are wrong.

    With ground truth that is the lowest IoU, without it the surest contradiction of the label;
    images that have none come last.

    Raises:
        ValueError: neither ground truth nor predictions are there.
    """
    orders = [gallery.orders(facts, place) for place in range(len(facts.images))]
    for key in ("iou", "contradiction"):
        values = [order[key] for order in orders]
        if any(value is not None for value in values):
            pairs = zip(values, facts.images, strict=True)
            ranked = sorted(pairs, key=lambda pair: (pair[0] is None, pair[0] or 0.0))
            return [one.record for _, one in ranked]
    raise ValueError(
        f"--worst: expected masks or predictions of {facts.split}, got neither. Run python -m "
        "segmentation.infer first, or choose images by --names or --random."
    )
