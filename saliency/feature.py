"""Saliency by patch features that differ from the rest of their own image.

Needs neither labels nor defect-free images: the surface is what most of the image shows.

Foreground IoU at the best global threshold on every 61st NEU-Seg training image (60), DINOv2 ViT-S
at 448 pixels, block 6 / 9 / 11 / 12: median 40.5 / 41.1 / 43.9 / 40.3; background, 3 rounds 48.3 /
48.5 / 46.6 / 44.4, 2 rounds (block 9) 50.4; cut 37.2 / 52.4 / 40.4 / 39.0. Block 9 at 336 pixels:
40.6, 46.3, 46.1. Other seeds in the background method (block 6, 3 rounds): 1 nearest 44.8, 20 47.0,
100 46.3; a quarter of the patches 47.3, 70 % 41.1; one round 49.0, six 45.2; features averaged
over 3 x 3 patches 43.7; the mean feature of all images subtracted 31.6.
"""

from collections.abc import Sequence

import numpy as np
import torch

from configs import SaliencyConfig
from datasets.record import Record
from datasets.sources import Data
from saliency.generator import Prepared
from saliency.patches import load_encoder, to_image_size

FULL_PERCENTILE = 99.5  # of a map becomes 1
MIN_DISTANCE = 0.05  # cosine distance; an even image is not stretched to full range
NUM_NEAREST = 5  # background seeds a patch is compared with
NUM_ROUNDS = 2  # of distances; the first from the border's seeds
SEED_SHARE = 0.5  # of all patches, the most typical, are seeds from the second round on


def prepare(
    settings: SaliencyConfig, data: Data, records: Sequence[Record], device: torch.device
) -> Prepared:
    """Load the network; nothing is learnt from other images."""
    encode = load_encoder(settings, settings.image_size, device)

    def make_map(record: Record, image: np.ndarray) -> np.ndarray:
        return to_image_size(patch_saliency(encode(image)), image.shape[:2])

    return Prepared(make_map)


def patch_saliency(features: np.ndarray) -> np.ndarray:
    """Return the (h, w) map in [0, 1] of (h, w, D) features."""
    distance = background_distance(features)
    full = max(float(np.percentile(distance, FULL_PERCENTILE)), MIN_DISTANCE)
    return np.clip(distance / full, 0, 1).astype(np.float32)


def median_distance(features: np.ndarray) -> np.ndarray:
    """Return 1 - cosine of each patch to the image's median feature.

    Args:
        features: (h, w, D) of length 1.

    Returns:
        (h, w) float32, at least 0.
    """
    median = np.median(features, axis=(0, 1))
    median /= max(float(np.linalg.norm(median)), 1e-6)
    return np.maximum(1 - features @ median, 0)


def background_distance(features: np.ndarray) -> np.ndarray:
    """Return the mean cosine distance of each patch to its nearest background seeds.

    The first seeds are the half of the image's border nearest to the border's median: a defect
    may touch the border, but rarely fills half of it. Then seeds are the half of all patches
    that is nearest to the former seeds. A seed is no neighbour of its own.

    Args:
        features: (h, w, D) of length 1.

    Returns:
        (h, w) float32, at least 0.
    """
    grid = features.shape[:2]
    patches = features.reshape(-1, features.shape[-1])  # (N, D)
    border = np.flatnonzero(_border(grid))
    typical = median_distance(patches[border][None])[0]
    seeds = border[np.argsort(typical)[: max(2, len(border) // 2)]]
    similarity = patches @ patches.T  # (N, N)
    np.fill_diagonal(similarity, -1)
    for _ in range(NUM_ROUNDS):
        to_seeds = similarity[:, seeds]
        num = min(NUM_NEAREST, len(seeds) - 1)
        nearest = np.partition(to_seeds, -num, axis=1)[:, -num:]
        distance = 1 - nearest.mean(axis=1)
        seeds = np.argsort(distance)[: max(2, int(SEED_SHARE * len(distance)))]
    return np.maximum(distance, 0).reshape(grid)


def _border(grid: tuple[int, int]) -> np.ndarray:
    """Return a (h, w) bool map of the outermost patches."""
    border = np.ones(grid, bool)
    border[1:-1, 1:-1] = False
    return border
