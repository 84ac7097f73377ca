"""Saliency by the direction in feature space along which images of a class vary.

A large defect (a ground zone, uneven light) has no patch that no defect-free image has; what is
unusual is that such patches lie beside others in one image. So each image's features are taken
relative to its own background, and for each class the direction is learnt along which its images
vary most in relation to defect-free ones: the first generalised eigenvector of the two
covariances (Fukunaga and Koontz, 1970; contrastive PCA, Abid et al., Nature Communications 2018).
Where the surface is ground or rolled, the background of a patch is what lies along the grain.
Which end of the direction is the defect, the distance to defect-free patches says: alone a weak
witness of such defects, but all images of the class vote.

On 65 MTD images of uneven light, of which 23.1 % are defect, foreground IoU at the best threshold,
DINOv2 ViT-S at 448 pixels, each half of the images by the direction of the other: distance to
defect-free patches 29.4 to 31; block 6 along the grain 46.1, smoothed by 1.5 patches 47.2; block 4
42.9; block 9 39.9; relative to the image's median instead 23.1 to 23.4 (block 6), 38.0 (block 9);
three directions 41.5; linear discriminant of the class against defect-free patches 23 to 32.
Ridge 0.03, 0.1, 0.3: 50.7, 49.8, 48.8, without halves.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.linalg
import torch
from scipy.ndimage import gaussian_filter

from configs import SaliencyConfig
from datasets.files import read_image
from datasets.record import Record, spread
from datasets.sources import Data
from datasets.splits import folds
from execution.progress import progress
from saliency.generator import Prepared
from saliency.normal import nearest_distance
from saliency.patches import Encoder, load_encoder, to_image_size
from saliency.surfaces import encode_surfaces

MAX_IMAGES = 200  # per class that its direction is learnt from
MIN_IMAGES = 5  # a class with fewer gets empty maps
NUM_WITNESSES = 5_000  # defect-free patches that distances are measured to
GRAIN_REST = 0.9  # pure noise leaves about 1 - 1.5 / (patches along the grain)
RIDGE = 0.1  # of the mean variance, added to the defect-free covariance
SEED = 0
SMOOTHING = 2.0  # sigma in patches
TAIL = 0.0005  # share of the highest values that no threshold is looked for among
NUM_THRESHOLDS = 800
AXES = {"none": (0, 1), "vertical": 0, "horizontal": 1}  # along which the median is taken


class Direction(NamedTuple):
    """What a class looks like in feature space.

    Attributes:
        vector: (D,), positive towards the defect.
        low: projection that becomes 0, the median of defect-free images.
        level: projection that becomes 0.5.
        share: estimated share of defect in the area of the class' images.
        presence: the mean of an image's `share` highest projections that no held-out defect-free
            image exceeds; an image without a label needs more to have a map.
    """

    vector: np.ndarray
    low: float
    level: float
    share: float
    presence: float


def prepare(
    settings: SaliencyConfig, data: Data, records: Sequence[Record], device: torch.device
) -> Prepared:
    """Learn a direction per class from the image labels of `fit`.

    Raises:
        ValueError: `fit` has too few defect-free images.
    """
    encode = load_encoder(settings, settings.image_size, device)
    surfaces, problems = encode_surfaces(encode, data, "variation")
    grain = choose_grain(surfaces.values())
    seen = list(surfaces)
    witnesses = _draw(list(surfaces.values()), NUM_WITNESSES)
    surfaces = {name: relative(features, grain) for name, features in surfaces.items()}
    # One half says how defect-free images vary, the other what is a high projection.
    half = folds([record for record in data.split("fit") if record.name in surfaces], 2)
    normal_spread = covariance([surfaces[name] for name in seen if half[name] == 0])
    held_out = [surfaces[name] for name in seen if half[name] == 1]
    directions: dict[int, Direction] = {}
    lines = [f"variation: grain {grain}, {len(seen)} defect-free images"]
    for k, class_name in enumerate(data.class_names):
        own, distances = _encode_class(encode, data, k, grain, witnesses, problems)
        if len(own) < MIN_IMAGES:
            lines.append(f"{class_name}: {len(own)} images carry it alone, too few; empty maps")
            continue
        vector = most_varying(covariance(own), normal_spread)
        vector *= agreement_sign([features @ vector for features in own], distances)
        directions[k] = measure(vector, own, held_out)
        lines.append(
            f"{class_name}: {len(own)} images, about {directions[k].share:.1%} of their area"
        )

    def make_map(record: Record, image: np.ndarray) -> np.ndarray:
        features = _less_median(encode(image), grain)
        wanted = [directions[k] for k in record.classes or directions if k in directions]
        patch_map = np.zeros(features.shape[:2], np.float32)
        for direction in wanted:
            projection = gaussian_filter(features @ direction.vector, SMOOTHING, mode="nearest")
            if record.classes or _score(projection, direction.share) > direction.presence:
                half = (projection - direction.low) / (direction.level - direction.low)
                patch_map = np.maximum(patch_map, np.clip(0.5 * half, 0, 1))
        return to_image_size(patch_map, image.shape[:2])

    learnt = {
        data.class_names[k]: {"level": d.level, "share": d.share, "presence": d.presence}
        for k, d in directions.items()
    }
    facts = {"variation": {"grain": grain, **learnt}, "seen_defect_free": seen}
    return Prepared(make_map, facts, tuple(lines), problems)


def relative(features: np.ndarray, grain: str) -> np.ndarray:
    """Return (h, w, D) features less their median along the grain, smoothed.

    Args:
        features: (h, w, D).
        grain: vertical, horizontal, or none for the median of the image.
    """
    return gaussian_filter(_less_median(features, grain), (SMOOTHING, SMOOTHING, 0), mode="nearest")


def choose_grain(surfaces: Sequence[np.ndarray]) -> str:
    """Return the direction along which defect-free features vary clearly least.

    The grain is vertical if the median along columns leaves less variance than the one along rows
    and at most `GRAIN_REST` of what the median of the whole image leaves; the same horizontal.

    Args:
        surfaces: (h, w, D) features each.
    """
    rests = dict.fromkeys(AXES, 0.0)
    for features in surfaces:
        for grain in AXES:
            rests[grain] += float((_less_median(features, grain) ** 2).mean())
    best = min(rests, key=rests.__getitem__)
    return best if rests[best] <= GRAIN_REST * rests["none"] else "none"


def covariance(maps: Sequence[np.ndarray]) -> np.ndarray:
    """Return the (D, D) mean outer product of (h, w, D) features; each image counts the same."""
    total = np.zeros((maps[0].shape[-1],) * 2)
    for features in maps:
        patches = features.reshape(-1, features.shape[-1]).astype(np.float64)
        total += patches.T @ patches / len(patches)
    return total / len(maps)


def most_varying(own: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Return the (D,) float32 direction of the greatest variance in relation to a background's.

    Args:
        own: (D, D) covariance of a class.
        background: (D, D) covariance of defect-free images.
    """
    width = len(background)
    ridge = max(RIDGE * np.trace(background) / width, 1e-12)
    last = [width - 1, width - 1]
    _, vectors = scipy.linalg.eigh(own, background + ridge * np.eye(width), subset_by_index=last)
    return vectors[:, 0].astype(np.float32)


def agreement_sign(projections: Sequence[np.ndarray], witnesses: Sequence[np.ndarray]) -> float:
    """Return 1.0 if within images two maps rise together, else -1.0; all (h, w)."""
    pairs = zip(projections, witnesses, strict=True)
    together = sum(float(((a - a.mean()) * (b - b.mean())).mean()) for a, b in pairs)
    return 1.0 if together >= 0 else -1.0


def measure(
    vector: np.ndarray, own: Sequence[np.ndarray], surfaces: Sequence[np.ndarray]
) -> Direction:
    """Find a direction's scale by holding images of the class against defect-free ones.

    Args:
        vector: (D,).
        own: (h, w, D) features of images of the class.
        surfaces: the same of defect-free images that the direction was not learnt from.
    """
    projections = [features @ vector for features in own]
    background = [features @ vector for features in surfaces]
    normal = np.concatenate([p.ravel() for p in background])
    level, share = mixture_level(np.concatenate([p.ravel() for p in projections]), normal)
    presence = max(_score(projection, share) for projection in background)
    return Direction(vector, float(np.median(normal)), level, share, presence)


def mixture_level(values: np.ndarray, normal: np.ndarray) -> tuple[float, float]:
    """Find the threshold that promises the best IoU, without a mask.

    `values` are a mixture of defect and of background that is distributed as `normal`. With A(t)
    and N(t) the shares above t, a share of defect s leaves A(t) - (1 - s) N(t) of it above t. s is
    the least one that the two distributions allow (Blanchard et al., JMLR 2010), so that all
    defect lies above some t: the greatest (A(t) - N(t)) / (1 - N(t)).

    Args:
        values: of images with the defect, any shape.
        normal: of defect-free images.

    Returns:
        The threshold, above the median of `normal`, and s in (0, 1].
    """
    low, high = np.median(normal), np.quantile(values, 1 - TAIL)
    if high <= low:
        return float(low) + 1e-6, TAIL
    thresholds = np.linspace(low, high, NUM_THRESHOLDS + 1)[1:]
    above, normal_above = (
        1 - np.searchsorted(np.sort(v, axis=None), thresholds) / v.size for v in (values, normal)
    )
    share = max(float(((above - normal_above) / (1 - normal_above)).max()), TAIL)
    hits = np.clip(above - (1 - share) * normal_above, 0, share)
    iou = hits / (above + share - hits)
    return float(thresholds[iou.argmax()]), share


def _less_median(features: np.ndarray, grain: str) -> np.ndarray:
    return features - np.median(features, axis=AXES[grain], keepdims=True)


def _score(projection: np.ndarray, share: float) -> float:
    """Return the mean of the `share` highest values of an image."""
    count = max(1, round(share * projection.size))
    return float(np.partition(projection, -count, axis=None)[-count:].mean())


def _encode_class(
    encode: Encoder,
    data: Data,
    k: int,
    grain: str,
    witnesses: torch.Tensor,
    problems: dict[str, str],
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return relative features of images that carry class k alone, and their anomaly."""
    alone = [record for record in data.split("fit") if record.classes == (k,)]
    own, distances = [], []
    records = spread(alone, MAX_IMAGES)
    for record in progress(records, data.class_names[k]):
        try:
            features = encode(read_image(record.image))
        except (ValueError, FileNotFoundError) as error:
            problems[record.name] = str(error)
            continue
        own.append(relative(features, grain))
        distances.append(nearest_distance(features, [witnesses]))
    return own, distances


def _draw(maps: Sequence[np.ndarray], count: int) -> torch.Tensor:
    """Draw `count` patches at random from (h, w, D) features."""
    patches = torch.from_numpy(np.concatenate([f.reshape(-1, f.shape[-1]) for f in maps]))
    order = torch.randperm(len(patches), generator=torch.Generator().manual_seed(SEED))
    return patches[order[:count]]
