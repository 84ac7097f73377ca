"""Maps moved to the edges of the image that they lie on."""

from dataclasses import replace

import cv2
import numpy as np
import torch

from datasets.record import Record
from datasets.transforms import as_image
from models.refine import pixel_adaptive_refinement
from saliency.generator import Prepared

# Of the shorter side: blur of the image along whose edges maps are smoothed. Texture is no edge: on
# every 12th NEU-Seg training image 0 gives 68.2 foreground IoU, 0.0075 68.6, 0.015 68.3.
GUIDE_BLUR = 0.0075


def along_edges(
    image: np.ndarray, saliency: np.ndarray, iterations: int, device: torch.device
) -> np.ndarray:
    """Smooth a map along the edges of a slightly blurred image.

    Args:
        image: (H, W, 3) uint8 RGB.
        saliency: (H, W) float32 in [0, 1].
        iterations: of `pixel_adaptive_refinement`; 0 changes nothing.
        device: where it runs.

    Returns:
        (H, W) float32 in [0, 1].
    """
    guide = cv2.GaussianBlur(image, (0, 0), GUIDE_BLUR * min(image.shape[:2]))
    pixels = as_image(guide).to(device).float() / 255
    maps = torch.from_numpy(saliency).to(device)[None]
    return pixel_adaptive_refinement(pixels, maps, iterations)[0].cpu().numpy()


def smoothed(generator: Prepared, iterations: int, device: torch.device) -> Prepared:
    """Return a generator whose maps are smoothed along the edges of their images."""

    def make_map(record: Record, image: np.ndarray) -> np.ndarray:
        return along_edges(image, generator.make_map(record, image), iterations, device)

    return replace(generator, make_map=make_map)
