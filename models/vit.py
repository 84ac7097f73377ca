"""A timm Vision Transformer with one class token per class (METHOD A)."""

import logging
import math
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import timm
import torch
import torch.nn.functional as F
from timm.layers import Attention, apply_rot_embed_cat, resample_abs_pos_embed
from timm.models import eva, vision_transformer
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from models.weights import find_weights, read_state_dict

# Parts of published checkpoints that a localiser has no use for.
UNUSED_KEYS = ("head.", "head_dist.", "fc_norm.", "pre_logits.", "dist_token", "mask_token")
MAX_DEPTH = 100  # more blocks than any ViT has


class Tokens(NamedTuple):
    """What the encoder hands to the heads; C class tokens, L blocks, width D, grid h x w."""

    class_tokens: Tensor  # (L, B, C, D) after each block, those before split_block left out
    patch_tokens: Tensor  # (B, D, h, w) after the last block
    middle_tokens: Tensor | None  # (B, D, h, w) after `middle_block`, None where that is 0
    class_attention: Tensor  # (B, C, h, w) in [0, 1], mean over heads and the last n blocks
    attention_output: Tensor  # (B, D, h, w) mean over blocks, projected, before the residual


class ClassTokenViT(nn.Module):
    """Runs the blocks of a timm ViT on C class tokens, its register tokens and the patch tokens.

    The pretrained class token and its position embedding are repeated C times. The position
    embedding of the patches belongs to the grid the ViT was built for and is resampled to that
    of each input; a rotary one (DINOv3) is computed for it.

    The first `split_block` blocks can run on one class token, the mean of the C, as they were
    pretrained; only then it is repeated, each copy with what its own differs from the mean. Where
    these blocks are frozen, no gradient passes through them.
    """

    def __init__(
        self,
        vit: VisionTransformer | Eva,
        num_class_tokens: int,
        *,
        attention_layers: int,
        final_norm: bool = False,
        split_block: int = 0,
        middle_block: int = 0,
    ):
        """Take over the parts of a ViT.

        Args:
            vit: from `create_vit`.
            num_class_tokens: C.
            attention_layers: n, class attention is averaged over the last n blocks.
            final_norm: pass the last tokens through the ViT's last LayerNorm; the paper
                does not.
            split_block: first blocks with one class token; the paper's is 0.
            middle_block: the patch tokens after so many blocks are handed out too; 0 for none.
        """
        super().__init__()
        if not 0 <= split_block < len(vit.blocks):
            raise ValueError(
                f"train.split_block: expected 0 to {len(vit.blocks) - 1} (this backbone has "
                f"{len(vit.blocks)} blocks), got {split_block}."
            )
        if not 0 < attention_layers <= len(vit.blocks) - split_block:
            after = f" after train.split_block = {split_block}" if split_block else ""
            raise ValueError(
                f"train.attention_layers: expected 1 to {len(vit.blocks) - split_block} (the "
                f"blocks of this backbone{after}), got {attention_layers}."
            )
        if not 0 <= middle_block <= len(vit.blocks):
            raise ValueError(
                f"train.pixel_block: expected 0 to {len(vit.blocks)} (this backbone has "
                f"{len(vit.blocks)} blocks), got {middle_block}."
            )
        self.width = vit.embed_dim
        self.patch_size = vit.patch_embed.patch_size
        self.grid_size = vit.patch_embed.grid_size
        self.attention_layers = attention_layers
        self.split_block = split_block
        self.middle_block = middle_block
        self.frozen_blocks = 0
        self.patch_embed = vit.patch_embed
        self.norm_pre = vit.norm_pre
        self.blocks = vit.blocks
        self.norm = vit.norm if final_norm else nn.Identity()
        class_token, registers, patch_position = _positions(vit)
        self.cls_token = nn.Parameter(vit.cls_token.detach().repeat(1, num_class_tokens, 1))
        self.pos_embed_cls = nn.Parameter(class_token.repeat(1, num_class_tokens, 1))
        self.reg_token = _parameter(registers)
        self.pos_embed_pat = _parameter(patch_position)
        self.rope = getattr(vit, "rope", None)

    def no_weight_decay(self) -> set[str]:
        """Name the embeddings, which weight decay must not pull to zero."""
        return {"cls_token", "pos_embed_cls", "pos_embed_pat", "reg_token"}

    def layer_of(self, name: str) -> int:
        """Return the depth of a parameter: 0 for the embeddings, i + 1 for block i, L + 1 after."""
        part, _, rest = name.partition(".")
        if part == "blocks":
            return int(rest.partition(".")[0]) + 1
        return len(self.blocks) + 1 if part == "norm" else 0

    def freeze(self, num_blocks: int) -> None:
        """Stop the training of the patch embedding and the first blocks.

        Class tokens still learn: their gradient passes through frozen blocks after `split_block`.

        Raises:
            ValueError: the backbone has fewer blocks.
        """
        if num_blocks > len(self.blocks):
            raise ValueError(
                f"train.frozen_blocks: expected 0 to {len(self.blocks)} (the blocks of this "
                f"backbone), got {num_blocks}."
            )
        self.frozen_blocks = num_blocks
        if num_blocks:
            for part in (self.patch_embed, self.norm_pre, self.blocks[:num_blocks]):
                part.requires_grad_(False)
            for token in (self.pos_embed_pat, self.reg_token):
                if token is not None:
                    token.requires_grad_(False)

    def forward(self, images: Tensor) -> Tokens:
        """Encode images.

        Args:
            images: (B, 3, H, W) normalised; H and W whole multiples of the patch.
        """
        own = self.cls_token + self.pos_embed_cls  # (1, C, D)
        num_classes = own.shape[1]
        shared = own.mean(dim=1, keepdim=True)  # (1, 1, D)
        fixed = self.training and self.frozen_blocks >= self.split_block > 0
        with torch.no_grad() if fixed else nullcontext():
            patches, grid = self._embed(images)
            prefix = shared if self.split_block else own
            if self.reg_token is not None:
                prefix = torch.cat([prefix, self.reg_token], dim=1)
            x = torch.cat([prefix.expand(images.shape[0], -1, -1), patches], dim=1)
            x = self.norm_pre(x)  # (B, C or 1 + R + N, D)
            rotary = None if self.rope is None else self.rope.get_embed(shape=grid)  # (N, 2 d)
            output_sum = torch.zeros((), device=x.device)
            middle = None
            for number, block in enumerate(self.blocks[: self.split_block], 1):
                x, attention_output, _ = _run_block(block, x, 0, rotary)
                output_sum = output_sum + attention_output[:, prefix.shape[1] :]
                if number == self.middle_block:
                    middle = x[:, prefix.shape[1] :]
        if self.split_block:
            x = torch.cat([x[:, :1] + (own - shared), x[:, 1:]], dim=1)
        num_prefix = x.shape[1] - patches.shape[1]  # C + R

        states, attentions = [], []
        first_attention = len(self.blocks) - self.attention_layers
        for index, block in enumerate(self.blocks[self.split_block :], self.split_block):
            num_rows = num_classes if index >= first_attention else 0
            x, attention_output, rows = _run_block(block, x, num_rows, rotary)
            states.append(x[:, :num_classes])
            output_sum = output_sum + attention_output[:, num_prefix:]
            if num_rows:
                attentions.append(rows[..., num_prefix:])
            if index + 1 == self.middle_block:
                middle = x[:, num_prefix:]
        x = self.norm(x)
        states[-1] = x[:, :num_classes]

        return Tokens(
            class_tokens=torch.stack(states),
            patch_tokens=_to_map(x[:, num_prefix:], grid),
            middle_tokens=None if middle is None else _to_map(middle, grid),
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
        if self.pos_embed_pat is None:
            return patches, grid
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
    num_heads: int = 0,
    drop_path: float = 0.0,
) -> VisionTransformer | Eva:
    """Build a timm ViT for one image size, with pretrained weights where asked.

    Args:
        backbone: timm name of a plain ViT with a class token (DeiT, augreg, DINOv2, with or
            without registers, ...) or of a DINOv3 ViT.
        pretrained: "timm" takes a local file (`find_weights`) or downloads, "none" starts at
            random, anything else is a file of weights (.pth, .pt, .safetensors) with timm, DeiT
            or DINOv2 keys.
        image_size: (H, W), rounded up to whole patches; the position embedding becomes that
            grid's.
        patch_size: 0 for the backbone's own.
        depth: number of first blocks to keep; 0 for all.
        num_heads: 0 for the backbone's own, which its weights were trained with.
        drop_path: stochastic depth of the last block, rising linearly from 0.

    Raises:
        ValueError: no such model, another kind of model, or weights that do not fit.
        FileNotFoundError: no such weights file.
    """
    changes = {"patch_size": patch_size, "depth": depth, "num_heads": num_heads}
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
    _check_parts(backbone, vit)
    vit.set_input_size(img_size=whole_patches(image_size, vit.patch_embed.patch_size))
    if weights:
        print(f"pretrained weights: {weights}")
        load_pretrained(vit, weights)
    return vit


def _check_parts(backbone: str, vit: nn.Module) -> None:
    """Refuse a model whose blocks `_run_block` would not reproduce."""
    if getattr(vit, "cls_token", None) is None:
        raise _not_a_plain_vit(backbone, "no class token")
    if isinstance(vit, Eva):
        kinds = (EvaBlock, EvaAttention)
        fits = hasattr(vit.rope, "get_embed") and not vit.rope_mixed
        fits = fits and all(b.attn.qkv is not None and b.attn.gate is None for b in vit.blocks)
    else:
        kinds = (Block, Attention)
        fits = isinstance(vit, VisionTransformer) and vit.pos_embed is not None
    if not fits:
        raise _not_a_plain_vit(backbone, "another position embedding or attention")
    if any((type(block), type(block.attn)) != kinds for block in vit.blocks):
        raise _not_a_plain_vit(backbone, f"blocks of type {type(vit.blocks[0]).__name__}")


def load_pretrained(vit: VisionTransformer | Eva, path: Path) -> None:
    """Load a weights file into a timm ViT; position and patch embedding are resampled.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable, or its keys do not match the ViT's.
    """
    state = read_state_dict(path, "train.pretrained")
    # timm resamples silently but for a log line per tensor, which says nothing new here.
    logging.getLogger("timm").setLevel(logging.WARNING)
    try:
        module = eva if isinstance(vit, Eva) else vision_transformer
        state = module.checkpoint_filter_fn(state, vit)
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


def _run_block(
    block: Block | EvaBlock, x: Tensor, num_rows: int, rotary: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Run one timm block on (B, T, D) tokens.

    Returns:
        The block's tokens (B, T, D), its projected attention output before the residual
        (B, T, D), and the softmax attention of the first `num_rows` tokens, averaged over the
        heads, (B, num_rows, T), in float32 or better.
    """
    attention = block.attn
    batch, length, _ = x.shape
    qkv = _project(attention, block.norm1(x)).view(batch, length, 3, attention.num_heads, -1)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, T, d) each
    q, k = attention.q_norm(q), attention.k_norm(k)
    if rotary is not None:
        q, k = (_rotate(part, rotary, attention.rotate_half).to(v.dtype) for part in (q, k))
    mixed = F.scaled_dot_product_attention(q, k, v)  # never holds the T x T matrix
    output = attention.proj(attention.norm(mixed.transpose(1, 2).reshape(batch, length, -1)))

    scores = q[:, :, :num_rows] @ k.transpose(-2, -1) * attention.scale
    precise = torch.promote_types(scores.dtype, torch.float32)
    rows = scores.softmax(dim=-1, dtype=precise).mean(dim=1)

    x = x + block.drop_path1(_layer_scale(block, 1, output))
    x = x + block.drop_path2(_layer_scale(block, 2, block.mlp(block.norm2(x))))
    return x, output, rows


def _project(attention: Attention | EvaAttention, x: Tensor) -> Tensor:
    """Return queries, keys and values, (B, T, 3 D); Eva keeps their biases apart."""
    if getattr(attention, "q_bias", None) is None:
        return attention.qkv(x)
    bias = torch.cat((attention.q_bias, attention.k_bias, attention.v_bias))
    return F.linear(x, attention.qkv.weight, bias)


def _rotate(tokens: Tensor, rotary: Tensor, half: bool) -> Tensor:
    """Rotate the patches, the last N tokens of (B, heads, T, d), by their positions."""
    prefix, patches = tokens.tensor_split([tokens.shape[2] - rotary.shape[0]], dim=2)
    return torch.cat([prefix, apply_rot_embed_cat(patches, rotary, half=half)], dim=2)


def _layer_scale(block: Block | EvaBlock, branch: int, x: Tensor) -> Tensor:
    """Scale the output of the attention (branch 1) or the MLP (2) as the block does."""
    if isinstance(block, EvaBlock):
        gamma = getattr(block, f"gamma_{branch}")
        return x if gamma is None else gamma * x
    return getattr(block, f"ls{branch}")(x)


def _positions(vit: VisionTransformer | Eva) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the class token's position embedding, the registers with theirs, the patches'."""
    registers = None if vit.reg_token is None else vit.reg_token.detach()
    if vit.pos_embed is None or vit.no_embed_class:
        patches = None if vit.pos_embed is None else vit.pos_embed.detach()
        return torch.zeros_like(vit.cls_token), registers, patches
    first, own, patches = vit.pos_embed.detach().tensor_split([1, vit.num_prefix_tokens], dim=1)
    return first, None if registers is None else registers + own, patches


def _parameter(value: Tensor | None) -> nn.Parameter | None:
    return None if value is None else nn.Parameter(value.clone())


def _to_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Turn (B, N, D) tokens into a (B, D, h, w) map."""
    return tokens.transpose(1, 2).unflatten(2, grid)


def _not_a_plain_vit(backbone: str, reason: str) -> ValueError:
    return ValueError(
        f"train.backbone: expected a plain or DINOv3 ViT of timm with a class token, such as "
        f"deit_small_patch16_224, got {backbone!r}: {reason}."
    )
