"""The one signature behind which all generators stand.

Each module of a generator offers

    prepare(settings, data, records, device) -> Prepared

`data` is what labels and defect-free images are taken from (its `fit` only), `records`
are the images that maps will be asked for, `device` is where a network runs. The map of an image
does not depend on the other `records`. `settings` is the saliency section of a config.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from datasets.record import Record

# (H, W, 3) uint8 RGB of a record -> (H, W) float32 in [0, 1]
MakeMap = Callable[[Record, np.ndarray], np.ndarray]


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
