"""Cells and captions of the sheets that people look at."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from datasets.files import voc_palette
from datasets.record import BACKGROUND, IGNORE

CELL = 160  # pixels, both sides
GAP = 4
CAPTION, FONT_SIZE = 24, 15  # height of the captions, and of their letters
MASK_STRENGTH = 0.6  # of the colours over the image
CAM_GROUND = 0.6  # brightness of the image below CAMs


def paint_mask(
    image: np.ndarray, mask: np.ndarray, colours: np.ndarray | None = None
) -> np.ndarray:
    """Lay mask colours over an image; background keeps the image, 255 becomes white.

    Args:
        image: (H, W, 3) uint8.
        mask: (H, W) uint8 mask values.
        colours: (256, 3) uint8, of the mask values; None for those of VOC masks.

    Returns:
        (H, W, 3) in [0, 1].
    """
    if colours is None:
        colours = voc_palette()
        colours[IGNORE] = 255
    alpha = MASK_STRENGTH * (mask != BACKGROUND)[..., None]
    return (1 - alpha) * image / 255 + alpha * colours[mask] / 255


def paint_cam(
    image: np.ndarray, cam: np.ndarray, classes: np.ndarray, colours: np.ndarray | None = None
) -> np.ndarray:
    """Lay CAMs over a darkened image: each pixel in the colour of its highest class.

    Args:
        image: (H, W, 3) uint8.
        cam: (M, H, W) in [0, 1]; M may be 0.
        classes: (M,) foreground indices.
        colours: as of `paint_mask`.

    Returns:
        (H, W, 3) in [0, 1].
    """
    dark = CAM_GROUND * image.mean(axis=2, keepdims=True) / 255
    if not len(classes):
        return np.repeat(dark, 3, axis=2)
    colours = voc_palette() if colours is None else colours
    alpha = cam.max(axis=0)[..., None]
    return (1 - alpha) * dark + alpha * colours[classes + 1][cam.argmax(axis=0)] / 255


def paint_grey(saliency: np.ndarray) -> np.ndarray:
    """Return a map (H, W) in [0, 1] as a picture (H, W, 3)."""
    return np.repeat(saliency[..., None], 3, axis=2)


def fit_cell(picture: np.ndarray) -> np.ndarray:
    """Return a uint8 cell with an (H, W, 3) picture in [0, 1], at its own aspect."""
    cell = np.zeros((CELL + GAP, CELL + GAP, 3), np.uint8)
    scale = CELL / max(picture.shape[:2])
    height, width = (max(1, round(scale * side)) for side in picture.shape[:2])
    fitted = cv2.resize(picture.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    cell[:height, :width] = np.round(255 * np.clip(fitted, 0, 1))
    return cell


def caption_row(captions: Sequence[str]) -> np.ndarray:
    """Return a white row of (CAPTION, columns * cell, 3) uint8 with a caption over each column.

    A caption that is too long is cut; letters that the font may lack become question marks.
    """
    row = Image.new("RGB", ((CELL + GAP) * len(captions), CAPTION), "white")
    draw = ImageDraw.Draw(row)
    try:
        font = ImageFont.load_default(FONT_SIZE)
    except TypeError:  # Pillow 10.0 has one size only
        font = ImageFont.load_default()
    for i, caption in enumerate(captions):
        caption = caption.encode("latin-1", "replace").decode("latin-1")
        while draw.textlength(caption, font) > CELL:
            caption = caption.removesuffix("..")[:-1] + ".."
        left = i * (CELL + GAP) + (CELL - draw.textlength(caption, font)) / 2
        draw.text((left, (CAPTION - FONT_SIZE) / 2), caption, "black", font)
    return np.array(row)


def labelled_grid(captions: Sequence[str], rows: Mapping[str, Sequence[np.ndarray]]) -> np.ndarray:
    """Return rows of pictures with a caption over each column and a name before each row.

    Args:
        captions: of the columns.
        rows: name -> a picture (H, W, 3) in [0, 1] for each column.

    Returns:
        (H, W, 3) uint8.
    """
    lines = [caption_row(["", *captions])]
    for name, pictures in rows.items():
        label = np.full((CELL + GAP, CELL + GAP, 3), 255, np.uint8)
        label[(CELL - CAPTION) // 2 :][:CAPTION] = caption_row([name])
        lines.append(np.concatenate([label, *map(fit_cell, pictures)], axis=1))
    return np.concatenate(lines)


def colour_legend(class_names: Sequence[str]) -> str:
    """Say which colour `paint_mask` gives to each class."""
    colours = voc_palette()
    named = (f"{name} {tuple(colours[k + 1].tolist())}" for k, name in enumerate(class_names))
    return f"RGB of the classes: {', '.join(named)}"
