"""The folder that is used on a line: models, what must be known of them, and a script."""

import hashlib
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

import numpy
import onnx
import onnxruntime
import PIL
import torch

from datasets.files import write_json, write_text
from exporting.formats import OPSET, file_name
from exporting.models import Exportable
from inference.images import TILE_OVERLAP
from inference.segment import PROBABILITY_FLOOR
from models.pamr import DILATIONS, SHARPNESS
from runfolder.held_out import HELD_OUT_NAME, calibration_of, limits_of, read_held_out
from runfolder.results import origin
from runfolder.run import Run
from scoring.calibration import SCORE_FLOOR

FORMAT = 1  # of model.json; that of the shipped script
FACTS_NAME = "model.json"
SHIPPED = Path(__file__).parent / "shipped"
SCRIPTS = ("stac_onnx.py", "stac_arrays.py", "stac_files.py")


class Wanted(NamedTuple):
    """What the verdicts should be worth, as in predict.py."""

    max_alarms: float
    min_recall: float


def write_product(run: Run, models: Sequence[Exportable], to: Path, wanted: Wanted) -> None:
    """Write model.json, the scripts and README.md next to the ONNX files of the models.

    Args:
        run: whose settings of predictions, CAMs and held-out images are kept.
        models: the second stage, and the localiser if it is to judge too.
        to: the folder; model.json, without which the script does not begin, is written last.
        wanted: shares that the limits of the verdicts are learnt for.
    """
    facts = facts_of(run, models, to, wanted)
    for name in SCRIPTS:
        shutil.copyfile(SHIPPED / name, to / name)
    write_text(to / "README.md", readme(facts))
    write_json(to / FACTS_NAME, facts)


def facts_of(run: Run, models: Sequence[Exportable], to: Path, wanted: Wanted) -> dict[str, Any]:
    """Return the content of model.json; see `write_product`."""
    by_name = {one.name: one for one in models}
    second, localiser = by_name["segmentation"], by_name.get("localiser")
    settings, cam = run.config.segmentation, run.config.cam
    pamr = {"steps": settings.pamr_steps, "dilations": DILATIONS, "sharpness": SHARPNESS}
    return {
        "format": FORMAT,
        "class_names": second.metadata["class_names"],
        "colour": "RGB",
        "range": second.metadata["range"],
        "resize": second.metadata["resize"] + ", rounded to 8 bit",
        "tile_overlap": TILE_OVERLAP,
        "segmentation": _model(second, to, settings.tile)
        | {
            "least_areas": second.metadata["least_areas"],
            "thresholds": [0.5] * len(second.metadata["class_names"]),
            "pamr": pamr,
            "probability_floor": PROBABILITY_FLOOR,
        },
        "localiser": localiser
        and _model(localiser, to, cam.tile)
        | {
            "image_sizes": localiser.metadata["image_sizes"],
            "flip": cam.flip,
            "label_thresholds": localiser.metadata["label_thresholds"],
        },
        "verdict": _limits(run, localiser is not None, wanted),
        "versions": {
            "commit": origin()["commit"],
            "python": platform.python_version(),
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "opset": OPSET,
            "onnxruntime": onnxruntime.__version__,
            "numpy": numpy.__version__,
            "pillow": PIL.__version__,
        },
    }


def _model(one: Exportable, to: Path, tile: int) -> dict[str, Any]:
    path = to / file_name(one, "onnx")
    kept = ("image_size", "multiple_of", "mean", "std")
    return {
        "file": path.name,
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "input": "image",
        "outputs": list(one.outputs),
        **{key: one.metadata[key] for key in kept},
        "tile": tile,
    }


def _limits(run: Run, has_localiser: bool, wanted: Wanted) -> dict[str, Any] | None:
    """Return the limits of the verdicts, None where no image was held out."""
    held_out = read_held_out(run.prediction_dir / HELD_OUT_NAME)
    with_localiser = bool(has_localiser and held_out and held_out[0].localiser)
    limits = limits_of(held_out, with_localiser, *wanted)
    calibration = calibration_of(held_out, with_localiser)
    return limits and {
        "ok_below": limits.ok_below,
        "defective_from": limits.defective_from,
        "with_localiser": with_localiser,
        "calibration": calibration and calibration._asdict(),
        "max_false_alarm": wanted.max_alarms,
        "min_recall": wanted.min_recall,
        "worth": limits.lines(),
    }


def _probability(verdict: dict[str, Any] | None) -> str:
    """Return how the probability of a class follows from its score, in words."""
    if not verdict or not verdict["calibration"]:
        return "none: no image was held out to learn it"
    slope, offsets = verdict["calibration"]["slope"], verdict["calibration"]["offsets"]
    shifts = ", ".join(f"{offset:.4f}" for offset in offsets)
    return (
        f"1 / (1 + exp(-z)), z = {slope:.4f} log(s / (1 - s)) + b; s is the score above, "
        f"{SCORE_FLOOR:g} from 0 and 1 at least, b is {shifts}"
    )


def readme(facts: dict[str, Any]) -> str:
    """Return README.md of the folder."""
    second, localiser, verdict = facts["segmentation"], facts["localiser"], facts["verdict"]
    names = enumerate(facts["class_names"], start=1)
    steps, tile = second["pamr"]["steps"], second["tile"]
    cut = "the picture is seen whole"
    if tile:
        cut = f"tiles of {tile} x {tile} pixels that share a quarter or more of their side, logits "
        cut += "blended (`tiles_of` of `stac_arrays.py`)"
    refine = "nothing (no PAMR in this run)"
    if steps:
        refine = f"the probabilities, {steps} steps of PAMR (`refined` of `stac_arrays.py`)"
    judged = "ok where its mask is empty, else defective (no image was held out to learn limits)"
    if verdict:
        judged = "ok below {ok_below:.4f}, defective from {defective_from:.4f}".format(**verdict)
    by_both = verdict and verdict["with_localiser"]
    scores = "of this network: see score"
    if localiser:
        views = " and ".join(f"{height} x {width}" for height, width in localiser["image_sizes"])
        mirrored = ", and of the mirror images" if localiser["flip"] else ""
        scores = f"`scores` of `{localiser['file']}`, mean of the views of {views}{mirrored}"
    return Template((SHIPPED / "README_template.md").read_text(encoding="utf-8")).substitute(
        classes=", ".join(f"{value} {name}" for value, name in names),
        num_mask_classes=len(facts["class_names"]) + 1,
        height=second["image_size"][0],
        width=second["image_size"][1],
        multiple="{} and {}".format(*second["multiple_of"]),
        mean=", ".join(map(str, second["mean"])),
        std=", ".join(map(str, second["std"])),
        cut=cut,
        refine=refine,
        score=", averaged with its score by the localiser" if by_both else "",
        verdict=judged,
        class_scores=scores,
        probability=_probability(verdict),
    )
