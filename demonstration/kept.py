"""The last results, kept in memory so that sliders need no network."""

import secrets
import threading
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.files import Cam
from inference.predictor import Predictor
from inference.results import Seen
from reporting.pictures import cam_bytes, image_bytes

SIDE = 2048  # pixels of the longer side of what the page shows
MOST_RESULTS, MOST_BYTES = 8, 2**31  # that are kept; the newest always is


class Shown(NamedTuple):
    """One image as the page knows it.

    Attributes:
        seen: what the networks say, without pixels and without what the localiser holds.
        picture: WebP of the image.
        cam: WebP layer of the CAMs; None where the localiser was not asked.
        cam_classes: names of the classes in it.
        source: file of the image in the folder of --images, None of an upload.
    """

    seen: Seen
    picture: bytes
    cam: bytes | None
    cam_classes: list[str]
    source: Path | None

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the image."""
        return self.seen.mask.shape

    @property
    def num_bytes(self) -> int:
        """What is kept of it."""
        seen = self.seen
        arrays = (seen.confidence, seen.mask, seen.best, seen.share)
        return sum(a.nbytes for a in arrays) + len(self.picture) + len(self.cam or b"")


class Kept:
    """The newest results by their keys; the oldest is dropped for a new one."""

    def __init__(self) -> None:
        self._results: OrderedDict[str, Shown] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, shown: Shown) -> str:
        """Keep a result and return its key."""
        key = secrets.token_hex(8)
        with self._lock:
            self._results[key] = shown
            while len(self._results) > 1 and self._is_full():
                self._results.popitem(last=False)
        return key

    def __getitem__(self, key: str) -> Shown:
        """Return a result.

        Raises:
            FileNotFoundError: it is not kept.
        """
        with self._lock:
            if key not in self._results:
                raise FileNotFoundError(
                    f"result: expected one of the last {MOST_RESULTS}, got one that is no longer "
                    "kept. Open the image again."
                )
            self._results.move_to_end(key)
            return self._results[key]

    def _is_full(self) -> bool:
        total = sum(shown.num_bytes for shown in self._results.values())
        return len(self._results) > MOST_RESULTS or total > MOST_BYTES


def shown_of(run: Predictor, seen: Seen, source: Path | None) -> Shown:
    """Return what is kept of an image, its pictures made."""
    cam = run.cam(seen)
    return Shown(
        seen._replace(pixels=np.empty((0, 0, 3), np.uint8), localised=None),
        image_bytes(seen.pixels, SIDE),
        None if cam is None else cam_bytes(cam, SIDE),
        [] if cam is None else _names(run, cam),
        source,
    )


def _names(run: Predictor, cam: Cam) -> list[str]:
    return [run.class_names[k] for k in cam.classes]
