"""Where pretrained weights are looked for before they are downloaded."""

import os
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def find_weights(model_name: str) -> Path | None:
    """Return a local weights file of a timm model, or None.

    Looked for as `<model_name>*.safetensors`, `.pth` or `.pt` in the folder named by the
    environment variable STAC_WEIGHTS, in weights/ of the repository, and in shared/weights/
    beside it; the first in that order is taken.
    """
    folders = [REPOSITORY / "weights", REPOSITORY.parent / "shared" / "weights"]
    if os.environ.get("STAC_WEIGHTS"):
        folders.insert(0, Path(os.environ["STAC_WEIGHTS"]))
    for folder in folders:
        for suffix in (".safetensors", ".pth", ".pt"):
            found = sorted(folder.glob(f"{model_name}*{suffix}"))
            if found:
                return found[0]
    return None
