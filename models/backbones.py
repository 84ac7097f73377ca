"""Networks of timm and their pretrained weights: found, read, loaded."""

import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.layers import Attention
from timm.models import eva, is_model_in_modules, vision_transformer
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from configs import SaliencyConfig, TrainConfig

REPOSITORY = Path(__file__).resolve().parent.parent
# Parts of published checkpoints that a localiser has no use for.
UNUSED_KEYS = ("head.", "head_dist.", "fc_norm.", "pre_logits.", "dist_token", "mask_token")
MAX_DEPTH = 100  # more blocks than any ViT has
VIT_MODULES = {"vision_transformer", "deit"}
FEATURE_SEED = 0  # of a network for features without pretrained weights


def find_weights(model_name: str) -> Path | None:
    """Return a local weights file of a timm model, or None.

    Looked for as `<model_name>.safetensors`, `.pth` or `.pt`, also with more between dots
    (`<model_name>.fp16.pth`), in the folder named by the environment variable STAC_WEIGHTS, in
    weights/ of the repository, and in shared/weights/ beside it; the first in that order is taken.
    """
    folders = [REPOSITORY / "weights", REPOSITORY.parent / "shared" / "weights"]
    if os.environ.get("STAC_WEIGHTS"):
        folders.insert(0, Path(os.environ["STAC_WEIGHTS"]))
    for folder in folders:
        for suffix in (".safetensors", ".pth", ".pt"):
            files = sorted(p for p in folder.glob(f"{model_name}.*") if p.suffix == suffix)
            if files:
                return files[0]
    return None


def read_state_dict(path: Path, setting: str) -> dict[str, Tensor]:
    """Read tensors by name, as float32; code inside the file is refused.

    Wrappers of training codes are taken off: an outer model, state_dict or teacher entry, and
    `module.` and `backbone.` before the names.

    Args:
        path: .safetensors, or anything `torch.load` reads.
        setting: key of the config that named the file, for the errors.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, holding more than tensors and simple values, or NaN or infinity.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected a weights file. Set {setting} to one, or to none."
        )
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both raise nearly anything on damaged files
        # PyTorch's own words advise to run the code inside: not passed on.
        raise ValueError(
            f"{path}: expected a weights file, got a damaged file or one with more than tensors "
            f"and simple values ({type(error).__name__}). Set {setting} to another one."
        ) from error
    for wrapper in ("model", "state_dict", "teacher"):
        state = state.get(wrapper, state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise ValueError(
            f"{path}: expected a weights file, a table of tensors by name, got another one. "
            f"Set {setting} to another one."
        )
    weights = {
        key.removeprefix("module.").removeprefix("backbone."): value.float()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }
    for name, value in weights.items():
        if not value.isfinite().all():
            raise ValueError(
                f"{path}: expected finite weights, got NaN or infinity in {name}. Set {setting} to "
                "another one."
            )
    return weights


def create_vit(settings: TrainConfig, pretrained: str) -> VisionTransformer | Eva:
    """Build a timm ViT for one image size, with pretrained weights where asked.

    Args:
        settings: backbone, image_size (rounded up to whole patches; the position embedding becomes
            that grid's), patch_size, depth, num_heads and drop_path are used.
        pretrained: "timm" takes a local file (`find_weights`) or downloads, "none" starts at
            random, anything else is a file of weights (.pth, .pt, .safetensors) with timm, DeiT
            or DINOv2 keys.

    Raises:
        ValueError: no such model, another kind of model, or weights that do not fit.
        FileNotFoundError: no such weights file.
    """
    backbone = settings.backbone
    changes = {key: getattr(settings, key) for key in ("patch_size", "depth", "num_heads")}
    options = {name: value for name, value in changes.items() if value}
    weights, download = _weights_of(backbone, pretrained)
    try:
        vit = timm.create_model(
            backbone,
            pretrained=download,
            num_classes=0,
            drop_path_rate=settings.drop_path,
            **options,
        )
    except TypeError as error:
        raise _not_a_plain_vit(backbone, str(error)) from error
    except (RuntimeError, OSError) as error:
        if download:
            raise _no_download("train.pretrained", backbone) from error
        close = ", ".join(timm.list_models("*vit_*patch16_224")[:8])
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"train.backbone: expected a timm name such as {close}, got {backbone!r} ({reason})"
        ) from error
    _check_parts(backbone, vit)
    vit.set_input_size(img_size=whole_patches(settings.image_size, vit.patch_embed.patch_size))
    if weights:
        print(f"pretrained weights: {weights}")
        load_pretrained(vit, weights)
    return vit


def load_pretrained(vit: VisionTransformer | Eva, path: Path) -> None:
    """Load a weights file into a timm ViT; position and patch embedding are resampled.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable, or its keys do not match the ViT's.
    """
    missing, unexpected = _load(vit, path, "train.pretrained")
    unused = (*UNUSED_KEYS, *(f"blocks.{i}." for i in range(len(vit.blocks), MAX_DEPTH)))
    unexpected = [key for key in unexpected if not key.startswith(unused)]
    if missing or unexpected:
        raise ValueError(
            f"{path}: expected the weights of this backbone; {len(missing)} are missing "
            f"({', '.join(missing[:5])}), {len(unexpected)} have no place "
            f"({', '.join(unexpected[:5])}). Check train.backbone and train.patch_size."
        )


def load_weights(model: nn.Module, checkpoint: Mapping[str, Any]) -> None:
    """Load the weights of a checkpoint into the network that was built from its settings.

    Raises:
        ValueError: they are those of another network.
    """
    try:
        model.load_state_dict(checkpoint["model"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        path = getattr(checkpoint, "path", "checkpoint")
        raise ValueError(f"{path}: expected weights of its own settings, got: {reason}") from error


def create_feature_network(settings: SaliencyConfig) -> nn.Module:
    """Build the network of `settings.backbone` for its inner features, with `settings.weights`.

    Random weights ("none") are the same in every call, and no random state outside changes.

    Raises:
        ValueError: no such network, one without inner features, or weights that do not fit.
        FileNotFoundError: no such weights file.
    """
    backbone = settings.backbone
    if not timm.is_model(backbone):
        close = ", ".join(timm.list_models("vit_*dinov2*")[:4])
        raise ValueError(
            f"saliency.backbone: expected a timm name such as {close}, got {backbone!r}."
        )
    weights, download = _weights_of(backbone, settings.weights)
    # Only a plain ViT knows the option, and only with it takes images of any size.
    is_vit = is_model_in_modules(backbone.split(".")[0], VIT_MODULES)
    options = {"dynamic_img_size": True} if is_vit else {}
    try:
        with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU
            torch.default_generator.manual_seed(FEATURE_SEED)  # torch's own seeds the GPUs too
            model = timm.create_model(backbone, pretrained=download, num_classes=0, **options)
    except (RuntimeError, OSError) as error:
        raise _no_download("saliency.weights", backbone) from error
    if not hasattr(model, "forward_intermediates"):
        raise ValueError(
            f"saliency.backbone: expected a network whose inner features timm offers, got "
            f"{backbone!r}. Take a ViT or a ResNet."
        )
    if weights:
        print(f"saliency weights: {weights}")
        missing, _ = _load(model, weights, "saliency.weights")  # a classifier has no place
        if missing:
            raise ValueError(
                f"{weights}: expected the weights of saliency.backbone; {len(missing)} are missing "
                f"({', '.join(missing[:5])}). Check saliency.backbone and saliency.weights."
            )
    return model


def normalisation(backbone: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return (mean, std) of the three channels in [0, 1] that a timm model was trained with."""
    config = timm.get_pretrained_cfg(backbone)
    return tuple(config.mean), tuple(config.std)


def whole_patches(size: tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    """Round (H, W) up to whole patches, so that map and image cover the same area."""
    return tuple(math.ceil(s / p) * p for s, p in zip(size, patch_size, strict=True))


def _weights_of(backbone: str, pretrained: str) -> tuple[Path | None, bool]:
    """Return the file of weights to load, if any, and whether timm is to download them."""
    if pretrained == "timm":
        path = find_weights(backbone)
        return path, path is None
    return None if pretrained == "none" else Path(pretrained).expanduser(), False


def _load(model: nn.Module, path: Path, setting: str) -> tuple[list[str], list[str]]:
    """Load a weights file; return the keys that are missing and those that have no place."""
    state = read_state_dict(path, setting)
    # timm resamples silently but for a log line per tensor, which says nothing new here.
    logging.getLogger("timm").setLevel(logging.WARNING)
    try:
        if isinstance(model, Eva):
            state = eva.checkpoint_filter_fn(state, model)
        elif isinstance(model, VisionTransformer):
            state = vision_transformer.checkpoint_filter_fn(state, model)
        result = model.load_state_dict(state, strict=False)
    except (RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path}: expected weights of this backbone, got: {reason}") from error
    return list(result.missing_keys), list(result.unexpected_keys)


def _no_download(setting: str, backbone: str) -> ValueError:
    return ValueError(
        f"{setting}: expected the weights of {backbone} from the model hub, which cannot be "
        f"reached. Set {setting} to a weights file, or to none."
    )


def _check_parts(backbone: str, vit: nn.Module) -> None:
    """Refuse a model whose blocks `models.vit` would not reproduce."""
    if getattr(vit, "cls_token", None) is None:
        raise _not_a_plain_vit(backbone, "no class token")
    if isinstance(vit, Eva):
        kinds = (EvaBlock, EvaAttention)
        fits = hasattr(vit.rope, "get_embed") and not vit.rope_mixed
        fits = fits and all(
            b.attn.qkv is not None and getattr(b.attn, "gate", None) is None for b in vit.blocks
        )
    else:
        kinds = (Block, Attention)
        fits = isinstance(vit, VisionTransformer) and vit.pos_embed is not None
    if not fits:
        raise _not_a_plain_vit(backbone, "another position embedding or attention")
    if any((type(block), type(block.attn)) != kinds for block in vit.blocks):
        raise _not_a_plain_vit(backbone, f"blocks of type {type(vit.blocks[0]).__name__}")


def _not_a_plain_vit(backbone: str, reason: str) -> ValueError:
    return ValueError(
        f"train.backbone: expected a plain or DINOv3 ViT of timm with a class token, such as "
        f"deit_small_patch16_224, got {backbone!r}: {reason}."
    )
