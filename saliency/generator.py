"""The one signature behind which all generators stand.

Each module of a generator offers

    prepare(settings, data, records, device) -> Prepared

`data` is what labels and defect-free images are taken from (its training split only), `records`
are the images that maps will be asked for, `device` is where a network runs. The map of an image
does not depend on the other `records`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from datasets.record import Record

# (H, W, 3) uint8 RGB of a record -> (H, W) float32 in [0, 1]
MakeMap = Callable[[Record, np.ndarray], np.ndarray]


class Settings(Protocol):
    """What generators need to know; `configs.SaliencyConfig` has it."""

    folder: str
    blur: float
    windows: tuple[float, ...]
    class_windows: tuple[float, ...]
    percentile: float
    polarity: str
    backbone: str
    weights: str
    image_size: int
    block: int
    affinity_block: int
    grain: str
    feature_method: str
    memory_images: int
    coreset: int
    false_alarm: float
    fuse: tuple[str, ...]
    fuse_rule: str
    fuse_auroc: float
    smoothing: int
    empty_defect_free: bool


@dataclass(frozen=True)
class Prepared:
    """A generator that has learnt what it needs.

    Attributes:
        make_map: gives the map of a record and its image; a defect-free image has a real one.
        facts: what was learnt, for meta.json.
        lines: the same to be printed.
        problems: images that could not be read while learning; name -> what is wrong.
    """

    make_map: MakeMap
    facts: dict[str, object] = field(default_factory=dict)
    lines: tuple[str, ...] = ()
    problems: dict[str, str] = field(default_factory=dict)
