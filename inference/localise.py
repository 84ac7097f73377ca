"""What a localiser says about images: maps of all classes and image scores (docs/method.md, A)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from configs import CamConfig, from_dict
from datasets.record import Record
from datasets.transforms import eval_transform
from inference.images import Cutting, Picture, load_pictures, over_images
from models.backbones import whole_patches
from models.cam import min_max, raw_cam, resize_and_sum
from models.device import amp_dtype, autocast
from models.stac import image_scores, stac_from_checkpoint
from models.tiles import Tile, blend


class TileMaps(NamedTuple):
    """What the localiser says of one tile."""

    maps: dict[str, list[Tensor]]  # per CAM type and scale (K, h_s, w_s), not normalised
    scores: Tensor  # (K,) in [0, 1]


class Localised(NamedTuple):
    """What the localiser says of one image, at the resolution of the patches."""

    size: tuple[int, int]  # native (H, W)
    tiles: list[tuple[Tile, TileMaps]]  # one where the image was not cut
    scores: np.ndarray  # (K,) float32 in [0, 1]; the highest of the tiles

    def cam(self, cam_type: str, classes: Sequence[int]) -> np.ndarray:
        """Return the CAMs (M, H, W) float32 of M classes, each scaled to [0, 1] in the image."""
        if not len(classes):
            return np.zeros((0, *self.size), np.float32)
        chosen = list(classes)
        of_tiles = (
            (tile, resize_and_sum([m[chosen] for m in output.maps[cam_type]], tile.size))
            for tile, output in self.tiles
        )
        cam = blend(of_tiles, self.size)
        for of_class in cam:  # one at a time: min_max makes several copies
            of_class.copy_(min_max(of_class))
        return cam.cpu().numpy()


class Localiser:
    """A trained localiser, ready for images.

    Attributes:
        class_names: K names.
        settings: how its maps are made: types, scales, flip, tiles.
        label_thresholds: K image scores, from which a class counts as predicted.
    """

    def __init__(self, checkpoint: Mapping[str, Any], settings: CamConfig, device: torch.device):
        """Rebuild it from a checkpoint of train_stac.py."""
        train = from_dict(checkpoint["config"]).train
        self.class_names: list[str] = list(checkpoint["class_names"])
        self.settings = settings
        self.label_thresholds = label_thresholds(settings, checkpoint)
        self.device = device
        self.dtype = amp_dtype(device, train.amp)
        self.network = stac_from_checkpoint(checkpoint).to(device)
        self.transforms = [
            eval_transform(size, checkpoint["mean"], checkpoint["std"])
            for size in scaled_sizes(
                train.image_size, settings.scales, self.network.encoder.patch_size
            )
        ]

    def over(
        self, records: Sequence[Record], workers: int, problems: dict[str, str] | None = None
    ) -> Iterator[tuple[Record, np.ndarray, Localised]]:
        """Localise images, in order; labels are not looked at.

        Args:
            records: images.
            workers: loader processes.
            problems: takes images that cannot be read, see `load_pictures`.

        Yields:
            See `over_pictures`.
        """
        transforms = () if self.settings.tile else self.transforms
        yield from self.over_pictures(load_pictures(records, transforms, workers, problems))

    def predicted(self, scores: np.ndarray) -> list[int]:
        """Return the classes that K image scores say are there."""
        return np.flatnonzero(scores >= self.label_thresholds).tolist()

    def over_pictures(
        self, pictures: Iterable[Picture]
    ) -> Iterator[tuple[Record, np.ndarray, Localised]]:
        """Localise decoded images, in order.

        Yields:
            Record, pixels (H, W, 3) uint8, and what the localiser says.
        """
        cutting = Cutting(self.settings.tile, self.settings.batch_size)
        for record, pixels, tiles in over_images(pictures, self.transforms, self.forward, cutting):
            scores = torch.stack([output.scores for _, output in tiles]).amax(dim=0)
            yield record, pixels, Localised(pixels.shape[:2], tiles, scores.cpu().numpy())

    @torch.no_grad()
    def forward(self, images: Sequence[Tensor]) -> list[TileMaps]:
        """Run the model at every scale, with the mirror image where cam.flip is set.

        Args:
            images: a (B, 3, H_s, W_s) batch per scale.

        Returns:
            Of each item its maps, mirror image added, and scores, averaged over scales and flips.
        """
        maps: dict[str, list[Tensor]] = {cam_type: [] for cam_type in self.settings.types}
        scores = []
        for batch in images:
            batch = batch.to(self.device)
            views = [batch, batch.flip(-1)] if self.settings.flip else [batch]
            with autocast(self.device, self.dtype):
                outputs = [self.network(view) for view in views]
                scores += [image_scores(output) for output in outputs]
                for cam_type, of_scales in maps.items():
                    # A tile may be without a class that its image carries.
                    parts = [raw_cam(o, cam_type, revive=not self.settings.tile) for o in outputs]
                    of_scales.append(sum([parts[0], *(part.flip(-1) for part in parts[1:])]))
        mean_scores = torch.stack(scores).mean(0).float()
        return [
            TileMaps({name: [s[i] for s in of_scales] for name, of_scales in maps.items()}, score)
            for i, score in enumerate(mean_scores)
        ]


def label_thresholds(settings: CamConfig, checkpoint: Mapping[str, Any]) -> list[float]:
    """Return K image scores, from which a class counts as predicted.

    They are set, learnt by train_stac.py, or 0.5 of checkpoints from elsewhere.
    """
    learnt = checkpoint.get("label_thresholds") or [0.5] * len(checkpoint["class_names"])
    return [settings.label_threshold or threshold for threshold in learnt]


def scaled_sizes(
    size: Sequence[int], scales: Sequence[float], patch_size: tuple[int, int]
) -> list[tuple[int, int]]:
    """Return (H, W) at each scale, in whole patches."""
    height, width = size
    return [
        whole_patches((round(height * scale), round(width * scale)), patch_size) for scale in scales
    ]
