"""What a segmentation network says about images: logits at native size."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs import SegmentationConfig, from_dict
from datasets.record import Record
from datasets.transforms import eval_transform
from inference.images import Cutting, Picture, load_pictures, over_images
from models.backbones import load_weights
from models.device import amp_dtype, autocast
from models.pamr import pamr
from models.tiles import blend
from segmentation.networks import build_network, network_size
from segmentation.specks import without_specks

PROBABILITY_FLOOR = 1e-8  # before a logarithm


class Segmenter:
    """A trained segmentation network, ready for images.

    Attributes:
        class_names: K names.
        settings: how predictions are made: tiles, batch size, PAMR.
        least_areas: K shares of an image; smaller regions are specks (segmentation.specks).
        keeps_specks: whether masks hold them.
        thresholds: K in [0, 1], from which a class beats the background, see `shifted`.
    """

    def __init__(
        self, checkpoint: Mapping[str, Any], settings: SegmentationConfig, device: torch.device
    ):
        """Rebuild it from a checkpoint of segmentation/train.py."""
        trained = from_dict(checkpoint["config"]).segmentation
        self.class_names: list[str] = list(checkpoint["class_names"])
        self.settings = settings
        self.least_areas: list[float] = list(checkpoint.get("least_areas", ()))
        self.keeps_specks = False
        self.thresholds = [0.5] * len(self.class_names)
        self.device = device
        self.dtype = amp_dtype(device, trained.amp)
        self.network = network_from_checkpoint(checkpoint).to(device)
        size = network_size(trained.image_size, trained.network)
        self.transform = eval_transform(size, checkpoint["mean"], checkpoint["std"])

    def over(
        self, records: Sequence[Record], workers: int, problems: dict[str, str] | None = None
    ) -> Iterator[tuple[Record, np.ndarray, Tensor]]:
        """Segment images, in order; labels are not looked at.

        Args:
            records: images.
            workers: loader processes.
            problems: takes images that cannot be read, see `load_pictures`.

        Yields:
            See `over_pictures`.
        """
        transforms = () if self.settings.tile else [self.transform]
        yield from self.over_pictures(load_pictures(records, transforms, workers, problems))

    def over_pictures(
        self, pictures: Iterable[Picture]
    ) -> Iterator[tuple[Record, np.ndarray, Tensor]]:
        """Segment decoded images, in order.

        Yields:
            Record, pixels (H, W, 3) uint8, and logits (K + 1, H, W) float32; their softmax are
            mean probabilities, moved to the edges of the image by segmentation.pamr_steps.
        """
        cutting = Cutting(self.settings.tile, self.settings.batch_size)
        for record, pixels, tiles in over_images(pictures, [self.transform], self.forward, cutting):
            parts = ((tile, resized(logits, tile.size)) for tile, logits in tiles)
            logits = blend(parts, pixels.shape[:2])
            yield record, pixels, sharpened(logits, pixels, self.settings.pamr_steps)

    def forward(self, images: Sequence[Tensor]) -> Tensor:
        """Return logits (B, K + 1, h, w) of one batch (B, 3, h, w)."""
        with autocast(self.device, self.dtype):
            return averaged(self.network, images[0].to(self.device))

    def mask(self, logits: Tensor) -> np.ndarray:
        """Return the mask values (H, W) uint8 of logits (K + 1, H, W): the best classes."""
        mask = best_class(shifted(logits, self.thresholds))
        return mask if self.keeps_specks else without_specks(mask, self.least_areas)

    def scores(self, logits: Tensor, region: np.ndarray | None = None) -> np.ndarray:
        """Return how surely each class is in an image, (K,) float32.

        That is the probability that so many pixels exceed as the smallest region of the class has.

        Args:
            logits: (K + 1, H, W).
            region: (H, W) bool, the pixels that count, at least one; None for all.
        """
        shares = logits.softmax(dim=0)[1:].flatten(1)  # (K, pixels)
        areas = self.least_areas or [0.0] * len(shares)
        counts = [max(1, math.ceil(area * shares.shape[1])) for area in areas]
        if region is not None:
            shares = shares[:, torch.from_numpy(region.reshape(-1)).to(shares.device)]
        ranked = zip(shares, (min(n, shares.shape[1]) for n in counts), strict=True)
        return np.array([of_class.topk(n).values[-1].item() for of_class, n in ranked], np.float32)


def network_from_checkpoint(checkpoint: Mapping[str, Any]) -> nn.Module:
    """Rebuild the trained network, in evaluation mode, from a checkpoint alone."""
    settings = from_dict(checkpoint["config"]).segmentation
    num_mask_classes = len(checkpoint["class_names"]) + 1
    model = build_network(settings.network, settings.encoder, "none", num_mask_classes)
    load_weights(model, checkpoint)
    return model.eval()


@torch.no_grad()
def averaged(model: nn.Module, images: Tensor) -> Tensor:
    """Return the logarithm of the mean probabilities of images and their mirror images.

    Args:
        model: segmentation network.
        images: (B, 3, H, W) of the size the network was trained with.

    Returns:
        (B, K + 1, H, W) float32; its softmax are the mean probabilities.
    """
    both = (model(images), model(images.flip(-1)).flip(-1))
    first, second = (logits.float().softmax(dim=1) for logits in both)
    return ((first + second) / 2).clamp(min=PROBABILITY_FLOOR).log()


def sharpened(logits: Tensor, image: np.ndarray, steps: int) -> Tensor:
    """Move what is predicted to the edges of the image.

    Args:
        logits: (K + 1, H, W).
        image: (H, W, 3) uint8.
        steps: of PAMR on the probabilities; 0 changes nothing.

    Returns:
        (K + 1, H, W), the logarithm of probabilities.
    """
    if not steps:
        return logits
    pixels = torch.from_numpy(image).to(logits.device).permute(2, 0, 1).float()
    return pamr(pixels, logits.softmax(dim=0), steps).clamp(min=PROBABILITY_FLOOR).log()


def resized(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize logits (K + 1, h, w) bilinearly to (H, W)."""
    return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]


def shifted(logits: Tensor, thresholds: Sequence[float]) -> Tensor:
    """Move the logits of classes so that each beats the background from its threshold on.

    Args:
        logits: (K + 1, ...), background first.
        thresholds: K in [0, 1]: the share p of the class in p + that of the background; 0.5 changes
            nothing.
    """
    if all(threshold == 0.5 for threshold in thresholds):
        return logits
    levels = torch.tensor([0.5, *thresholds], dtype=torch.float64)
    gains = levels.logit(eps=PROBABILITY_FLOOR).neg()  # (K + 1,)
    return logits + gains.to(logits)[(...,) + (None,) * (logits.dim() - 1)]


def best_class(logits: Tensor) -> np.ndarray:
    """Return the mask values (H, W) uint8 of logits (K + 1, H, W)."""
    return logits.argmax(0).to(torch.uint8).cpu().numpy()
