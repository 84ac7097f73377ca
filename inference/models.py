"""The trained models of a run folder, ready for images."""

from pathlib import Path
from typing import NamedTuple

import torch

from configs import Config, changed, load
from inference.localise import Localiser
from inference.segment import Segmenter
from runfolder.checkpoint import Checkpoint, load_checkpoint
from runfolder.run import Run


def run_in(folder: Path) -> Run:
    """Return the run that lies in a folder, by its config.toml, else by its checkpoints.

    Raises:
        FileNotFoundError: there is neither.
    """
    run = Run(folder, Config())
    if run.config_path.is_file():
        return Run(folder, load(run.config_path))
    for path, made_by in (
        (run.segmentation_checkpoint(), "python -m segmentation.train"),
        (run.stac_checkpoint(), "train_stac.py"),
    ):
        if path.is_file():
            return Run(folder, load_checkpoint(path, made_by).config)
    raise FileNotFoundError(
        f"{folder}: expected a run folder with config.toml, segmentation/checkpoint.pt "
        "or stac/checkpoint.pt, found none of them. Train first (run_STAC.sh), or correct --run."
    )


class Trained(NamedTuple):
    """The checkpoints of a run, None where there is none."""

    segmentation: Checkpoint | None
    localiser: Checkpoint | None

    @property
    def class_names(self) -> list[str]:
        """The K class names."""
        return (self.segmentation or self.localiser)["class_names"]


def load_trained(run: Run) -> Trained:
    """Read the checkpoints of a run.

    Raises:
        FileNotFoundError: there is none.
        ValueError: both are there, of different classes.
    """
    paths = {
        run.segmentation_checkpoint(): "python -m segmentation.train",
        run.stac_checkpoint(): "train_stac.py",
    }
    checkpoints = [
        load_checkpoint(path, made_by) if path.is_file() else None
        for path, made_by in paths.items()
    ]
    trained = Trained(*checkpoints)
    if not any(checkpoints):
        raise FileNotFoundError(
            f"{run.folder}: expected segmentation/checkpoint.pt or stac/checkpoint.pt, found "
            "neither. "
            "Train first (run_STAC.sh), or correct --run."
        )
    if all(checkpoints) and trained.localiser["class_names"] != trained.class_names:
        raise ValueError(
            f"{run.folder}: expected localiser and segmentation network of the same classes, got "
            f"{trained.localiser['class_names']} and {trained.class_names}. Train one of them "
            "again."
        )
    return trained


def localiser_of(run: Run, checkpoint: Checkpoint, device: torch.device) -> Localiser:
    """Return the localiser of a checkpoint, with the run's settings of CAMs."""
    return Localiser(checkpoint, run.config.cam, device)


def segmenter_of(run: Run, checkpoint: Checkpoint, device: torch.device) -> Segmenter:
    """Return the segmentation network of a checkpoint, with the run's settings of predictions."""
    return Segmenter(checkpoint, run.config.segmentation, device)


def with_tile(run: Run, tile: int | None) -> Run:
    """Return a run whose models see tiles of another side; None changes nothing."""
    if tile is None:
        return run
    values = {"cam.tile": tile, "segmentation.tile": tile}
    return Run(run.folder, changed(run.config, values))
