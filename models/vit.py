"""A timm Vision Transformer with one class token per class (METHOD A)."""

import logging
import math
from pathlib import Path
from typing import NamedTuple

import timm
import torch
import torch.nn.functional as F
from timm.layers import Attention, resample_abs_pos_embed
from timm.models.vision_transformer import Block, VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

from models.weights import find_weights, read_state_dict

# Parts of published checkpoints that a localiser has no use for.
UNUSED_KEYS = ("head.", "head_dist.", "fc_norm.", "pre_logits.", "dist_token", "mask_token")
MAX_DEPTH = 100  # more blocks than any ViT has


class Tokens(NamedTuple):
    """What the encoder hands to the heads; C class tokens, L blocks, width D, grid h x w."""

    class_tokens: Tensor  # (L, B, C, D) after each block
    patch_tokens: Tensor  # (B, D, h, w) after the last block
    class_attention: Tensor  # (B, C, h, w) in [0, 1], mean over heads and the last n blocks
    attention_output: Tensor  # (B, D, h, w) mean over blocks, projected, before the residual


class ClassTokenViT(nn.Module):
    """Runs the blocks of a timm ViT on C class tokens and the patch tokens.

    The pretrained class token and its position embedding are repeated C times. The position
    embedding of the patches belongs to the grid the ViT was built for and is resampled to that
    of each input.
    """

    def __init__(
        self,
        vit: VisionTransformer,
        num_class_tokens: int,
        *,
        attention_layers: int,
        final_norm: bool = False,
    ):
        """Take over the parts of a ViT.

        Args:
            vit: from `create_vit`.
            num_class_tokens: C.
            attention_layers: n, class attention is averaged over the last n blocks.
            final_norm: pass the last tokens through the ViT's last LayerNorm; the paper
                does not.
        """
        super().__init__()
        if not 0 < attention_layers <= len(vit.blocks):
            raise ValueError(
                f"train.attention_layers: expected 1 to {len(vit.blocks)} (the blocks of this "
                f"backbone), got {attention_layers}."
            )
        self.width = vit.embed_dim
        self.patch_size = vit.patch_embed.patch_size
        self.grid_size = vit.patch_embed.grid_size
        self.attention_layers = attention_layers
        self.patch_embed = vit.patch_embed
        self.norm_pre = vit.norm_pre
        self.blocks = vit.blocks
        self.norm = vit.norm if final_norm else nn.Identity()
        self.cls_token = nn.Parameter(vit.cls_token.detach().repeat(1, num_class_tokens, 1))
        class_position, patch_position = _split_position(vit)
        self.pos_embed_cls = nn.Parameter(class_position.repeat(1, num_class_tokens, 1))
        self.pos_embed_pat = nn.Parameter(patch_position.clone())

    def no_weight_decay(self) -> set[str]:
        """Name the embeddings, which weight decay must not pull to zero."""
        return {"cls_token", "pos_embed_cls", "pos_embed_pat"}

    def forward(self, images: Tensor) -> Tokens:
        """Encode images.

        Args:
            images: (B, 3, H, W) normalised; H and W whole multiples of the patch.
        """
        patches, grid = self._embed(images)
        class_tokens = (self.cls_token + self.pos_embed_cls).expand(len(images), -1, -1)
        num_classes = class_tokens.shape[1]
        x = self.norm_pre(torch.cat([class_tokens, patches], dim=1))  # (B, C + N, D)

        states, attentions = [], []
        output_sum = torch.zeros((), device=x.device)
        first_attention = len(self.blocks) - self.attention_layers
        for index, block in enumerate(self.blocks):
            num_rows = num_classes if index >= first_attention else 0
            x, attention_output, rows = _run_block(block, x, num_rows)
            states.append(x[:, :num_classes])
            output_sum = output_sum + attention_output[:, num_classes:]
            if num_rows:
                attentions.append(rows[..., num_classes:])
        x = self.norm(x)
        states[-1] = x[:, :num_classes]

        return Tokens(
            class_tokens=torch.stack(states),
            patch_tokens=_to_map(x[:, num_classes:], grid),
            class_attention=_to_map(torch.stack(attentions).mean(0).transpose(1, 2), grid),
            attention_output=_to_map(output_sum / len(self.blocks), grid),
        )

    def _embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return the patch embeddings with position, (B, N, D), and their grid (h, w)."""
        size = tuple(images.shape[-2:])
        if any(length % patch for length, patch in zip(size, self.patch_size, strict=True)):
            raise ValueError(
                f"image: expected height and width in multiples of {self.patch_size}, got {size}. "
                "Resize it with whole_patches()."
            )
        patches = self.patch_embed.proj(images)  # (B, D, h, w)
        grid = tuple(patches.shape[-2:])
        patches = self.patch_embed.norm(patches.flatten(2).transpose(1, 2))  # (B, N, D)
        position = resample_abs_pos_embed(
            self.pos_embed_pat, new_size=grid, old_size=self.grid_size, num_prefix_tokens=0
        )
        return patches + position, grid


def create_vit(
    backbone: str,
    pretrained: str,
    image_size: tuple[int, int],
    *,
    patch_size: int = 0,
    depth: int = 0,
    drop_path: float = 0.0,
) -> VisionTransformer:
    """Build a timm ViT for one image size, with pretrained weights where asked.

    Args:
        backbone: timm name of a plain ViT with a class token.
        pretrained: "timm" takes a local file (`find_weights`) or downloads, "none" starts at
            random, anything else is a file of weights (.pth, .pt, .safetensors) with timm, DeiT
            or DINOv2 keys.
        image_size: (H, W), rounded up to whole patches; the position embedding becomes that
            grid's.
        patch_size: 0 for the backbone's own.
        depth: number of first blocks to keep; 0 for all.
        drop_path: stochastic depth of the last block, rising linearly from 0.

    Raises:
        ValueError: no such model, another kind of model, or weights that do not fit.
        FileNotFoundError: no such weights file.
    """
    changes = {"patch_size": patch_size, "depth": depth}
    options = {name: value for name, value in changes.items() if value}
    weights = find_weights(backbone) if pretrained == "timm" else None
    if pretrained not in ("timm", "none"):
        weights = Path(pretrained).expanduser()
    download = pretrained == "timm" and weights is None
    try:
        vit = timm.create_model(
            backbone,
            pretrained=download,
            num_classes=0,
            drop_path_rate=drop_path,
            **options,
        )
    except TypeError as error:
        raise _not_a_plain_vit(backbone, str(error)) from error
    except (RuntimeError, OSError) as error:
        if not download:
            close = ", ".join(timm.list_models("*vit_*patch16_224")[:8])
            reason = str(error).splitlines()[0]
            raise ValueError(
                f"train.backbone: expected a timm name such as {close}, got {backbone!r} ({reason})"
            ) from error
        raise ValueError(
            f"train.pretrained: expected the weights of {backbone} from the model hub, which "
            "cannot be reached. Set train.pretrained to a weights file, or to none."
        ) from error
    plain = isinstance(vit, VisionTransformer) and vit.cls_token is not None
    if not plain or vit.pos_embed is None or vit.reg_token is not None:
        raise _not_a_plain_vit(backbone, "no absolute position embedding with one class token")
    if any(type(block) is not Block or type(block.attn) is not Attention for block in vit.blocks):
        raise _not_a_plain_vit(backbone, f"blocks of type {type(vit.blocks[0]).__name__}")
    vit.set_input_size(img_size=whole_patches(image_size, vit.patch_embed.patch_size))
    if weights:
        print(f"pretrained weights: {weights}")
        load_pretrained(vit, weights)
    return vit


def load_pretrained(vit: VisionTransformer, path: Path) -> None:
    """Load a weights file into a timm ViT; position and patch embedding are resampled.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable, or its keys do not match the ViT's.
    """
    state = read_state_dict(path, "train.pretrained")
    # timm resamples silently but for a log line per tensor, which says nothing new here.
    logging.getLogger("timm").setLevel(logging.WARNING)
    try:
        state = checkpoint_filter_fn(state, vit)
        result = vit.load_state_dict(state, strict=False)
    except (RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path}: expected weights of this backbone, got: {reason}") from error
    unused = (*UNUSED_KEYS, *(f"blocks.{i}." for i in range(len(vit.blocks), MAX_DEPTH)))
    unexpected = [key for key in result.unexpected_keys if not key.startswith(unused)]
    if result.missing_keys or unexpected:
        raise ValueError(
            f"{path}: expected the weights of this backbone; "
            f"{len(result.missing_keys)} are missing ({', '.join(result.missing_keys[:5])}), "
            f"{len(unexpected)} have no place ({', '.join(unexpected[:5])}). "
            "Check train.backbone and train.patch_size."
        )


def normalisation(backbone: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return (mean, std) of the three channels in [0, 1] that a timm model was trained with."""
    config = timm.get_pretrained_cfg(backbone)
    return tuple(config.mean), tuple(config.std)


def whole_patches(size: tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    """Round (H, W) up to whole patches, so that map and image cover the same area."""
    return tuple(math.ceil(s / p) * p for s, p in zip(size, patch_size, strict=True))


def _run_block(block: Block, x: Tensor, num_rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Run one timm block on (B, T, D) tokens.

    Returns:
        The block's tokens (B, T, D), its projected attention output before the residual
        (B, T, D), and the softmax attention of the first `num_rows` tokens, averaged over the
        heads, (B, num_rows, T) float32.
    """
    attention = block.attn
    batch, length, _ = x.shape
    qkv = attention.qkv(block.norm1(x)).view(batch, length, 3, attention.num_heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, T, d) each
    q, k = attention.q_norm(q), attention.k_norm(k)
    mixed = F.scaled_dot_product_attention(q, k, v)  # never holds the T x T matrix
    output = attention.proj(mixed.transpose(1, 2).reshape(batch, length, -1))

    scores = q[:, :, :num_rows] @ k.transpose(-2, -1) * attention.scale
    rows = scores.float().softmax(dim=-1).mean(dim=1)

    x = x + block.drop_path1(block.ls1(output))
    x = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
    return x, output, rows


def _split_position(vit: VisionTransformer) -> tuple[Tensor, Tensor]:
    """Return the position embedding of the class token (1, 1, D) and the patches (1, N, D)."""
    position = vit.pos_embed.detach()
    if vit.no_embed_class:
        return torch.zeros_like(position[:, :1]), position
    return position[:, :1], position[:, 1:]


def _to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Turn (B, N, D) tokens into a (B, D, h, w) map."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def _not_a_plain_vit(backbone: str, reason: str) -> ValueError:
    return ValueError(
        f"train.backbone: expected a plain ViT of timm with a class token, such as "
        f"deit_small_patch16_224, got {backbone!r}: {reason}."
    )
