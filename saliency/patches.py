"""Patch features of one image from the inside of a pretrained network, for `feature` and `normal`.

Middle blocks tell texture and local structure, which a defect disturbs; the last ones tell
objects. No network is trained here.
"""

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import timm
import torch
from timm.models import is_model_in_modules
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

from models.device import amp_dtype, autocast
from models.vit import normalisation
from models.weights import find_weights, read_state_dict

STEP = 32  # image sides become multiples of it, as CNNs halve five times; ViTs: of their patch

VIT_MODULES = {"vision_transformer", "deit"}

# (H, W, 3) uint8 RGB -> (h, w, D) float32, each block's part of length 1
Encoder = Callable[[np.ndarray], np.ndarray]


def load_encoder(
    backbone: str, weights: str, image_size: int, blocks: Sequence[int], device: torch.device
) -> Encoder:
    """Return the function that gives an image's patch features.

    The image keeps its aspect and is brought to an area of about `image_size` squared, so that
    each image costs the same; features cover the whole image.

    Args:
        backbone: timm name of a ViT or of a CNN.
        weights: "timm" takes a local file (`find_weights`) or downloads, "none" starts at random,
            anything else is a weights file with timm's keys or those timm converts.
        image_size: in pixels.
        blocks: which blocks' features (CNN: stages'), from 1; of several, side by side in D. The
            last one named is the last one run.
        device: where the network runs.

    Raises:
        FileNotFoundError: no such weights file.
        ValueError: unknown network, a block it does not have, or weights that do not fit.
    """
    model = _create(backbone, weights).to(device).eval().requires_grad_(False)
    is_vit = isinstance(model, VisionTransformer)
    num_blocks = len(model.blocks) if is_vit else len(model.feature_info)
    if max(blocks) > num_blocks:
        raise ValueError(
            f"saliency.block: expected 1 to {num_blocks}, the blocks of {backbone}, got "
            f"{max(blocks)}."
        )
    multiple = model.patch_embed.patch_size if is_vit else (STEP, STEP)
    mean, std = (np.array(values, np.float32) for values in normalisation(backbone))
    dtype = amp_dtype(device, "auto")

    @torch.inference_mode()
    def encode(image: np.ndarray) -> np.ndarray:
        height, width = fitted_size(image.shape[:2], image_size, multiple)
        shrinks = height < image.shape[0]
        resized = cv2.resize(
            image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
        )
        normalised = (resized.astype(np.float32) / 255 - mean) / std
        pixels = torch.from_numpy(normalised).permute(2, 0, 1)[None].to(device)  # (1, 3, H, W)
        with autocast(device, dtype):
            found = model.forward_intermediates(
                pixels, indices=[b - 1 for b in blocks], intermediates_only=True, stop_early=True
            )
        parts = [part[0].permute(1, 2, 0).float() for part in found]  # (h, w, D) each
        parts = [nn.functional.normalize(part, dim=-1) for part in parts]
        return torch.cat(parts, dim=-1).cpu().numpy()

    return encode


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


def _create(backbone: str, weights: str) -> nn.Module:
    """Build a timm network without its classifier, with the weights asked for."""
    if not timm.is_model(backbone):
        close = ", ".join(timm.list_models("vit_*dinov2*")[:4])
        raise ValueError(
            f"saliency.backbone: expected a timm name such as {close}, got {backbone!r}."
        )
    path = find_weights(backbone) if weights == "timm" else None
    if weights not in ("timm", "none"):
        path = Path(weights).expanduser()
    download = weights == "timm" and path is None
    # Only a plain ViT knows the option, and only with it takes images of any size.
    is_vit = is_model_in_modules(backbone.split(".")[0], VIT_MODULES)
    options = {"dynamic_img_size": True} if is_vit else {}
    try:
        model = timm.create_model(backbone, pretrained=download, num_classes=0, **options)
    except (RuntimeError, OSError) as error:
        raise ValueError(
            f"saliency.weights: expected the weights of {backbone} from the model hub, which "
            "cannot be reached. Set saliency.weights to a weights file, or to none."
        ) from error
    if not hasattr(model, "forward_intermediates"):
        raise ValueError(
            f"saliency.backbone: expected a network whose inner features timm offers, got "
            f"{backbone!r}. Take a ViT or a ResNet."
        )
    if path:
        print(f"saliency weights: {path}")
        _load(model, path)
    return model


def _load(model: nn.Module, path: Path) -> None:
    """Load a weights file; what only the file has (a classifier) is left out."""
    state = read_state_dict(path, "saliency.weights")
    # timm resamples silently but for a log line per tensor, which says nothing new here.
    logging.getLogger("timm").setLevel(logging.WARNING)
    try:
        if isinstance(model, VisionTransformer):
            state = checkpoint_filter_fn(state, model)
        missing = model.load_state_dict(state, strict=False).missing_keys
    except (RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path}: expected weights of saliency.backbone, got: {reason}") from error
    if missing:
        raise ValueError(
            f"{path}: expected the weights of saliency.backbone; {len(missing)} are missing "
            f"({', '.join(missing[:5])}). Check saliency.backbone and saliency.weights."
        )
