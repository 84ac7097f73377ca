"""The pixel contrast against docs/method.md, C, written down as it reads.

That upsamples the embedding to the training size and loops over anchors and classes in Python.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F

from benchmarks.measuring import Row, Step
from losses.pixel_contrast import HARD_THRESHOLD, VALID_THRESHOLD, pixel_contrast_loss

TEMPERATURE = 0.6


class Problem(NamedTuple):
    """Sizes of one measurement."""

    num_classes: int
    batch_size: int = 16
    width: int = 256
    grid: int = 14
    size: int = 224
    num_samples: int = 256  # anchors of a class, and negatives of an anchor


SMALL = Problem(num_classes=2, batch_size=2, width=8, grid=2, size=16, num_samples=4)


def make_batch(problem: Problem, device: str) -> dict[str, torch.Tensor]:
    """Return inputs in which every class has valid and hard pixels."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(shape, generator=generator)

    images, classes, size = problem.batch_size, problem.num_classes, problem.size
    labels = torch.zeros(images, classes)
    for b in range(images):
        labels[b, [b % classes, (b + images) % classes]] = 1
    cams = draw(images, classes, size, size).mul_(labels[:, :, None, None])
    embedding = draw(images, problem.width, problem.grid, problem.grid) - 0.5
    batch = {"embedding": embedding, "cams": cams, "labels": labels}
    batch["saliency"] = draw(images, 1, size, size)
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    batch["embedding"].requires_grad_()
    return batch


def ours(batch: dict[str, torch.Tensor], problem: Problem) -> torch.Tensor:
    """Return the loss as the project computes it."""
    return pixel_contrast_loss(
        **batch,
        temperature=TEMPERATURE,
        num_anchors=problem.num_samples,
        num_negatives=problem.num_samples,
        generator=torch.Generator(batch["embedding"].device).manual_seed(0),
    )


def straightforward(batch: dict[str, torch.Tensor], problem: Problem) -> torch.Tensor:
    """Return the loss of docs/method.md, C, written down as it reads."""
    size = batch["cams"].shape[2:]
    vectors = F.interpolate(batch["embedding"], size, mode="bilinear", align_corners=False)
    vectors = vectors.permute(0, 2, 3, 1).flatten(0, 2)  # (B * H * W, E)
    constants = vectors.detach()
    scores = batch["cams"] * batch["labels"][:, :, None, None]
    confidence, label = torch.cat((1 - batch["saliency"], scores), dim=1).max(dim=1)
    confidence, label = confidence.flatten(), label.flatten()
    valid = confidence >= VALID_THRESHOLD
    members = [((label == k) & valid).nonzero()[:, 0] for k in range(problem.num_classes + 1)]
    members = [pixels for pixels in members if len(pixels)]
    prototypes = torch.stack([constants[pixels].mean(dim=0) for pixels in members])
    terms = []
    for k, pixels in enumerate(members):
        hard = pixels[confidence[pixels] < HARD_THRESHOLD]
        if len(hard) == 0 or len(members) == 1:
            continue
        similarity = F.cosine_similarity(prototypes[k], prototypes) / TEMPERATURE
        similarity[k] = -torch.inf
        losses = []
        chosen = torch.randint(len(hard), (problem.num_samples,), device=hard.device)
        for anchor in vectors[hard[chosen]]:
            drawn = similarity.softmax(0).multinomial(problem.num_samples, replacement=True)
            negatives = []
            for j, others in enumerate(members):
                count = int((drawn == j).sum())
                picked = torch.randint(len(others), (count,), device=others.device)
                negatives.append(constants[others[picked]])
            compared = torch.cat((prototypes[k : k + 1], *negatives))  # (1 + N, E)
            logits = F.cosine_similarity(anchor, compared) / TEMPERATURE
            losses.append(logits.logsumexp(0) - logits[0])
        terms.append(torch.stack(losses).mean())
    return torch.stack(terms).mean()


def step_of(
    loss: Callable[[dict[str, torch.Tensor], Problem], torch.Tensor], small: bool, device: str
) -> Step:
    """Return the forward and backward pass of a loss; its result is the loss."""
    problem = SMALL if small else Problem(num_classes=3)
    batch = make_batch(problem, device)

    def step() -> float:
        torch.manual_seed(0)
        batch["embedding"].grad = None
        total = loss(batch, problem)
        total.backward()
        return total.item()

    return step


ROW = Row(
    "pixel contrast of 16 images, forward and backward",
    "the embedding upsampled and anchors drawn in Python",
    partial(step_of, ours),
    partial(step_of, straightforward),
    target=50.0,
    memory=0.1,
)
