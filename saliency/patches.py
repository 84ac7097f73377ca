"""Patch features of one image from the inside of a pretrained network.

Middle blocks tell texture and local structure, which a defect disturbs; the last ones tell
objects. No network is trained here.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from configs import SaliencyConfig
from models.backbones import create_feature_network, normalisation
from models.device import amp_dtype, autocast

STEP = 32  # image sides become multiples of it, as CNNs halve five times; ViTs: of their patch


@dataclass(frozen=True)
class Encoder:
    """Gives patch features of an image: (H, W, 3) uint8 RGB -> (h, w, D) float32.

    D holds `num_parts` parts of equal width and of length 1 each: features of the middle block,
    then, where asked for, of the last one.
    """

    features: Callable[[np.ndarray], np.ndarray]
    num_parts: int

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return the features of an image."""
        return self.features(image)


def load_encoder(
    settings: SaliencyConfig, image_size: int, device: torch.device, with_last: bool = False
) -> Encoder:
    """Load the network that tells what patches of an image look like.

    The image keeps its aspect and is brought to an area of about `image_size` squared, so that
    each image costs the same; features cover the whole image. They come from the middle block (of
    12: the 6th; of a CNN's 5 stages: the 3rd).

    Args:
        settings: backbone (timm name of a ViT or of a CNN) and weights are used: "timm" takes a
            local file or downloads, "none" starts at random, anything else is a weights file with
            timm's keys or those timm converts.
        image_size: in pixels.
        device: where the network runs.
        with_last: add the features of a ViT's last block, which tell objects; stages of a CNN
            differ in size, so that only the middle one is taken.

    Raises:
        FileNotFoundError: no such weights file.
        ValueError: unknown network, or weights that do not fit.
    """
    model = create_feature_network(settings).to(device).eval().requires_grad_(False)
    is_vit = isinstance(model, VisionTransformer)
    num_blocks = len(model.blocks) if is_vit else len(model.feature_info)
    blocks = [(num_blocks + 1) // 2]
    blocks += [num_blocks] if is_vit and with_last and num_blocks > blocks[0] else []
    multiple = model.patch_embed.patch_size if is_vit else (STEP, STEP)
    mean, std = (np.array(values, np.float32) for values in normalisation(settings.backbone))
    dtype = amp_dtype(device, "auto")

    @torch.inference_mode()
    def features(image: np.ndarray) -> np.ndarray:
        height, width = fitted_size(image.shape[:2], image_size, multiple)
        shrinks = height < image.shape[0]
        resized = cv2.resize(
            image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        )
        normalised = (resized.astype(np.float32) / 255 - mean) / std
        pixels = torch.from_numpy(normalised).permute(2, 0, 1)[None].to(device)  # (1, 3, H, W)
        with autocast(device, dtype):
            outputs = model.forward_intermediates(
                pixels, indices=[b - 1 for b in blocks], intermediates_only=True, stop_early=True
            )
        parts = [output[0].permute(1, 2, 0).float() for output in outputs]  # (h, w, D) each
        parts = [nn.functional.normalize(part, dim=-1) for part in parts]
        return torch.cat(parts, dim=-1).cpu().numpy()

    return Encoder(features, len(blocks))


def fitted_size(
    size: tuple[int, int], image_size: int, multiple: tuple[int, int]
) -> tuple[int, int]:
    """Return the (H, W) in whole multiples, nearest to an area of `image_size` squared."""
    scale = image_size / math.sqrt(size[0] * size[1])
    return tuple(max(1, round(s * scale / m)) * m for s, m in zip(size, multiple, strict=True))


def to_image_size(patch_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a (h, w) map of patches that cover the image to (H, W), bilinearly."""
    values = patch_map.astype(np.float32)
    return cv2.resize(values, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
