"""Cells and captions of the sheets that people look at."""

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from datasets.files import voc_palette
from datasets.record import BACKGROUND, IGNORE

CELL = 160  # pixels, both sides
GAP = 4
CAPTION, FONT_SIZE = 24, 15  # height of the captions, and of their letters
MASK_STRENGTH = 0.6  # of the colours over the image


def paint_mask(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Lay mask colours over an image; background keeps the image, 255 becomes white.

    Args:
        image: (H, W, 3) uint8.
        mask: (H, W) uint8 mask values.

    Returns:
        (H, W, 3) in [0, 1].
    """
    colours = voc_palette()
    colours[IGNORE] = 255
    alpha = MASK_STRENGTH * (mask != BACKGROUND)[..., None]
    return (1 - alpha) * image / 255 + alpha * colours[mask] / 255


def fit_cell(picture: np.ndarray) -> np.ndarray:
    """Return a uint8 cell with an (H, W, 3) picture in [0, 1], at its own aspect."""
    cell = np.zeros((CELL + GAP, CELL + GAP, 3), np.uint8)
    scale = CELL / max(picture.shape[:2])
    height, width = (max(1, round(scale * side)) for side in picture.shape[:2])
    fitted = cv2.resize(picture.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    cell[:height, :width] = np.round(255 * np.clip(fitted, 0, 1))
    return cell


def caption_row(captions: Sequence[str]) -> np.ndarray:
    """Return a white row of (CAPTION, columns * cell, 3) uint8 with a caption over each column."""
    row = Image.new("RGB", ((CELL + GAP) * len(captions), CAPTION), "white")
    draw = ImageDraw.Draw(row)
    try:
        font = ImageFont.load_default(FONT_SIZE)
    except TypeError:  # Pillow 10.0 has one size only
        font = ImageFont.load_default()
    for i, caption in enumerate(captions):
        left = i * (CELL + GAP) + (CELL - draw.textlength(caption, font)) / 2
        draw.text((left, (CAPTION - FONT_SIZE) / 2), caption, "black", font)
    return np.array(row)


def colour_legend(class_names: Sequence[str]) -> str:
    """Say which colour `paint_mask` gives to each class."""
    colours = voc_palette()
    named = (f"{name} {tuple(colours[k + 1].tolist())}" for k, name in enumerate(class_names))
    return f"RGB of the classes: {', '.join(named)}"
