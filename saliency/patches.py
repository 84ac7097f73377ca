"""Patch features of one image from the inside of a pretrained network.

Middle blocks tell texture and local structure, which a defect disturbs; the last ones tell
objects. No network is trained here.
"""

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from configs import SaliencyConfig
from models.backbones import create_feature_network, normalisation
from models.device import amp_dtype, autocast

KEPT_BYTES = 2**30  # of features, about 650 images of 448 x 448
STEP = 32  # image sides become multiples of it, as CNNs halve five times; ViTs: of their patch


@dataclass(frozen=True)
class Encoder:
    """Gives patch features of an image: (H, W, 3) uint8 RGB -> (h, w, D) float32.

    D holds `num_parts` parts of equal width and of length 1 each: features of the middle block,
    then, where asked for, of the last one. They are rounded to float16.
    """

    features: Callable[[np.ndarray], np.ndarray]
    num_parts: int

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Return the features of an image."""
        return self.features(image)


class FeatureCache:
    """Keeps the features of the images that were seen last, to at most `KEPT_BYTES`.

    A generator learns from training images, is judged on some of them, and makes the maps of all;
    generator auto does so twice. A pass through the network costs far more than a look here.
    """

    def __init__(self) -> None:
        self._arrays: OrderedDict[Hashable, np.ndarray] = OrderedDict()  # oldest first
        self._num_bytes = 0

    def get(self, key: Hashable) -> np.ndarray | None:
        """Return the features of a key, if they are still here."""
        if key in self._arrays:
            self._arrays.move_to_end(key)
        return self._arrays.get(key)

    def put(self, key: Hashable, features: np.ndarray) -> None:
        """Keep features, and forget the oldest where there are too many."""
        if key not in self._arrays:
            self._num_bytes += features.nbytes
        self._arrays[key] = features
        while self._num_bytes > KEPT_BYTES:
            self._num_bytes -= self._arrays.popitem(last=False)[1].nbytes


_kept = FeatureCache()  # of this process


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
    def compute(image: np.ndarray) -> list[np.ndarray]:
        resized = _resized(image, fitted_size(image.shape[:2], image_size, multiple))
        normalised = (resized.astype(np.float32) / 255 - mean) / std
        pixels = torch.from_numpy(normalised).permute(2, 0, 1)[None].to(device)  # (1, 3, H, W)
        with autocast(device, dtype):
            outputs = model.forward_intermediates(
                pixels, indices=[b - 1 for b in blocks], intermediates_only=True, stop_early=True
            )
        parts = [output[0].permute(1, 2, 0).float() for output in outputs]  # (h, w, D) each
        return [nn.functional.normalize(part, dim=-1).half().cpu().numpy() for part in parts]

    def features(image: np.ndarray) -> np.ndarray:
        content = hashlib.sha256(np.ascontiguousarray(image)).digest()
        network = (settings.backbone, settings.weights, image_size, str(device))
        keys = [(network, block, image.shape, content) for block in blocks]
        parts = [_kept.get(key) for key in keys]
        if any(part is None for part in parts):
            parts = compute(image)
            for key, part in zip(keys, parts, strict=True):
                _kept.put(key, part)
        parts = [part.astype(np.float32) for part in parts]
        lengths = [np.linalg.norm(part, axis=-1, keepdims=True) for part in parts]
        return np.concatenate(
            [part / np.maximum(n, 1e-12) for part, n in zip(parts, lengths, strict=True)], axis=-1
        )

    return Encoder(features, len(blocks))


def fitted_size(
    size: tuple[int, int], image_size: int, multiple: tuple[int, int]
) -> tuple[int, int]:
    """Return the (H, W) in whole multiples, nearest to an area of `image_size` squared."""
    scale = image_size / math.sqrt(size[0] * size[1])
    return tuple(max(1, round(s * scale / m)) * m for s, m in zip(size, multiple, strict=True))


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    shrinks = size[0] < image.shape[0]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cv2.resize(image, size[::-1], interpolation=how)


def to_image_size(patch_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a (h, w) map of patches that cover the image to (H, W), bilinearly."""
    values = patch_map.astype(np.float32)
    return cv2.resize(values, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)
