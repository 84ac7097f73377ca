"""What the page says of a kept result, for each position of its sliders."""

from pathlib import PurePosixPath
from typing import Annotated as Typed
from typing import Any

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from demonstration.kept import SIDE, Shown
from inference.annotations import Annotated, coco_page, entry_of
from inference.predictor import Predictor
from inference.results import Result
from reporting.pictures import MASK_MIME, data_uri, mask_bytes

MOST_OBJECTS = 300  # that the page lists, the largest


class View(BaseModel):
    """Where the sliders stand.

    Attributes:
        threshold: see `Predictor.cut`; None: as the run has it.
        min_area: smaller objects, in pixels, are left out; None: as learnt from the pseudo labels.
        keep_all: an image that is ok keeps its mask.
    """

    model_config = ConfigDict(extra="forbid")

    threshold: Typed[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    min_area: Typed[int, Field(ge=0)] | None = None
    keep_all: bool = False


def result_of(run: Predictor, shown: Shown, view: View) -> Result:
    """Return the mask and the objects of a kept result; no network runs."""
    seen = run.cut(shown.seen, view.threshold)
    if view.min_area is None:
        seen = run.without_specks(seen)
    return run.judged(seen, view.min_area or 0, view.keep_all)


def state_of(run: Predictor, shown: Shown, view: View) -> dict[str, Any]:
    """Return what the page shows of a result."""
    result = result_of(run, shown, view)
    height, width = shown.size
    numbered = sorted(enumerate(result.objects), key=lambda item: -item[1]["area_px"])
    return {
        "name": result.record.image.name,
        "height": height,
        "width": width,
        "verdict": result.verdict,
        "why": _why(run, result),
        "class_scores": result.class_scores,
        "cam_classes": None if shown.cam is None else shown.cam_classes,
        "mask": layer_of(result.mask, len(run.class_names)),
        "num_objects": len(result.objects),
        "objects": [_listed(i, one, shown.size) for i, one in numbered[:MOST_OBJECTS]],
    }


def layer_of(mask: np.ndarray, num_classes: int) -> str:
    """Return mask values (H, W) as the address of a transparent picture of `SIDE`."""
    return data_uri(mask_bytes(mask, num_classes, SIDE), MASK_MIME)


def coco_of(run: Predictor, result: Result) -> dict[str, Any]:
    """Return the COCO file of one image, with run lengths."""
    file, size, names = result.record.image, result.mask.shape, run.class_names
    entries = [entry_of(one, size, "coco", names) for one in result.objects]
    image = Annotated(file.stem, file, PurePosixPath(file.name), size, {"coco": entries})
    return coco_page("coco", [image], names)


def _why(run: Predictor, result: Result) -> str:
    """Say what the verdict follows from."""
    if run.limits is None:
        return "No image was held out, so the verdict follows from the mask: any object counts."
    return f"{result.reason.capitalize()}. Sliders do not change it."


def _listed(index: int, one: dict[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """Return an object as the page lists it; its outline is as fine as the page shows it."""
    exact = (np.array(contour, np.int32) for contour in one["contours"])
    outlines = [cv2.approxPolyDP(c[:, None], max(size) / SIDE, True)[:, 0] for c in exact]
    return {
        "index": index,
        "class": one["class"],
        "area_px": one["area_px"],
        "score": one["score"],
        "outlines": [outline.tolist() for outline in outlines],
    }
