"""Patch features of the defect-free images that are trained on, for generators that need them."""

from collections.abc import Sequence

import numpy as np

from datasets.files import read_image
from datasets.record import Record, spread
from datasets.sources import Data
from datasets.splits import folds
from execution.progress import progress
from saliency.patches import Encoder

MAX_IMAGES = 300
MIN_HALF = 2  # images


def encode_surfaces(
    encode: Encoder, data: Data, generator: str
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Encode at most `MAX_IMAGES` defect-free training images, evenly spaced.

    Args:
        encode: of `load_encoder`.
        data: whose `fit` is looked at.
        generator: named in the error.

    Returns:
        name -> (h, w, D) features, and name -> what is wrong for images that cannot be read.

    Raises:
        ValueError: they are too few, see `can_be_halved`.
    """
    surfaces = [record for record in data.split("fit") if not record.classes]
    surfaces = spread(surfaces, MAX_IMAGES)
    _refuse_few(surfaces, generator)
    features: dict[str, np.ndarray] = {}
    problems: dict[str, str] = {}
    for record in progress(surfaces, generator):
        try:
            features[record.name] = encode(read_image(record.image))
        except (ValueError, FileNotFoundError) as error:
            problems[record.name] = str(error)
    _refuse_few([record for record in surfaces if record.name in features], generator)
    return features, problems


def can_be_halved(surfaces: Sequence[Record]) -> bool:
    """Tell whether images can be divided into two halves of `MIN_HALF` that share no picture."""
    halves = list(folds(surfaces, 2).values())
    return min(halves.count(half) for half in (0, 1)) >= MIN_HALF


def _refuse_few(surfaces: Sequence[Record], generator: str) -> None:
    if not can_be_halved(surfaces):
        groups = len({record.group for record in surfaces})
        raise ValueError(
            f"saliency.generator={generator}: expected {2 * MIN_HALF} or more readable defect-free "
            f"images to train on, in two halves that show no picture twice, got {len(surfaces)} in "
            f"{groups} groups. Set saliency.generator to contrast or feature, or add defect-free "
            "images."
        )
