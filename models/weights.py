"""Files of pretrained weights: where they are looked for, and how they are read."""

import os
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

REPOSITORY = Path(__file__).resolve().parent.parent


def find_weights(model_name: str) -> Path | None:
    """Return a local weights file of a timm model, or None.

    Looked for as `<model_name>.safetensors`, `.pth` or `.pt`, also with more between dots
    (`<model_name>.fp16.pth`), in the folder named by the
    environment variable STAC_WEIGHTS, in weights/ of the repository, and in shared/weights/
    beside it; the first in that order is taken.
    """
    folders = [REPOSITORY / "weights", REPOSITORY.parent / "shared" / "weights"]
    if os.environ.get("STAC_WEIGHTS"):
        folders.insert(0, Path(os.environ["STAC_WEIGHTS"]))
    for folder in folders:
        for suffix in (".safetensors", ".pth", ".pt"):
            found = sorted(p for p in folder.glob(f"{model_name}.*") if p.suffix == suffix)
            if found:
                return found[0]
    return None


def read_state_dict(path: Path, setting: str) -> dict[str, Tensor]:
    """Read tensors by name, as float32; code inside the file is refused.

    Wrappers of training codes are taken off: an outer model, state_dict or teacher entry, and
    `module.` and `backbone.` before the names.

    Args:
        path: .safetensors, or anything `torch.load` reads.
        setting: key of the config that named the file, for the errors.

    Raises:
        FileNotFoundError: no such file.
        ValueError: damaged, or holding more than tensors and simple values.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected a weights file. Set {setting} to one, or to none."
        )
    try:
        if path.suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both raise nearly anything on damaged files
        # PyTorch's own words advise to run the code inside: not passed on.
        raise ValueError(
            f"{path}: expected a weights file, got a damaged file or one with more than tensors "
            f"and simple values ({type(error).__name__}). Set {setting} to another one."
        ) from error
    for wrapper in ("model", "state_dict", "teacher"):
        state = state.get(wrapper, state)
    return {
        key.removeprefix("module.").removeprefix("backbone."): value.float()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }
