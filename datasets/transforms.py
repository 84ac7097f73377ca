"""What happens to an image, and to the map that lies on it, on the way to the network.

Image and map go through one call and so share one random draw. Maps (saliency, pseudo labels)
are `tv_tensors.Mask`: moved like the image, never recoloured.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

JITTER = 0.3  # brightness and contrast are multiplied by a number in [1 - JITTER, 1 + JITTER]


class Resize(torch.nn.Module):
    """Resizes an image and the maps on it, all by the centres of pixels.

    torchvision resizes every mask by `nearest`, which takes the pixel to the upper left: maps would
    lie half a pixel of the result beside their image, 2.3 pixels of 1024 that become 224. Here maps
    of numbers are averaged like the image, and mask values are those of the nearest centre.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = list(size)

    def forward(
        self, image: tv_tensors.Image, *maps: tv_tensors.Mask
    ) -> tv_tensors.Image | tuple[torch.Tensor, ...]:
        """Return the image, with the maps if there are any."""
        resized = v2.functional.resize(image, self.size, antialias=True)
        return (resized, *map(self._map, maps)) if maps else resized

    def _map(self, values: tv_tensors.Mask) -> tv_tensors.Mask:
        smooth = values.is_floating_point()
        mode = InterpolationMode.BILINEAR if smooth else InterpolationMode.NEAREST_EXACT
        plain = values.as_subclass(torch.Tensor)
        resized = v2.functional.resize(plain, self.size, interpolation=mode, antialias=smooth)
        return tv_tensors.Mask(resized)


def as_image(pixels: np.ndarray) -> tv_tensors.Image:
    """Wrap (H, W, 3) uint8 RGB as a (3, H, W) image."""
    return tv_tensors.Image(torch.from_numpy(pixels).permute(2, 0, 1))


def as_map(values: np.ndarray) -> tv_tensors.Mask:
    """Wrap a (H, W) map of any type as a (1, H, W) mask, or (C, H, W) maps as they are."""
    return tv_tensors.Mask(torch.from_numpy(values if values.ndim == 3 else values[None]))


def train_transform(
    size: tuple[int, int], mean: Sequence[float], std: Sequence[float], flip: bool = True
) -> v2.Transform:
    """Return the training preset: resize, flips, light changes, normalisation.

    All of its input is kept, so that the image-level label stays true; crops that may change the
    label are drawn before (datasets.crops).

    Args:
        size: (H, W) of the result.
        mean: of the three channels in [0, 1], as the backbone was trained.
        std: the same.
        flip: horizontal and vertical flips, each with probability 1/2.
    """
    flips = [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()] if flip else []
    light = v2.ColorJitter(brightness=JITTER, contrast=JITTER)  # of floats: twice as fast
    return v2.Compose([Resize(size), *flips, _to_unit(), light, *_normalisation(mean, std)])


def eval_transform(
    size: tuple[int, int], mean: Sequence[float], std: Sequence[float]
) -> v2.Transform:
    """Return the deterministic preset: resize and normalisation, nothing random."""
    return v2.Compose([Resize(size), _to_unit(), *_normalisation(mean, std)])


def transform_together(
    transform: v2.Transform, image: tv_tensors.Image, values: tv_tensors.Mask, place: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Move an image and the map on it by one random draw.

    The draw depends on the place alone, not on how many processes load; the global random state is
    left as it was.

    Args:
        transform: a preset of this module, or its part after the resize.
        image: (3, H, W).
        values: (C, H, W) maps.
        place: what tells this draw from others (seed, epoch, index), not negative.

    Returns:
        (3, H', W') float32 image and (C, H', W') maps.
    """
    stream = np.random.SeedSequence(list(place)).generate_state(1, np.uint64)[0]
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which seeds the GPUs too.
        torch.default_generator.manual_seed(int(stream) % 2**63)
        return transform(image, values)


def _to_unit() -> v2.Transform:
    return v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)


def _normalisation(mean: Sequence[float], std: Sequence[float]) -> list[v2.Transform]:
    return [v2.Normalize(mean=list(mean), std=list(std)), v2.ToPureTensor()]
