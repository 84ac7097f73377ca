"""Patch features of the training split's defect-free images, for generators that need them."""

import numpy as np
from tqdm import tqdm

from datasets.files import read_image
from datasets.record import spread
from datasets.sources import Data
from saliency.patches import Encoder

MAX_IMAGES = 300
MIN_IMAGES = 4  # defect-free images: two for each half


def encode_surfaces(
    encode: Encoder, data: Data, generator: str
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Encode at most `MAX_IMAGES` defect-free training images, evenly spaced.

    Args:
        encode: of `load_encoder`.
        data: whose training split is looked at.
        generator: named in the error.

    Returns:
        name -> (h, w, D) features, and name -> what is wrong for images that cannot be read.

    Raises:
        ValueError: fewer than `MIN_IMAGES` can be had.
    """
    surfaces = [record for record in data.split("fit") if not record.classes]
    surfaces = spread(surfaces, MAX_IMAGES)
    _refuse_few(len(surfaces), generator)
    features: dict[str, np.ndarray] = {}
    problems: dict[str, str] = {}
    for record in tqdm(surfaces, desc=generator, unit="image", disable=None):
        try:
            features[record.name] = encode(read_image(record.image))
        except (ValueError, FileNotFoundError) as error:
            problems[record.name] = str(error)
    _refuse_few(len(features), generator)
    return features, problems


def _refuse_few(count: int, generator: str) -> None:
    if count < MIN_IMAGES:
        raise ValueError(
            f"saliency.generator={generator}: expected {MIN_IMAGES} or more readable defect-free "
            f"images in the training split, got {count}. Set saliency.generator to contrast or "
            "feature, or add defect-free images."
        )
