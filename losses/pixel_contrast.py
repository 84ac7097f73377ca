"""Pixel-level contrast of the embedding (docs/method.md, C), on its own low-resolution grid.

The method compares embedding vectors upsampled to the training size. Upsampling is linear, so
they are interpolated only at the sampled anchors; prototypes, scalar products with negatives and
norms are taken from the grid. Mask classes count K + 1: 0 background, k + 1 for class k.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import FunctionCtx, once_differentiable

from losses.inputs import check_saliency
from losses.interpolation import corner_cells, interpolation_matrix, upsampled_norms
from models.device import full_precision

VALID_THRESHOLD = 0.5  # a pixel takes part from this class probability on; the paper's
HARD_THRESHOLD = 0.9  # pixels below it may become anchors
EPS = 1e-8  # least norm of a vector in a cosine similarity
INVALID = -1


class PixelClasses(NamedTuple):
    """The class that CAMs and saliency give each pixel.

    Attributes:
        label: (B, H, W) int16 mask class, or INVALID.
        confidence: (B, H, W) probability of the most probable class.
    """

    label: torch.Tensor
    confidence: torch.Tensor


class ClassPixels(NamedTuple):
    """The valid pixels listed class by class, in each class the hard ones first.

    Attributes:
        order: (B * H * W,) pixel indices into the flattened (B, H, W); invalid pixels last.
        start: (K + 1,) where each class begins in `order`.
        num_hard: (K + 1,) pixels that may become anchors: those under the hard threshold, and all
            of the background where none of it is. Binary saliency makes its probability exactly 1;
            without this exception the background could never anchor.
        num_valid: (K + 1,) pixels of the class, hard or not.
    """

    order: torch.Tensor
    start: torch.Tensor
    num_hard: torch.Tensor
    num_valid: torch.Tensor


class Samples(NamedTuple):
    """What one evaluation of the loss compares.

    Attributes:
        anchors: (K + 1, Q) pixel indices; meaningless where `used` is false.
        negatives: (K + 1, Q, N) pixel indices; the same.
        used: (K + 1,) bool: the class has hard pixels, and another class has valid ones.
    """

    anchors: torch.Tensor
    negatives: torch.Tensor
    used: torch.Tensor


def pixel_contrast_loss(
    embedding: torch.Tensor,
    cams: torch.Tensor,
    saliency: torch.Tensor,
    labels: torch.Tensor,
    *,
    temperature: float,
    num_anchors: int,
    num_negatives: int,
    generator: torch.Generator,
    valid_threshold: float = VALID_THRESHOLD,
    hard_threshold: float = HARD_THRESHOLD,
) -> torch.Tensor:
    """Pull hard pixels to the prototype of their class and away from pixels of other classes.

    Args:
        embedding: (B, E, h, w); only the anchors pass a gradient to it.
        cams: (B, K, H, W) in [0, 1], zero for absent classes; taken as constants.
        saliency: (B, 1, H, W) in [0, 1].
        labels: (B, K) multi-hot.
        temperature: divides every cosine similarity.
        num_anchors: Q, per class and batch.
        num_negatives: N, per anchor.
        valid_threshold: a pixel takes part from this class probability on.
        hard_threshold: valid pixels below it may become anchors.
        generator: draws the samples; on the device of the tensors, or on the CPU.

    Returns:
        0-d float32, mean over the classes that had anchors; zero on the graph without any.

    Raises:
        ValueError: saliency does not have the size of the CAMs.
    """
    embedding = full_precision(embedding)
    with torch.autocast(embedding.device.type, enabled=False):
        with torch.no_grad():
            label, confidence = pixel_classes(cams, saliency, labels, valid_threshold)
            num_classes = cams.shape[1] + 1
            prototypes = class_prototypes(embedding, label, num_classes)
            pixels = sort_pixels(label, confidence, num_classes, hard_threshold)
            samples = draw_samples(
                pixels, prototypes, temperature, num_anchors, num_negatives, generator
            )
        return info_nce(embedding, prototypes, samples, tuple(cams.shape[2:]), temperature)


def pixel_classes(
    cams: torch.Tensor, saliency: torch.Tensor, labels: torch.Tensor, valid_threshold: float
) -> PixelClasses:
    """Give each pixel its most probable class; ties go to the lowest index.

    The background's probability is 1 - saliency, that of a present class its CAM. Arguments as in
    `pixel_contrast_loss`.
    """
    check_saliency(cams, saliency)
    labels = labels.to(cams.dtype)
    confidence = 1 - saliency[:, 0].to(cams.dtype)  # (B, H, W)
    label = torch.zeros_like(confidence, dtype=torch.int16)
    for k in range(cams.shape[1]):  # a running maximum spares a second copy of the CAMs
        probability = cams[:, k] * labels[:, k, None, None]
        higher = (probability > confidence).to(label.dtype)
        torch.maximum(label, higher * (k + 1), out=label)
        torch.maximum(confidence, probability, out=confidence)
    label.masked_fill_(confidence < valid_threshold, INVALID)
    return PixelClasses(label, confidence)


def class_prototypes(
    embedding: torch.Tensor, label: torch.Tensor, num_classes: int
) -> torch.Tensor:
    """Average the upsampled embedding over the pixels of each mask class.

    The transposed upsampling turns a class' pixels into weights of the grid's cells.

    Args:
        embedding: (B, E, h, w).
        label: (B, H, W) mask class of each pixel, or INVALID.
        num_classes: K + 1.

    Returns:
        (K + 1, E), zeros for a class without pixels.
    """
    rows = interpolation_matrix(label.shape[1], embedding.shape[2], embedding)  # (H, h)
    columns = interpolation_matrix(label.shape[2], embedding.shape[3], embedding)  # (W, w)
    weights = torch.stack(
        [rows.T @ ((label == k).to(rows.dtype) @ columns) for k in range(num_classes)]
    ).flatten(1)  # (K + 1, B * h * w)
    total = weights @ _cell_features(embedding)
    return total / weights.sum(dim=1, keepdim=True).clamp(min=1)


def sort_pixels(
    label: torch.Tensor, confidence: torch.Tensor, num_classes: int, hard_threshold: float
) -> ClassPixels:
    """List the pixels by mask class, so that a class is sampled without counting on the host.

    Args:
        label: (B, H, W) mask class of each pixel, or INVALID.
        confidence: (B, H, W).
        num_classes: K + 1.
        hard_threshold: valid pixels below it are hard.
    """
    key = 2 * label + (confidence >= hard_threshold).to(label.dtype)
    key.masked_fill_(label == INVALID, 2 * num_classes)
    key, order = key.flatten().sort(stable=True)
    edges = torch.arange(2 * num_classes + 1, device=key.device, dtype=key.dtype)
    edges = torch.searchsorted(key, edges)
    start, easy, end = edges[:-1:2], edges[1::2], edges[2::2]
    num_hard, num_valid = easy - start, end - start
    background_is_sure = (num_hard == 0) & (torch.arange(num_classes, device=key.device) == 0)
    return ClassPixels(order, start, num_hard.where(~background_is_sure, num_valid), num_valid)


def negative_classes(
    prototypes: torch.Tensor, num_valid: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Return the probability that an anchor of class k takes its negatives from class j.

    Args:
        prototypes: (K + 1, E).
        num_valid: (K + 1,) pixels of each class.
        temperature: divides the cosine similarities of the prototypes.

    Returns:
        (K + 1, K + 1) float64, row k over j; zero for j = k and for classes without pixels, and
        a whole row of zeros where no class is left.
    """
    unit = F.normalize(prototypes.double(), dim=1, eps=EPS)
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    excluded = itself | (num_valid == 0)
    similarity = (unit @ unit.T / temperature).masked_fill(excluded, -torch.inf)
    return similarity.softmax(dim=1).nan_to_num(0)


def draw_samples(
    pixels: ClassPixels,
    prototypes: torch.Tensor,
    temperature: float,
    num_anchors: int,
    num_negatives: int,
    generator: torch.Generator,
) -> Samples:
    """Draw anchors and negatives of every class, all independent and with replacement.

    Anchors are uniform over the hard pixels of their class; a negative is uniform over the pixels
    of a class that is drawn by `negative_classes`.
    """
    chances = negative_classes(prototypes, pixels.num_valid, temperature)
    used = (pixels.num_hard > 0) & (chances.sum(dim=1) > 0)
    classes = torch.arange(len(chances), device=chances.device)
    chosen = _uniform((len(chances), num_anchors), generator, chances.device)
    anchors = _pick(pixels, classes[:, None], pixels.num_hard, chosen)
    negatives = torch.empty(
        (*anchors.shape, num_negatives), dtype=anchors.dtype, device=anchors.device
    )
    for k, chance in enumerate(chances):  # a loop, as the draws of one class are already many
        uniform = _uniform((2, num_anchors, num_negatives), generator, chances.device)
        bounds = chance.cumsum(dim=0)
        bounds = bounds / bounds[-1]  # the last is then exactly 1, above every draw
        others = torch.searchsorted(bounds, uniform[0], right=True).clamp(max=len(chances) - 1)
        negatives[k] = _pick(pixels, others, pixels.num_valid, uniform[1])
    return Samples(anchors, negatives, used)


def info_nce(
    embedding: torch.Tensor,
    prototypes: torch.Tensor,
    samples: Samples,
    size: tuple[int, int],
    temperature: float,
) -> torch.Tensor:
    """Contrast each anchor's prototype with its negatives, by cosine similarity.

    Args:
        embedding: (B, E, h, w); receives a gradient at the anchors only.
        prototypes: (K + 1, E), constants.
        samples: pixels of the upsampled embedding.
        size: (H, W) of the upsampled embedding.
        temperature: divides every similarity.

    Returns:
        0-d loss, mean over a class' anchors, then over the used classes.
    """
    features = _cell_features(embedding)  # (B * h * w, E)
    grid = tuple(embedding.shape[2:])
    cells, weights = corner_cells(samples.anchors.flatten(), size, grid, features.dtype)
    anchors = F.embedding_bag(cells.T, features, mode="sum", per_sample_weights=weights.T)
    anchors = F.normalize(anchors, dim=1, eps=EPS).view(*samples.anchors.shape, -1)  # (K+1, Q, E)
    norms = upsampled_norms(embedding.detach().permute(0, 2, 3, 1), size).clamp(min=EPS)
    positives = F.normalize(prototypes.detach(), dim=1, eps=EPS)

    def class_term(k: int, anchors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cells, weights = corner_cells(samples.negatives[k], size, grid, features.dtype)
        weights /= norms.take(samples.negatives[k])
        return _term_and_gradient(
            anchors, positives[k], features.detach(), cells, weights, temperature
        )

    terms = _ClassTerms.apply(anchors, class_term)
    return terms.where(samples.used, 0).sum() / samples.used.sum().clamp(min=1)


class _ClassTerms(torch.autograd.Function):
    """The terms of all classes, each with its gradient found in the forward pass.

    Left to autograd, the corners of (K + 1) * Q * N pixels would wait for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx,
        anchors: torch.Tensor,
        class_term: Callable[[int, torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
    ) -> torch.Tensor:
        terms, gradient = anchors.new_empty(len(anchors)), torch.empty_like(anchors)
        for k, of_class in enumerate(anchors):
            terms[k], gradient[k] = class_term(k, of_class)
        ctx.save_for_backward(gradient)
        return terms

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, upstream: torch.Tensor) -> tuple[torch.Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return upstream[:, None, None] * gradient, None


def _term_and_gradient(
    anchors: torch.Tensor,
    positive: torch.Tensor,
    features: torch.Tensor,
    cells: torch.Tensor,
    weights: torch.Tensor,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return InfoNCE of one class and its gradient by the anchors.

    Args:
        anchors: (Q, E) of norm 1.
        positive: (E,) of norm 1.
        features: (B * h * w, E).
        cells: (4, Q, N) corners of the negatives.
        weights: (4, Q, N), so that the weighted sum of corners is a negative of norm 1.
        temperature: divides every similarity.

    Returns:
        0-d mean over the anchors, and its (Q, E) gradient.
    """
    products = (features @ anchors.T).T  # (Q, B * h * w)
    away = sum(products.gather(1, c) * w for c, w in zip(cells, weights, strict=True))  # (Q, N)
    logits = torch.cat(((anchors @ positive).unsqueeze(1), away), dim=1) / temperature
    log_share = logits.log_softmax(dim=1)  # (Q, 1 + N)
    share = log_share.exp() / (temperature * len(anchors))
    by_cell = torch.zeros_like(products)  # (Q, B * h * w)
    for c, w in zip(cells, weights, strict=True):
        by_cell.scatter_add_(1, c, share[:, 1:] * w)
    # The share of the positive less one, as the negative sum of the other shares: no cancellation.
    by_positive = -share[:, 1:].sum(dim=1, keepdim=True)
    return -log_share[:, 0].mean(), by_cell @ features + by_positive * positive


def _cell_features(embedding: torch.Tensor) -> torch.Tensor:
    return embedding.permute(0, 2, 3, 1).flatten(0, 2)  # (B * h * w, E)


def _uniform(
    shape: tuple[int, ...], generator: torch.Generator, device: torch.device
) -> torch.Tensor:
    """Return float64 in [0, 1): float32 has too few values to choose fairly among a million."""
    values = torch.rand(shape, dtype=torch.float64, generator=generator, device=generator.device)
    return values.to(device)


def _pick(
    pixels: ClassPixels, classes: torch.Tensor, counts: torch.Tensor, uniform: torch.Tensor
) -> torch.Tensor:
    """Map uniform numbers to one of the first `counts` pixels of each class; any if it has none."""
    position = pixels.start.take(classes) + (uniform * counts.take(classes)).long()
    return pixels.order.take(position.clamp(max=len(pixels.order) - 1))
