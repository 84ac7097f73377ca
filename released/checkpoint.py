"""Checkpoints of the authors' released code as weights of the localiser."""

import math
from typing import Any

import torch
from torch import Tensor

# The released code builds every width with 8 heads; its weights make sense with that many only.
RELEASED_HEADS = 8
BACKBONES = {  # width: timm name
    192: "deit_tiny_patch16_224",
    384: "deit_small_patch16_224",
    768: "deit_base_patch16_224",
}
NEEDED = ("cls_token", "pos_embed_cls", "pos_embed_pat", "head.weight", "representation.0.weight")
ENCODER = ("cls_token", "pos_embed_", "patch_embed.", "blocks.")
# What the released code always does, by keys of a config's section train.
RELEASED_SETTINGS = {
    "scale_pooling": False,
    "head_padding": "zeros",
    "frozen_blocks": 0,
    "pixel_block": 0,  # the online segmentation head is not of the released code
    "crop": 0,
    "amp": "off",
}
# In the file, but never computed with: the method takes the last tokens as they are, and DeiT's
# one position embedding gave way to pos_embed_cls and pos_embed_pat.
UNUSED = ("norm.weight", "norm.bias", "pos_embed")


def convert_released(
    state: dict[str, Tensor], num_classes: int, path: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Rename the weights of a released checkpoint and read the model's settings off their sizes.

    Args:
        state: tensors by the released code's names, see `models.backbones.read_state_dict`.
        num_classes: K of the data set.
        path: of the file, for errors.

    Returns:
        The weights of a `models.stac.Stac`, and settings of a config's `train` section that the
        file decides; the number of heads is not among them, as no weight tells it.

    Raises:
        ValueError: weights are missing, or belong to other classes or another network.
    """
    missing = [name for name in NEEDED if name not in state]
    if missing:
        raise ValueError(
            f"{path}: expected a checkpoint of the released code, {', '.join(missing)} missing. "
            "Check that it is the localiser's."
        )
    _, num_tokens, width = state["cls_token"].shape
    if num_tokens != num_classes:
        raise ValueError(
            f"{path}: expected {num_classes} class tokens, one per class of the data set, got "
            f"{num_tokens}. Check --config."
        )
    side = math.isqrt(state["pos_embed_pat"].shape[1])
    if width not in BACKBONES or side**2 != state["pos_embed_pat"].shape[1]:
        raise ValueError(
            f"{path}: expected DeiT weights (width {', '.join(map(str, BACKBONES))}, square grid), "
            f"got width {width} and {state['pos_embed_pat'].shape[1]} patches."
        )
    patch_size = state["patch_embed.proj.weight"].shape[-1]
    settings = {
        "backbone": BACKBONES[width],
        "pretrained": "none",
        "patch_size": patch_size,
        "depth": 1 + max(int(n.split(".")[1]) for n in state if n.startswith("blocks.")),
        "image_size": (side * patch_size, side * patch_size),
        "projection_width": state["representation.0.weight"].shape[0],
        **RELEASED_SETTINGS,
    }
    return _renamed(state, path), settings


def _renamed(state: dict[str, Tensor], path: str) -> dict[str, Tensor]:
    """Return the weights under the names of `models.stac.Stac`.

    The released projection starts with a convolution without bias, ours has one: it becomes 0.
    """
    weights, foreign = {}, []
    for name, value in state.items():
        if name.startswith(ENCODER):
            weights[f"encoder.{name}"] = value
        elif name.startswith("representation."):
            weights[name.replace("representation.", "projection.")] = value
        elif name.startswith("head."):
            weights[name] = value
        elif name not in UNUSED:
            foreign.append(name)
    if foreign:
        raise ValueError(
            f"{path}: expected weights of the released localiser, {len(foreign)} have no place "
            f"({', '.join(foreign[:5])})."
        )
    num_channels = len(weights["projection.0.weight"])
    weights.setdefault("projection.0.bias", torch.zeros(num_channels))
    return weights
