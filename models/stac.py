"""The STAC localiser: encoder and heads; and back from a checkpoint."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from configs import TrainConfig, from_dict
from models.backbones import create_vit, load_weights
from models.device import full_precision
from models.pixel_head import PixelHead
from models.vit import ClassTokenViT

REFERENCE_PATCHES = 196  # grid of the paper, 14 x 14, that the pooling decay is meant for
POOLING_DECAY = 0.996  # weight ratio between neighbouring ranks on that grid
PIXEL_LR_SCALE = 10.0  # of the rate: that of the online segmentation head
TOP_PART = 100  # one in so many pixels of that head tells of the image


class StacOutput(NamedTuple):
    """What the losses and the CAMs are made from; grid h x w, all float32."""

    class_logits: Tensor  # (B, K) mean of the class tokens
    patch_logits: Tensor  # (B, K) pooled patch map
    class_tokens: Tensor  # (n, B, K, D) after each of the last n blocks
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
            scale_pooling: see `pool_patches`.
            head_padding: of the 3 x 3 convolutions, as `torch.nn.Conv2d` names it; the paper's
                is zeros.
        """
        super().__init__()
        self.encoder = encoder
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

    def lr_scale(self, name: str, head_lr_scale: float) -> float:
        """Return the factor of a parameter's learning rate.

        Heads and class tokens are new and take `head_lr_scale`, the online segmentation head
        `PIXEL_LR_SCALE`. Class tokens start as copies of one token, where the class-token contrast
        has no gradient; the higher their rate, the sooner the labels tell them apart.

        Args:
            name: of a parameter of this model.
            head_lr_scale: above 0.
        """
        part, _, rest = name.partition(".")
        if part == "pixel_head":
            return PIXEL_LR_SCALE
        if part != "encoder" or rest in ("cls_token", "pos_embed_cls"):
            return head_lr_scale
        return 1.0

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
            patch_logits=pool_patches(patch_map, self.scale_pooling),
            class_tokens=class_tokens,
            patch_map=patch_map,
            class_attention=tokens.class_attention,
            feature_map=full_precision(self.head(tokens.attention_output)),
            embedding=full_precision(embedding),
            pixel_logits=None if pixel_logits is None else full_precision(pixel_logits),
        )


def pool_patches(patch_map: Tensor, scale_window: bool = True) -> Tensor:
    """Pool each class' patch logits, the highest weighted most.

    The k-th highest of N values weighs POOLING_DECAY ** k. At a larger grid that window would
    cover a smaller share of the image, so k counts in units of N / 196 patches.

    Args:
        patch_map: (B, K, h, w) logits.
        scale_window: False keeps the paper's weights whatever the grid.

    Returns:
        (B, K) patch logits.
    """
    ranked = full_precision(patch_map).flatten(2).sort(dim=-1, descending=True).values  # (B, K, N)
    num_patches = ranked.shape[-1]
    unit = REFERENCE_PATCHES / num_patches if scale_window else 1.0
    ranks = torch.arange(num_patches, device=ranked.device, dtype=ranked.dtype)
    weights = POOLING_DECAY ** (ranks * unit)
    return (ranked * weights).sum(-1) / weights.sum()


def image_scores(output: StacOutput) -> Tensor:
    """Return how surely each class is in the image, (B, K) in [0, 1].

    That is sigmoid((class logit + patch logit) / 2). With an online segmentation head it is the
    mean of that and of the class' share in the pixels where it is highest, one in `TOP_PART`: the
    head knows classes long before the logits do.
    """
    scores = torch.sigmoid((output.class_logits + output.patch_logits).float() / 2)
    if output.pixel_logits is None:
        return scores
    shares = output.pixel_logits.float().softmax(dim=1)[:, 1:].flatten(2)  # (B, K, pixels)
    # By ranks and not by topk: exported models take images of any size.
    ranks = torch.arange(shares.shape[2], device=shares.device)
    is_high = ranks * TOP_PART < shares.shape[2]
    highest = (shares.sort(dim=2, descending=True).values * is_high).sum(dim=2) / is_high.sum()
    return (scores + highest) / 2


def build_stac(settings: TrainConfig, num_classes: int, pretrained: str = "none") -> Stac:
    """Build a localiser.

    Args:
        settings: the train section of a config, of this run or of a checkpoint.
        num_classes: K.
        pretrained: see `models.backbones.create_vit`; "none" when a checkpoint is loaded after.
    """
    encoder = ClassTokenViT(
        create_vit(settings, pretrained),
        num_classes,
        attention_layers=settings.attention_layers,
        frozen_blocks=settings.frozen_blocks,
        middle_block=settings.pixel_block,
    )
    return Stac(
        encoder,
        num_classes,
        projection_width=settings.projection_width,
        scale_pooling=settings.scale_pooling,
        head_padding=settings.head_padding,
    )


def stac_from_checkpoint(checkpoint: dict[str, Any]) -> Stac:
    """Rebuild the localiser of a checkpoint of train_stac.py, from the checkpoint alone."""
    settings = from_dict(checkpoint["config"]).train
    model = build_stac(settings, len(checkpoint["class_names"]))
    load_weights(model, checkpoint)
    return model.eval()
