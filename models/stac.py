"""The STAC localiser: encoder and heads; and back from a checkpoint."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.cam import POOLING_DECAY, full_precision, pool_patches
from models.pixel_head import PixelHead
from models.vit import ClassTokenViT, create_vit


class StacOutput(NamedTuple):
    """What the losses and the CAMs are made from; grid h x w, L blocks, all float32."""

    class_logits: Tensor  # (B, K) mean of the class tokens
    patch_logits: Tensor  # (B, K) pooled patch map
    class_tokens: Tensor  # (L, B, K, D) after each block, see `models.vit.Tokens`
    patch_map: Tensor  # (B, K, h, w) logits
    class_attention: Tensor  # (B, K, h, w) in [0, 1]
    feature_map: Tensor  # (B, K, h, w) logits of the attention features, same head
    embedding: Tensor  # (B, E, h, w) for the pixel contrast, or of the size of pixel_logits
    pixel_logits: Tensor | None = None  # (B, K + 1, ~H / 4, ~W / 4) of the head, background first


class Stac(nn.Module):
    """Localises K defect classes with K class tokens."""

    def __init__(
        self,
        encoder: ClassTokenViT,
        num_classes: int,
        projection_width: int = 256,
        pooling_decay: float = POOLING_DECAY,
        scale_pooling: bool = True,
        head_padding: str = "zeros",
    ):
        """Put the heads on an encoder.

        Args:
            encoder: with `num_classes` class tokens; one that hands out tokens of a middle block
                gets an online segmentation head on them, whose features are the embedding of the
                pixel contrast. Else that is a projection of the last tokens, as in the paper.
            num_classes: K.
            projection_width: E, channels of the pixel embedding.
            pooling_decay: see `models.cam.pool_patches`.
            scale_pooling: likewise.
            head_padding: of the 3 x 3 convolutions, as `torch.nn.Conv2d` names it; the paper's
                is zeros.
        """
        super().__init__()
        self.encoder = encoder
        self.pooling_decay = pooling_decay
        self.scale_pooling = scale_pooling
        border = {"padding": 1, "padding_mode": head_padding}
        self.head = nn.Conv2d(encoder.width, num_classes, 3, **border)
        self.pixel_head = self.projection = None  # one of them
        if encoder.middle_block:
            self.pixel_head = PixelHead(encoder.width, num_classes, head_padding)
        else:
            self.projection = nn.Sequential(
                nn.Conv2d(encoder.width, projection_width, 3, **border),
                nn.BatchNorm2d(projection_width),
                nn.ReLU(inplace=True),
                nn.Conv2d(projection_width, projection_width, 1),
            )

    def no_weight_decay(self) -> set[str]:
        """Name the encoder's embeddings."""
        return {f"encoder.{name}" for name in self.encoder.no_weight_decay()}

    def lr_scale(
        self, name: str, head_lr_scale: float, layer_decay: float, pixel_lr_scale: float = 1.0
    ) -> float:
        """Return the factor of a parameter's learning rate.

        Heads and class tokens are new and take `head_lr_scale`. Class tokens start as copies of one
        token, where the class-token contrast has no gradient; the higher their rate, the sooner the
        labels tell them apart. Each block learns at `layer_decay` times the rate of the next one,
        the patch embedding before the first.

        Args:
            name: of a parameter of this model.
            head_lr_scale: above 0.
            layer_decay: in (0, 1]; 1 for one rate.
            pixel_lr_scale: of the online segmentation head, above 0.
        """
        part, _, rest = name.partition(".")
        if part == "pixel_head":
            return pixel_lr_scale
        if part != "encoder" or rest in ("cls_token", "pos_embed_cls"):
            return head_lr_scale
        return layer_decay ** (len(self.encoder.blocks) + 1 - self.encoder.layer_of(rest))

    def forward(self, images: Tensor) -> StacOutput:
        """Localise.

        Args:
            images: (B, 3, H, W) normalised, H and W whole multiples of the patch.
        """
        tokens = self.encoder(images)
        patch_map = full_precision(self.head(tokens.patch_tokens))
        class_tokens = full_precision(tokens.class_tokens)
        if self.pixel_head is None:
            pixel_logits, embedding = None, self.projection(tokens.patch_tokens)
        else:
            pixel_logits, embedding = self.pixel_head(
                images, tokens.middle_tokens, patch_map, tokens.class_attention
            )
        return StacOutput(
            class_logits=class_tokens[-1].mean(-1),
            patch_logits=pool_patches(patch_map, self.pooling_decay, self.scale_pooling),
            class_tokens=class_tokens,
            patch_map=patch_map,
            class_attention=tokens.class_attention,
            feature_map=full_precision(self.head(tokens.attention_output)),
            embedding=full_precision(embedding),
            pixel_logits=None if pixel_logits is None else full_precision(pixel_logits),
        )


def image_scores(output: StacOutput) -> Tensor:
    """Return sigmoid((class logit + patch logit) / 2), (B, K) in [0, 1]."""
    return torch.sigmoid((output.class_logits + output.patch_logits) / 2)


def build_stac(settings: dict[str, Any], num_classes: int, pretrained: str) -> Stac:
    """Build a localiser from the `train` section of a config.

    Args:
        settings: plain values, as `configs.to_dict(config)["train"]` or a checkpoint holds them.
        num_classes: K.
        pretrained: see `models.vit.create_vit`; "none" when a checkpoint is loaded after.
    """
    vit = create_vit(
        settings["backbone"],
        pretrained,
        tuple(settings["image_size"]),
        patch_size=settings["patch_size"],
        depth=settings["depth"],
        num_heads=settings.get("num_heads", 0),  # older checkpoints do not name it
        drop_path=settings["drop_path"],
    )
    encoder = ClassTokenViT(
        vit,
        num_classes,
        attention_layers=settings["attention_layers"],
        final_norm=settings["final_norm"],
        split_block=settings.get("split_block", 0),  # likewise
        middle_block=settings.get("pixel_block", 0),  # likewise
    )
    return Stac(
        encoder,
        num_classes,
        settings["projection_width"],
        settings["pooling_decay"],
        settings["scale_pooling"],
        settings.get("head_padding", "zeros"),  # likewise
    )


def stac_from_checkpoint(checkpoint: dict[str, Any]) -> Stac:
    """Rebuild the localiser of a checkpoint of train_stac.py, from the checkpoint alone."""
    settings = checkpoint["config"]["train"]
    model = build_stac(settings, len(checkpoint["class_names"]), pretrained="none")
    model.load_state_dict(checkpoint["model"])
    return model.eval()
