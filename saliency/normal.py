"""Saliency by distance to the patches of defect-free images (after PatchCore, Roth et al., 2022).

The defect-free images that are trained on are divided into two halves, and each half becomes a
memory of patch features, thinned to a coreset. A defect-free image is compared with the other
half's memory, so never with itself nor with another exposure of its part; any other image with
both, and takes the mean, so that its distances are like those of the defect-free images if it has
no defect.

Choices were made with one memory of 20,000 patches drawn at random from 150 defect-free MTD images,
on every 6th defective one, DINOv2 ViT-S at 448 pixels; foreground IoU at the best global threshold:
block 6 23.2, smoothed by one patch 25.0; features averaged over 3 x 3 patches before 23.9, after
smoothing 24.0; block 4 13.4, smoothed 16.6. Distances over the image's own 99.5th percentile 10.8;
less its own median 17.9.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from configs import SaliencyConfig
from datasets.record import Record
from datasets.sources import Data
from datasets.splits import folds
from execution.progress import progress
from saliency.generator import Prepared
from saliency.patches import load_encoder, to_image_size
from saliency.surfaces import encode_surfaces

CORESET = 10_000  # patches kept, of both halves
FALSE_ALARM = 0.002  # share of defect-free area that lies above 0.5
MAX_CANDIDATES = 50_000  # patches per half, drawn at random, that a coreset is chosen from
PROJECTION = 64  # dimensions in which the coreset is chosen; distances keep within about 10 %
TEMPERATURE = 0.1  # of the cosine by which patches of an image share their distances
CHUNK = 1024  # patches compared with a memory at a time
SEED = 0


class Scale(NamedTuple):
    """What distance becomes 0 and what 0.5."""

    low: float
    level: float

    def __call__(self, distance: np.ndarray) -> np.ndarray:
        """Return distances as values in [0, 1]."""
        span = max(self.level - self.low, 1e-6)
        return np.clip(0.5 * (distance - self.low) / span, 0, 1)


def prepare(
    settings: SaliencyConfig, data: Data, records: Sequence[Record], device: torch.device
) -> Prepared:
    """Fill the memories from the defect-free images of `fit`.

    Raises:
        ValueError: `fit` has too few defect-free images.
    """
    encode = load_encoder(settings, settings.image_size, device, with_last=True)
    features, problems = encode_surfaces(encode, data, "normal")
    width = next(iter(features.values())).shape[-1] // encode.num_parts
    seen_records = [record for record in data.split("fit") if record.name in features]
    halves = folds(seen_records, 2)  # exposures of one part are in the same half
    memories = []
    for half in (0, 1):
        own = [f[..., :width].reshape(-1, width) for n, f in features.items() if halves[n] == half]
        memories.append(coreset(np.concatenate(own), CORESET // 2, device))

    def distance(name: str, features: np.ndarray) -> np.ndarray:
        half = halves.get(name)
        others = memories if half is None else [memories[1 - half]]
        nearest = nearest_distance(features[..., :width], others)
        return share_among_alike(nearest, features[..., -width:])

    shown = progress(features.items(), "normal, distances", len(features))
    surface_distances = [distance(name, own) for name, own in shown]
    scale = learn_scale(surface_distances)
    seen = list(features)
    del features, surface_distances

    def make_map(record: Record, image: np.ndarray) -> np.ndarray:
        patch_map = distance(record.name, encode(image))
        return to_image_size(scale(patch_map), image.shape[:2])

    num_patches = sum(len(memory) for memory in memories)
    facts = {"images": len(halves), "patches": num_patches, **scale._asdict()}
    line = (
        f"normal: {num_patches} patches of {len(halves)} defect-free images; distance "
        f"{scale.level:.3f} becomes 0.5"
    )
    return Prepared(make_map, {"normal": facts, "seen_defect_free": seen}, (line,), problems)


def nearest_distance(features: np.ndarray, memories: Sequence[torch.Tensor]) -> np.ndarray:
    """Return the distance of each patch to its nearest in memory.

    Args:
        features: (h, w, D) of length 1.
        memories: each (M, D) of length 1; their distances are averaged.

    Returns:
        (h, w) float32, 1 - cosine.
    """
    patches = torch.from_numpy(features.reshape(-1, features.shape[-1])).to(memories[0].device)
    nearest = [
        torch.cat([(chunk @ memory.T).amax(dim=1) for chunk in patches.split(CHUNK)])
        for memory in memories
    ]
    distance = 1 - torch.stack(nearest).mean(dim=0).cpu().numpy()
    return distance.reshape(features.shape[:2])


def share_among_alike(values: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Average each patch's value over the patches of its image that look like it.

    The weights are a softmax of the cosine of features, less their mean over the image, divided by
    `TEMPERATURE`. Where a defect ends is told by features better than by nearness.

    Args:
        values: (h, w).
        features: (h, w, D).

    Returns:
        (h, w) float32 between the least and the greatest value.
    """
    patches = features.reshape(-1, features.shape[-1])
    patches = patches - patches.mean(axis=0)
    patches /= np.maximum(np.linalg.norm(patches, axis=1, keepdims=True), 1e-6)
    weights = torch.from_numpy(patches @ patches.T / TEMPERATURE).softmax(dim=1).numpy()
    return (weights @ values.ravel().astype(np.float32)).reshape(values.shape)


def learn_scale(distances: Sequence[np.ndarray]) -> Scale:
    """Learn from defect-free images, each compared with others, what distance means a defect.

    Their median becomes 0, and 0.5 is where a share `FALSE_ALARM` of their area lies above. On MTD
    the best threshold hangs on how much of the defective area is uneven light, which the distance
    hardly sees: 0.99 of the 99.5th percentile on one subset, far below it on another.
    """
    values = np.concatenate([d.ravel() for d in distances])
    low, level = np.quantile(values, [0.5, 1 - FALSE_ALARM])
    return Scale(float(low), float(level))


def coreset(patches: np.ndarray, count: int, device: torch.device) -> torch.Tensor:
    """Keep `count` patches that cover all of them.

    Args:
        patches: (N, D).
        count: all are kept where there are fewer.
        device: of the result.

    Returns:
        (min(count, N), D) float32.
    """
    generator = torch.Generator().manual_seed(SEED)
    chosen = torch.randperm(len(patches), generator=generator)[:MAX_CANDIDATES]
    points = torch.from_numpy(patches[chosen.numpy()]).to(device)
    if count >= len(points):
        return points
    width = points.shape[1]
    projection = torch.randn(width, min(PROJECTION, width), generator=generator).to(device)
    return points[farthest_points(points @ projection, count)]


def farthest_points(points: torch.Tensor, count: int) -> torch.Tensor:
    """Choose points one by one, each the farthest from those chosen before (Gonzalez, 1985).

    Args:
        points: (N, D); the first one is chosen first.
        count: at most N.

    Returns:
        (count,) int64 indices.
    """
    chosen = torch.zeros(count, dtype=torch.int64)
    squares = (points**2).sum(dim=1)
    nearest = torch.full_like(squares, torch.inf)
    last = 0
    for index in progress(range(1, count), "normal, memory", unit="patches"):
        to_last = squares - 2 * (points @ points[last]) + squares[last]
        nearest = torch.minimum(nearest, to_last)
        last = int(nearest.argmax())
        chosen[index] = last
    return chosen.to(points.device)
