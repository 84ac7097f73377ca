"""A few images of a data set that a training shows again and again (TensorBoard)."""

from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from torch.utils.data import default_collate

from datasets.image_maps import ImageMapDataset, Sample
from datasets.pictures import labelled_grid
from datasets.record import balanced

NUM_EXAMPLES = 8


class Examples:
    """Up to eight images of fixed choice, spread over the classes.

    Attributes:
        places: of the images in their data set; none if it has none.
    """

    def __init__(
        self,
        dataset: ImageMapDataset,
        class_names: Sequence[str],
        norm: tuple[Sequence[float], Sequence[float]],
    ):
        """Choose them.

        Args:
            dataset: without random draws.
            class_names: K.
            norm: mean and standard deviation that its images are normalised with.
        """
        self.dataset = dataset
        self.class_names = class_names
        self.mean, self.std = (np.array(values, np.float32) for values in norm)
        chosen = {record.name for record in balanced(dataset.records, NUM_EXAMPLES, seed=0)}
        self.places = [i for i, record in enumerate(dataset.records) if record.name in chosen]

    @cached_property
    def batch(self) -> Sample:
        """The images as one batch; they are read once."""
        return default_collate([self.dataset[place] for place in self.places])

    @cached_property
    def images(self) -> np.ndarray:
        """The images as they are seen, (B, H, W, 3) uint8."""
        pixels = self.batch["image"].movedim(1, -1).numpy() * self.std + self.mean
        return np.round(255 * np.clip(pixels, 0, 1)).astype(np.uint8)

    def picture(self, rows: Mapping[str, Sequence[np.ndarray]]) -> np.ndarray:
        """Draw the images, each below the classes of its label.

        Args:
            rows: what lies below the images: name -> a picture (H, W, 3) in [0, 1] of each.

        Returns:
            (H, W, 3) uint8.
        """
        labels = [torch.nonzero(label)[:, 0].tolist() for label in self.batch["label"]]
        named = [", ".join(self.class_names[k] for k in label) for label in labels]
        captions = [names or "defect-free" for names in named]
        return labelled_grid(captions, {"image": self.images / 255, **rows})
