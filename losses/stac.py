"""The training loss of STAC: the weighted sum of its parts."""

import torch

from configs import LossConfig
from losses.classification import classification_loss
from losses.pixel import pixel_loss
from losses.pixel_contrast import pixel_contrast_loss
from losses.saliency import saliency_loss
from losses.token_contrast import token_contrast_loss
from models.cam import guided_cams
from models.stac import StacOutput


def stac_loss(
    output: StacOutput,
    labels: torch.Tensor,
    saliency: torch.Tensor,
    settings: LossConfig,
    generator: torch.Generator,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Sum the losses of one batch (docs/method.md, A to E).

    Args:
        output: of the localiser.
        labels: (B, K) multi-hot.
        saliency: (B, 1, H, W) in [0, 1]; CAMs are brought to its size, the embedding is not.
        settings: weights and settings; a `saliency_threshold` above 0 makes the maps binary.
        generator: draws the pixels of the contrast.

    Returns:
        0-d weighted sum, and the unweighted terms by name, detached, for the log. A term of weight
        0 is neither computed nor named.
    """
    cams = guided_cams(output, labels, tuple(saliency.shape[-2:]))
    if settings.saliency_threshold > 0:
        saliency = (saliency >= settings.saliency_threshold).to(saliency.dtype)
    losses = {
        "classification": lambda: classification_loss(output.class_logits, labels),
        "patch": lambda: classification_loss(output.patch_logits, labels),
        "token": lambda: token_contrast_loss(output.class_tokens, labels),
        "saliency": lambda: sum(saliency_loss(maps, saliency) for maps in cams),
        "contrast": lambda: pixel_contrast_loss(
            output.embedding,
            cams[0],
            saliency,
            labels,
            temperature=settings.temperature,
            num_anchors=settings.num_anchors,
            num_negatives=settings.num_negatives,
            generator=generator,
        ),
    }
    if output.pixel_logits is not None:
        losses["pixel"] = lambda: pixel_loss(output.pixel_logits, cams[0], saliency, labels)
    weights = {name: getattr(settings, name) for name in losses}
    terms = {name: loss() for name, loss in losses.items() if weights[name] > 0}
    total = sum(weights[name] * term for name, term in terms.items())
    return total, {name: term.detach() for name, term in terms.items()}
