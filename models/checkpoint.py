"""Checkpoints: plain dictionaries of tensors and simple values, never arbitrary pickles."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from timm.utils import ModelEmaV3
from torch import Tensor, nn


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a checkpoint under a temporary name and rename it, so that no half file is left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        torch.save(content, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_weights(path: Path, weights: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write weights as .safetensors and all else that rebuilds the model as JSON beside them.

    Args:
        path: <name>.safetensors; the facts go to <name>.json.
        weights: `state_dict` of the model.
        facts: simple values: config, class names, normalisation, progress.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Views of one storage, such as a state dict may hold, cannot be written as they are.
    weights = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, value in weights.items()
    }
    contents = {path: lambda file: save_file(weights, file)}
    text = json.dumps(facts, indent=1, ensure_ascii=False) + "\n"
    contents[path.with_suffix(".json")] = lambda file: file.write_text(text, encoding="utf-8")
    for final, write in contents.items():
        temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
        try:
            write(temporary)
            temporary.replace(final)
        finally:
            temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path, made_by: str) -> dict[str, Any]:
    """Read a checkpoint to CPU tensors; code inside the file is refused, not run.

    Args:
        path: file of `save_checkpoint`, or .safetensors of `save_weights` with its JSON beside it.
        made_by: script that writes it, named in the error.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or holding more than tensors and simple values.
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
    if not isinstance(content, dict) or "model" not in content:
        raise ValueError(f"{path}: expected a checkpoint of {made_by}, got another file.")
    return content


def check_classes(content: dict[str, Any], class_names: Sequence[str], path: Path) -> None:
    """Refuse a checkpoint that was trained for other classes.

    Raises:
        ValueError: names differ, or their order.
    """
    if list(class_names) != content["class_names"]:
        raise ValueError(
            f"{path}: expected the classes {', '.join(class_names)}, got "
            f"{', '.join(content['class_names'])}. Train on this data set first."
        )


def training_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    progress: dict[str, Any],
    average: ModelEmaV3 | None = None,
) -> dict[str, Any]:
    """Return what an exact resume at the end of an epoch needs.

    "model" holds the weights to use: those of `average` where there is one; the trained ones are
    then kept beside it. Random states are not among it: the training loops seed every epoch from
    (seed, epoch).
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
    content: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    average: ModelEmaV3 | None = None,
) -> dict[str, Any]:
    """Put back a `training_state` and return its progress."""
    model.load_state_dict(content["model"] if average is None else content["trained"])
    if average is not None:
        average.module.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    scaler.load_state_dict(content["scaler"])
    return dict(content["progress"])
