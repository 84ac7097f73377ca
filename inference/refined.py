"""CAMs refined along the edges of their image: what pseudo labels and predictions are cut from."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from configs import PseudoLabelConfig
from datasets.files import Cam, read_cam, read_image, read_saliency
from datasets.record import Record
from models.pamr import pamr
from runfolder.run import Run
from runfolder.thresholds import Place, mask_free_thresholds
from scoring.thresholds import count_maps, counted_images


def refined(
    image: np.ndarray, maps: np.ndarray, settings: PseudoLabelConfig, device: torch.device
) -> np.ndarray:
    """Refine maps by their image.

    Args:
        image: (H, W, 3) uint8 RGB.
        maps: (M, H, W) float32 in [0, 1].
        settings: pamr_steps says how often; 0 changes nothing.
        device: where it runs.

    Returns:
        (M, H, W) float32 in [0, 1].
    """
    if not settings.pamr_steps:
        return maps
    pixels = torch.from_numpy(image).to(device).permute(2, 0, 1).float()
    values = torch.from_numpy(maps).to(device)
    return pamr(pixels, values, settings.pamr_steps).cpu().numpy()


class RefinedCams:
    """Makes the maps that are cut at thresholds from the CAM files of a run.

    Attributes:
        place: which of the run's thresholds are theirs.
    """

    def __init__(self, run: Run, device: torch.device, with_saliency: bool):
        """Take the CAMs of pseudo_label.cam_type with given labels.

        Args:
            run: of the files.
            device: where maps are refined.
            with_saliency: weight CAMs by saliency maps, by pseudo_label.saliency_weight.
        """
        self.run = run
        self.settings = run.config.pseudo_label
        self.cam_dir = run.cam_dir(self.settings.cam_type, "given")
        self.device = device
        self.weight = self.settings.saliency_weight if with_saliency else 0.0
        maps = "refined_with_saliency" if self.weight else "refined"
        self.place = Place(self.settings.cam_type, maps)

    def maps(self, record: Record) -> np.ndarray:
        """Return cam^(1 - w) * saliency^w, refined by the image, (M, H, W) float32 in [0, 1].

        Raises:
            ValueError: CAM or saliency map do not fit the image.
        """
        maps = read_cam_of(record, self.cam_dir, self.run.num_classes).cam
        image = read_image(record.image)
        path = self.cam_dir / f"{record.name}.npz"
        _check_size(path, maps.shape[1:], image.shape[:2], "make_cams.py")
        if self.weight and len(maps):
            saliency = self.saliency(record)
            path = self.run.saliency_dir / f"{record.name}.png"
            _check_size(path, saliency.shape, image.shape[:2], "make_saliency.py")
            maps = maps ** (1 - self.weight) * saliency**self.weight
        return refined(image, maps, self.settings, self.device)

    def saliency(self, record: Record) -> np.ndarray:
        """Return the saliency map of a record, (H, W) float32 in [0, 1]."""
        return read_saliency(self.run.saliency_dir / f"{record.name}.png")

    def sources(self, record: Record) -> list[Path]:
        """Return the files that the maps of a record are made from."""
        files = [record.image, self.cam_dir / f"{record.name}.npz"]
        weighed = self.weight and record.classes
        return files + [self.run.saliency_dir / f"{record.name}.png"] * bool(weighed)

    def thresholds(self, rule: str) -> list[float]:
        """Return K thresholds by a rule, found without masks in the maps of `fit`.

        Raises:
            ValueError: the maps hold no two different values.
        """
        fit = self.run.data.split("fit")
        num_classes = self.run.num_classes

        def read(record: Record) -> tuple[np.ndarray, Sequence[int]]:
            return self.maps(record), record.classes

        def count():
            records = counted_images(fit, num_classes, rule)
            saliency = self.saliency if rule == "agreement" else None
            level, parallel = self.settings.salient_from, self.device.type == "cpu"
            return count_maps(records, read, num_classes, saliency, level, parallel)

        try:
            return mask_free_thresholds(self.run, self.place, [rule], count)[rule]
        except ValueError as error:
            raise ValueError(f"{self.cam_dir}: {error}") from error


def read_cam_of(record: Record, cam_dir: Path, num_classes: int) -> Cam:
    """Read the CAMs of a record.

    Raises:
        ValueError: the file has another number of classes, or was made with other labels.
    """
    path = cam_dir / f"{record.name}.npz"
    cam = read_cam(path)
    if len(cam.scores) != num_classes:
        raise ValueError(
            f"{path}: expected scores of {num_classes} classes, got {len(cam.scores)}. "
            "Run make_cams.py on this data set."
        )
    if tuple(cam.classes) != record.classes:
        raise ValueError(
            f"{path}: expected CAMs of the image's classes {list(record.classes)}, got "
            f"{cam.classes.tolist()}. Run make_cams.py with the given labels."
        )
    return cam


def _check_size(path: Path, size: tuple[int, ...], of_image: tuple[int, int], made_by: str) -> None:
    if tuple(size) != of_image:
        raise ValueError(
            f"{path}: expected the image's size {of_image}, got {tuple(size)}. Run {made_by} again."
        )
