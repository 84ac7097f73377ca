"""Checkpoints: plain dictionaries of tensors and simple values, never arbitrary pickles."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, Field, ValidationError
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from configs import Config, from_dict
from datasets.atomic import write_atomically
from datasets.files import write_json


class Facts(BaseModel):
    """What a checkpoint says beside its weights."""

    config: dict[str, dict[str, Any]]
    class_names: list[str]
    mean: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=3, max_length=3)]
    std: Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=3, max_length=3)]
    progress: dict[str, Any]
    label_thresholds: list[Annotated[float, Field(ge=0, le=1)]] = []  # of a localiser
    least_areas: list[Annotated[float, Field(ge=0, le=1)]] = []  # of a segmentation network


class Checkpoint(dict):
    """The content of a checkpoint.

    It holds model, config, class_names, mean, std and progress; of a localiser label_thresholds, of
    a segmentation network least_areas; for a resume optimizer, scaler and, with averaged weights,
    trained.

    Attributes:
        path: of the file.
        config: of its training.
    """

    def __init__(self, path: Path, content: dict[str, Any]):
        super().__init__(content)
        self.path = path
        self.config: Config = from_dict(content["config"])
        try:
            Facts.model_validate(content)
        except ValidationError as error:
            fault = error.errors()[0]
            raise ValueError(
                f"expected {'.'.join(map(str, fault['loc']))} of a checkpoint: {fault['msg']}. "
                "Make it anew."
            ) from error


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint."""
    write_atomically(path, lambda to: torch.save(content, to))


def save_weights(path: Path, weights: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write weights as .safetensors and all else that rebuilds the model as JSON beside them.

    Args:
        path: <name>.safetensors; the facts go to <name>.json.
        weights: `state_dict` of the model.
        facts: simple values: config, class names, normalisation, progress.
    """
    # Views of one storage, such as a state dict may hold, cannot be written as they are.
    weights = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in weights.items()
    }
    # The library's own save_file leaves a file that only its owner may read.
    write_atomically(path, lambda to: to.write_bytes(safetensors_bytes(weights)))
    write_json(path.with_suffix(".json"), facts)


def load_checkpoint(path: Path, made_by: str) -> Checkpoint:
    """Read a checkpoint to CPU tensors; code inside the file is refused, not run.

    Args:
        path: file of `save_checkpoint`, or .safetensors of `save_weights` with its JSON beside it.
        made_by: script that writes it, named in the error.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, holding more than tensors and simple values, with NaN or infinity in
            the weights, or of an earlier version.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected a checkpoint, found none. Run {made_by} first.")
    facts_path = path.with_suffix(".json")
    if path.suffix == ".safetensors" and not facts_path.is_file():
        raise FileNotFoundError(
            f"{facts_path}: expected the facts beside the weights, found none. Copy both files."
        )
    try:
        if path.suffix == ".safetensors":
            content = json.loads(facts_path.read_text(encoding="utf-8"))
            content["model"] = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises nearly anything on damaged files
        # PyTorch's own words advise to run the code inside: not passed on.
        raise ValueError(
            f"{path}: expected a checkpoint of {made_by}, got a damaged file or one with more "
            f"than tensors and simple values ({type(error).__name__}). Make it anew."
        ) from error
    is_whole = isinstance(content, dict) and {"model", "config"} <= set(content)
    if not is_whole or not all(isinstance(content[key], dict) for key in ("model", "config")):
        raise ValueError(f"{path}: expected a checkpoint of {made_by}, got another file.")
    for name, value in content["model"].items():
        is_float = isinstance(value, Tensor) and value.is_floating_point()
        if is_float and not value.isfinite().all():
            raise ValueError(
                f"{path}: expected finite weights, got NaN or infinity in {name}. Make it anew."
            )
    try:
        return Checkpoint(path, content)
    except ValueError as error:
        # One line, also where a tensor stands in place of a setting.
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error


def check_classes(checkpoint: Checkpoint, class_names: Sequence[str]) -> None:
    """Refuse a checkpoint that was trained for other classes.

    Raises:
        ValueError: names differ, or their order.
    """
    if list(class_names) != checkpoint["class_names"]:
        raise ValueError(
            f"{checkpoint.path}: expected the classes {', '.join(class_names)}, got "
            f"{', '.join(checkpoint['class_names'])}. Train on this data set first."
        )


def training_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    progress: dict[str, Any],
    average: ModelEmaV3 | None = None,
) -> dict[str, Any]:
    """Return what an exact resume needs.

    "model" holds the weights to use: those of `average` where there is one; the trained ones are
    then kept beside it. Random states are not among it: the training loops seed every step from
    (seed, step).
    """
    trained = {} if average is None else {"trained": model.state_dict()}
    return {
        "model": (model if average is None else average.module).state_dict(),
        **trained,
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "progress": dict(progress),
    }


def restore_training(
    checkpoint: Checkpoint,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    average: ModelEmaV3 | None = None,
) -> dict[str, Any]:
    """Put back a `training_state` and return its progress."""
    model.load_state_dict(checkpoint["model" if average is None else "trained"])
    if average is not None:
        average.module.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    scaler.load_state_dict(checkpoint["scaler"])
    return dict(checkpoint["progress"])
