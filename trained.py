"""The trained models of a run folder."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

from configs import Config, from_dict, load
from models.checkpoint import load_checkpoint

PREDICTION_KEYS = ("scales", "refine_steps", "tile", "tile_overlap")  # of the second stage


class Trained(NamedTuple):
    """A checkpoint, and the config of its training with what the run says of predictions."""

    checkpoint: dict[str, Any]
    config: Config


def load_trained(run: Path, tile: int | None = None) -> tuple[Trained | None, Trained | None]:
    """Return the segmentation network and the localiser of a run, None where there is none.

    What does not concern training (CAM types, scales, tiles, refinement, which checkpoint) comes
    from config.toml of the run, as the thresholds of its pseudo labels belong to that.

    Args:
        run: folder of the run.
        tile: replaces the side of the tiles that both were configured with.

    Raises:
        FileNotFoundError: there is neither.
    """
    path = run / "config.toml"
    of_run = load([path]) if path.is_file() else None
    wanted = of_run or Config()
    models = []
    for folder, chosen, made_by in (
        ("segmentation", wanted.segmentation.checkpoint, "segmentation/train.py"),
        ("stac", wanted.cam.checkpoint, "train_stac.py"),
    ):
        names = ("best.pt", "checkpoint.pt") if chosen == "best" else ("checkpoint.pt", "best.pt")
        path = next((run / folder / n for n in names if (run / folder / n).is_file()), None)
        if path is None:
            models.append(None)
            continue
        checkpoint = load_checkpoint(path, made_by)
        config = from_dict(checkpoint["config"])
        if of_run:
            config = _with_predictions_of(config, of_run)
        if tile is not None:
            config = dataclasses.replace(
                config,
                cam=dataclasses.replace(config.cam, tile=tile),
                segmentation=dataclasses.replace(config.segmentation, tile=tile),
            )
        models.append(Trained(checkpoint, config))
    if not any(models):
        raise FileNotFoundError(
            f"{run}: expected segmentation/best.pt or stac/checkpoint.pt, found neither. Train "
            "first (run_STAC.sh), or correct --run."
        )
    return models[0], models[1]


def _with_predictions_of(config: Config, of_run: Config) -> Config:
    """Return the config of a training with all settings of a run that change no weights."""
    settings = {key: getattr(of_run.segmentation, key) for key in PREDICTION_KEYS}
    return dataclasses.replace(
        config,
        cam=of_run.cam,
        pseudo_label=of_run.pseudo_label,
        segmentation=dataclasses.replace(config.segmentation, **settings),
    )


def run_thresholds(run: Path, trained: Trained) -> list[float]:
    """Return the thresholds of the run's refined CAMs, found with its pseudo labels.

    Without pseudo labels they are the one of the config for all classes.

    Raises:
        ValueError: the file that has them names another number of them.
    """
    num_classes = len(trained.checkpoint["class_names"])
    path = run / "pseudo_labels/meta.json"
    if not path.is_file():
        return [trained.config.pseudo_label.threshold] * num_classes
    meta = json.loads(path.read_text(encoding="utf-8"))
    thresholds = meta.get("cam_thresholds", meta.get("thresholds", []))
    if len(thresholds) != num_classes:
        raise ValueError(
            f"{path}: expected thresholds of {num_classes} classes, got {len(thresholds)}. "
            "Run make_pseudo_labels.py again."
        )
    return thresholds
