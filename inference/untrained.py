"""Both networks of a config with random weights: what a run will cost is tried on them."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from configs import Config, SegmentationConfig, TrainConfig
from models.backbones import whole_patches
from models.device import amp_dtype, autocast
from models.stac import build_stac
from segmentation.networks import build_network, network_size


class Untrained(NamedTuple):
    """A network, the (H, W) of its images, and its section of the config."""

    network: nn.Module
    size: tuple[int, int]
    settings: TrainConfig | SegmentationConfig


def untrained(config: Config, num_classes: int, device: torch.device) -> list[Untrained]:
    """Return the localiser and the segmentation network."""
    train, second = config.train, config.segmentation
    localiser = build_stac(train, num_classes).to(device)
    network = build_network(second.network, second.encoder, "none", num_classes + 1).to(device)
    return [
        Untrained(localiser, whole_patches(train.image_size, localiser.encoder.patch_size), train),
        Untrained(network, network_size(second.image_size, second.network), second),
    ]


def forth_and_back(one: Untrained, images: Tensor) -> None:
    """Take a batch (B, 3, H, W) through a network in training, and gradients back."""
    one.network.train()
    with autocast(images.device, amp_dtype(images.device, one.settings.amp)):
        output = one.network(images)
    parts = output if isinstance(output, tuple) else (output,)
    sum(part.float().mean() for part in parts if part is not None).backward()
