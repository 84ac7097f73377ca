"""A timm Vision Transformer with one class token per class (docs/method.md, A)."""

from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import Attention, apply_rot_embed_cat, resample_abs_pos_embed
from timm.models.eva import Eva, EvaAttention, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn


class Tokens(NamedTuple):
    """What the encoder hands to the heads; C class tokens, width D, grid h x w."""

    class_tokens: Tensor  # (n, B, C, D) after each of the last n blocks
    patch_tokens: Tensor  # (B, D, h, w) after the last block
    middle_tokens: Tensor | None  # (B, D, h, w) after `middle_block`, None where that is 0
    class_attention: Tensor  # (B, C, h, w) in [0, 1], mean over heads and the last n blocks
    attention_output: Tensor  # (B, D, h, w) mean over blocks, projected, before the residual


class ClassTokenViT(nn.Module):
    """Runs the blocks of a timm ViT on C class tokens, its register tokens and the patch tokens.

    The pretrained class token and its position embedding are repeated C times. The position
    embedding of the patches belongs to the grid the ViT was built for and is resampled to that
    of each input; a rotary one (DINOv3) is computed for it.

    The first `frozen_blocks` blocks keep their weights and run on one class token, the mean of the
    C, as they were pretrained; only then it is repeated, each copy with what its own differs from
    the mean. No gradient passes through these blocks.
    """

    def __init__(
        self,
        vit: VisionTransformer | Eva,
        num_class_tokens: int,
        *,
        attention_layers: int,
        frozen_blocks: int = 0,
        middle_block: int = 0,
    ):
        """Take over the parts of a ViT.

        Args:
            vit: from `models.backbones.create_vit`.
            num_class_tokens: C.
            attention_layers: n, class attention is averaged over the last n blocks.
            frozen_blocks: see above; the patch embedding is frozen with them. The paper's is 0.
            middle_block: the patch tokens after so many blocks are handed out too; 0 for none.
        """
        super().__init__()
        num_blocks = len(vit.blocks)
        for key, value, least, most in (
            ("frozen_blocks", frozen_blocks, 0, num_blocks - 1),
            ("attention_layers", attention_layers, 1, num_blocks - frozen_blocks),
            ("pixel_block", middle_block, 0, num_blocks),
        ):
            if not least <= value <= most:
                raise ValueError(
                    f"train.{key}: expected {least} to {most} (this backbone has {num_blocks} "
                    f"blocks, train.frozen_blocks is {frozen_blocks}), got {value}."
                )
        self.width = vit.embed_dim
        self.patch_size = vit.patch_embed.patch_size
        self.grid_size = vit.patch_embed.grid_size
        self.attention_layers = attention_layers
        self.frozen_blocks = frozen_blocks
        self.middle_block = middle_block
        self.patch_embed = vit.patch_embed
        self.norm_pre = vit.norm_pre
        self.blocks = vit.blocks
        class_token, registers, patch_position = _positions(vit)
        self.cls_token = nn.Parameter(vit.cls_token.detach().repeat(1, num_class_tokens, 1))
        self.pos_embed_cls = nn.Parameter(class_token.repeat(1, num_class_tokens, 1))
        self.reg_token = _parameter(registers)
        self.pos_embed_pat = _parameter(patch_position)
        self.rope = getattr(vit, "rope", None)
        if frozen_blocks:
            for part in (self.patch_embed, self.norm_pre, self.blocks[:frozen_blocks]):
                part.requires_grad_(False)
            for token in (self.pos_embed_pat, self.reg_token):
                if token is not None:
                    token.requires_grad_(False)

    def no_weight_decay(self) -> set[str]:
        """Name the embeddings, which weight decay must not pull to zero."""
        return {"cls_token", "pos_embed_cls", "pos_embed_pat", "reg_token"}

    def forward(self, images: Tensor) -> Tokens:
        """Encode images.

        Args:
            images: (B, 3, H, W) normalised; H and W whole multiples of the patch.
        """
        own = self.cls_token + self.pos_embed_cls  # (1, C, D)
        num_classes = own.shape[1]
        shared = own.mean(dim=1, keepdim=True)  # (1, 1, D)
        is_frozen = self.training and self.frozen_blocks > 0
        with torch.no_grad() if is_frozen else nullcontext():
            patches, grid = self._embed(images)
            prefix = shared if self.frozen_blocks else own
            if self.reg_token is not None:
                prefix = torch.cat([prefix, self.reg_token], dim=1)
            x = torch.cat([prefix.expand(images.shape[0], -1, -1), patches], dim=1)
            x = self.norm_pre(x)  # (B, C or 1 + R + N, D)
            rotary = None if self.rope is None else self.rope.get_embed(shape=grid)  # (N, 2 d)
            output_sum = torch.zeros((), device=x.device)
            middle = None
            for number, block in enumerate(self.blocks[: self.frozen_blocks], 1):
                x, attention_output, _ = _run_block(block, x, 0, rotary)
                output_sum = output_sum + attention_output[:, prefix.shape[1] :]
                if number == self.middle_block:
                    middle = x[:, prefix.shape[1] :]
        if self.frozen_blocks:
            x = torch.cat([x[:, :1] + (own - shared), x[:, 1:]], dim=1)
        num_prefix = x.shape[1] - patches.shape[1]  # C + R

        states, attentions = [], []
        first_attention = len(self.blocks) - self.attention_layers
        for index, block in enumerate(self.blocks[self.frozen_blocks :], self.frozen_blocks):
            num_rows = num_classes if index >= first_attention else 0
            x, attention_output, rows = _run_block(block, x, num_rows, rotary)
            states.append(x[:, :num_classes])
            output_sum = output_sum + attention_output[:, num_prefix:]
            if num_rows:
                attentions.append(rows[..., num_prefix:])
            if index + 1 == self.middle_block:
                middle = x[:, num_prefix:]
        return Tokens(
            class_tokens=torch.stack(states[-self.attention_layers :]),
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
