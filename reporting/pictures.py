"""Small pictures for a page: images as WebP, maps as transparent layers to lay over them."""

import base64
import colorsys
import io

import cv2
import numpy as np
from PIL import Image

from datasets.files import Cam
from datasets.record import IGNORE

SIDES = (400, 320, 256, 200, 160, 128, 96)  # of an image's longer side, the largest first
SOFT_SHARE = 0.5  # of the side, for maps without edges
IMAGE_QUALITY, SOFT_QUALITY = 62, 45  # of WebP
# Told apart by all kinds of colour vision: Okabe and Ito (2008), the ones that are seen on grey
# surfaces first.
COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442")
SALIENCY_COLOUR, IGNORE_COLOUR = (255, 214, 0), (255, 255, 255)
IMAGE_MIME, SOFT_MIME, MASK_MIME = "image/webp", "image/webp", "image/png"


def class_colours(num_classes: int) -> list[str]:
    """Return a colour for each class, as #rrggbb; those beyond the seven by their hue."""
    more = [
        colorsys.hsv_to_rgb(0.61803 * number % 1, 0.75, 0.85)
        for number in range(num_classes - len(COLOURS))
    ]
    hues = ["#" + "".join(f"{round(255 * part):02x}" for part in colour) for colour in more]
    return [*COLOURS, *hues][:num_classes]


def fitted(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return the (H, W) of a picture whose longer side is at most `side`."""
    scale = min(1.0, side / max(size))
    height, width = (max(1, round(scale * length)) for length in size)
    return height, width


def image_bytes(image: np.ndarray, side: int) -> bytes:
    """Return an image (H, W, 3) uint8 as WebP."""
    height, width = fitted(image.shape[:2], side)
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return _webp(small, IMAGE_QUALITY)


def saliency_bytes(saliency: np.ndarray, side: int) -> bytes:
    """Return a saliency map (H, W) in [0, 1] as a layer: the higher, the more yellow."""
    alpha = _small(saliency, side)
    return _layer(np.broadcast_to(SALIENCY_COLOUR, (*alpha.shape, 3)), alpha)


def cam_bytes(cam: Cam, side: int) -> bytes:
    """Return CAMs as a layer: each pixel in the colour of its highest class, the higher the more.

    Args:
        cam: of M classes, which may be 0: then the layer is empty.
        side: of the image.
    """
    if not len(cam.classes):
        return _layer(np.zeros((1, 1, 3)), np.zeros((1, 1)))
    maps = np.stack([_small(of_class, side) for of_class in cam.cam])  # (M, h, w)
    colours = _rgb(len(cam.scores))[cam.classes]  # (M, 3)
    return _layer(colours[maps.argmax(axis=0)], maps.max(axis=0))


def mask_bytes(mask: np.ndarray, num_classes: int, side: int) -> bytes:
    """Return mask values (H, W) as a layer: classes in their colours, 255 white, the rest clear."""
    height, width = fitted(mask.shape, side)
    small = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST)
    values = np.where(small == IGNORE, num_classes + 1, small).astype(np.uint8)
    picture = Image.fromarray(values)
    colours = np.concatenate([[(0, 0, 0)], _rgb(num_classes), [IGNORE_COLOUR]])
    picture.putpalette(colours.astype(np.uint8).reshape(-1).tolist())
    content = io.BytesIO()
    picture.save(content, format="PNG", transparency=0, compress_level=9)
    return content.getvalue()


def data_uri(content: bytes, mime: str) -> str:
    """Return content as an address that needs no file."""
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def _small(values: np.ndarray, side: int) -> np.ndarray:
    """Return a map (h, w) in [0, 1] of the size that soft layers have."""
    height, width = fitted(values.shape, max(1, round(SOFT_SHARE * side)))
    small = cv2.resize(values.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
    return np.clip(small, 0, 1)


def _layer(colours: np.ndarray, alpha: np.ndarray) -> bytes:
    """Return colours (h, w, 3) from 0 to 255 that show as far as alpha (h, w) in [0, 1] says."""
    steps = np.round(alpha * 15) * 17  # 16 steps are enough to look at, and much smaller
    layer = np.concatenate([colours, steps[..., None]], axis=2).astype(np.uint8)
    return _webp(layer, SOFT_QUALITY)


def _rgb(num_classes: int) -> np.ndarray:
    """Return the colours of the classes, (K, 3) from 0 to 255."""
    return np.array([[*bytes.fromhex(c[1:])] for c in class_colours(num_classes)]).reshape(-1, 3)


def _webp(pixels: np.ndarray, quality: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="WEBP", quality=quality, method=2)
    return content.getvalue()
