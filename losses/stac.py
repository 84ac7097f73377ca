"""The training loss of STAC: the weighted sum of its parts."""

from collections.abc import Sequence
from typing import Protocol

import torch

from losses.classification import classification_loss
from losses.pixel import pixel_loss
from losses.pixel_contrast import pixel_contrast_loss
from losses.saliency import saliency_loss
from losses.token_contrast import token_contrast_loss


class LossSettings(Protocol):
    """Weights (0 removes a loss) and settings; `configs.schema.LossConfig` is one."""

    classification: float
    patch: float
    token: float
    saliency: float
    contrast: float
    pixel: float
    temperature: float
    num_anchors: int
    num_negatives: int
    valid_threshold: float
    hard_threshold: float
    token_layers: int
    saliency_threshold: float


def stac_loss(
    *,
    class_logits: torch.Tensor,
    patch_logits: torch.Tensor,
    class_tokens: torch.Tensor,
    cams: Sequence[torch.Tensor],
    embedding: torch.Tensor,
    pixel_logits: torch.Tensor | None = None,
    labels: torch.Tensor,
    saliency: torch.Tensor,
    settings: LossSettings,
    generator: torch.Generator,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Sum the losses of one batch: METHOD A to D, and that of the online segmentation head.

    Args:
        class_logits: (B, K).
        patch_logits: (B, K).
        class_tokens: (L, B, K, D) of all blocks; the last `settings.token_layers` are contrasted.
        cams: one or two maps (B, K, H, W) in [0, 1], zero for absent classes. Saliency guides
            each; the first gives the pixel contrast and the segmentation head their classes.
        embedding: (B, E, h, w), not upsampled.
        pixel_logits: (B, K + 1, h', w') of the online segmentation head, None without one.
        labels: (B, K) multi-hot.
        saliency: (B, 1, H, W) in [0, 1].
        settings: weights and settings; a `saliency_threshold` above 0 makes the maps binary.
        generator: draws the pixels of the contrast.

    Returns:
        0-d weighted sum, and the unweighted terms by name, detached, for the log. A term of weight
        0 is neither computed nor named.
    """
    if settings.saliency_threshold > 0:
        saliency = (saliency >= settings.saliency_threshold).to(saliency.dtype)
    losses = {
        "classification": lambda: classification_loss(class_logits, labels),
        "patch": lambda: classification_loss(patch_logits, labels),
        "token": lambda: token_contrast_loss(class_tokens[-settings.token_layers :], labels),
        "saliency": lambda: sum(saliency_loss(maps, saliency) for maps in cams),
        "contrast": lambda: pixel_contrast_loss(
            embedding,
            cams[0],
            saliency,
            labels,
            temperature=settings.temperature,
            num_anchors=settings.num_anchors,
            num_negatives=settings.num_negatives,
            valid_threshold=settings.valid_threshold,
            hard_threshold=settings.hard_threshold,
            generator=generator,
        ),
    }
    if pixel_logits is not None:
        losses["pixel"] = lambda: pixel_loss(pixel_logits, cams[0], saliency, labels)
    weights = {name: getattr(settings, name) for name in losses}
    terms = {name: loss() for name, loss in losses.items() if weights[name] > 0}
    total = sum(weights[name] * term for name, term in terms.items())
    return total, {name: term.detach() for name, term in terms.items()}
