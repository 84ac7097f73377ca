"""Maps moved to the edges of the image that they lie on."""

from dataclasses import replace

import cv2
import numpy as np
import torch

from datasets.record import Record
from datasets.transforms import as_image
from models.pamr import pamr
from saliency.generator import Prepared

# Of the shorter side: blur of the image along whose edges maps are smoothed. Texture is no edge: on
# every 12th NEU-Seg training image 0 gives 68.2 foreground IoU, 0.0075 68.6, 0.015 68.3.
GUIDE_BLUR = 0.0075


def along_edges(
    image: np.ndarray, saliency: np.ndarray, steps: int, device: torch.device
) -> np.ndarray:
    """Smooth a map along the edges of a slightly blurred image.

    Args:
        image: (H, W, 3) uint8 RGB.
        saliency: (H, W) float32 in [0, 1].
        steps: of PAMR; 0 changes nothing.
        device: where it runs.

    Returns:
        (H, W) float32 in [0, 1].
    """
    guide = cv2.GaussianBlur(image, (0, 0), GUIDE_BLUR * min(image.shape[:2]))
    pixels = as_image(guide).to(device).float() / 255
    maps = torch.from_numpy(saliency).to(device)[None]
    return pamr(pixels, maps, steps)[0].cpu().numpy()


def with_pamr(generator: Prepared, steps: int, device: torch.device) -> Prepared:
    """Return a generator whose maps are refined by PAMR."""

    def make_map(record: Record, image: np.ndarray) -> np.ndarray:
        return along_edges(image, generator.make_map(record, image), steps, device)

    return replace(generator, make_map=make_map)
