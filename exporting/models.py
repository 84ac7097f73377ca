"""What is exported: the models of a run, each with all that its user must know."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from datasets.files import read_image
from datasets.transforms import as_image, eval_transform
from inference.localise import label_thresholds, scaled_sizes
from inference.segment import PROBABILITY_FLOOR, network_from_checkpoint
from models.cam import raw_cam
from models.stac import Stac, image_scores, stac_from_checkpoint
from runfolder.checkpoint import Checkpoint
from runfolder.run import Run
from runfolder.thresholds import thresholds_for_new_images
from segmentation.networks import STRIDES, network_size


class Exportable(NamedTuple):
    """A model and all that its user must know."""

    name: str
    model: nn.Module
    outputs: tuple[str, ...]
    size: tuple[int, int]  # (H, W) it was trained with
    multiple: tuple[int, int]  # H and W are whole multiples
    metadata: dict[str, Any]


class MirrorAveraged(nn.Module):
    """Gives what a segmentation network says of images and their mirror images together."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Return the logarithm of mean probabilities (B, K + 1, H, W) of images (B, 3, H, W).

        The same as `inference.segment.averaged`, in one pass, which keeps the graph small.
        """
        logits = self.network(torch.cat((image, image.flip(-1))))
        first, second = logits.softmax(dim=1).unflatten(0, (2, -1)).unbind(0)
        return ((first + second.flip(-1)) / 2).clamp(min=PROBABILITY_FLOOR).log()


class LocaliserOutputs(nn.Module):
    """Gives the two things that a user of the localiser wants."""

    def __init__(self, stac: Stac, cam_type: str):
        super().__init__()
        self.stac = stac
        self.cam_type = cam_type

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return cam (B, K, h, w) and scores (B, K) of images (B, 3, H, W)."""
        output = self.stac(image)
        return raw_cam(output, self.cam_type), image_scores(output)


def exportable_segmenter(checkpoint: Checkpoint) -> Exportable:
    """Return the segmentation network of a run, averaged over mirror images, to give logits."""
    settings = checkpoint.config.segmentation
    size = network_size(settings.image_size, settings.network)
    steps = [
        "resize logits bilinearly to the image's size; mirror averaging is in the graph",
        "softmax over axis 1 gives probabilities",
        "argmax over axis 1: 0 is background, k is class k of class_names, from 1",
        "a region of class k, joined at sides and corners, that covers less of the image than "
        "least_areas[k - 1] becomes what most of its border touches",
    ]
    unit = STRIDES[settings.network]
    metadata = _metadata(checkpoint, size, (unit, unit), steps)
    metadata["least_areas"] = list(checkpoint.get("least_areas", ()))
    model = MirrorAveraged(network_from_checkpoint(checkpoint)).eval()
    return Exportable("segmentation", model, ("logits",), size, (unit, unit), metadata)


def exportable_localiser(run: Run, checkpoint: Checkpoint) -> Exportable:
    """Return the localiser of a run, to give CAMs and image scores."""
    config = run.config
    cam_type = config.pseudo_label.cam_type
    stac = stac_from_checkpoint(checkpoint)
    unit = stac.encoder.patch_size
    size = tuple(n * patch for n, patch in zip(stac.encoder.grid_size, unit, strict=True))
    views = scaled_sizes(checkpoint.config.train.image_size, config.cam.scales, unit)
    steps = [
        "a class is present where its score is at least its label threshold",
        "resize cam bilinearly to the image's size, scale each present class to [0, 1]",
        "rescale each present class, linearly below and above its threshold, so that this is 0.5",
        "a pixel is of the present class with the highest value if that is above 0.5, "
        "else background",
    ]
    metadata = _metadata(checkpoint, size, unit, steps) | {
        "cam_type": cam_type,
        "scales": list(config.cam.scales),
        "image_sizes": [list(view) for view in views],
        "label_thresholds": label_thresholds(config.cam, checkpoint),
        "thresholds": thresholds_for_new_images(run, checkpoint["class_names"]),
    }
    model = LocaliserOutputs(stac, cam_type).eval()
    return Exportable("localiser", model, ("cam", "scores"), size, unit, metadata)


def _metadata(
    checkpoint: Checkpoint, size: tuple[int, int], multiple: tuple[int, int], steps: Sequence[str]
) -> dict[str, Any]:
    return {
        "class_names": list(checkpoint["class_names"]),
        "image_size": list(size),
        "multiple_of": list(multiple),
        "colour": "RGB",
        "range": "[0, 1] before mean and std",
        "mean": list(checkpoint["mean"]),
        "std": list(checkpoint["std"]),
        "resize": "bilinear with antialiasing",
        "postprocessing": list(steps),
    }


def check_batches(one: Exportable, files: Sequence[Path]) -> list[Tensor]:
    """Return the pictures as batches: all at the trained size, and the first at others."""
    other = (one.size[0] + one.multiple[0], one.size[1] + 2 * one.multiple[1])
    others = [other, *map(tuple, one.metadata.get("image_sizes", ()))]
    batches = []
    for size, chosen in ((one.size, files), *((size, files[:1]) for size in (one.size, *others))):
        transform = eval_transform(size, one.metadata["mean"], one.metadata["std"])
        batches.append(torch.stack([transform(as_image(read_image(file))) for file in chosen]))
    return batches
