"""Saliency maps that lie in a folder, made elsewhere."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from datasets.files import IMAGE_SUFFIXES, read_saliency
from datasets.record import Record
from datasets.sources import Data
from saliency.generator import Prepared, Settings


def prepare(
    settings: Settings, data: Data, records: Sequence[Record], device: torch.device
) -> Prepared:
    """Find the user's map of every image that needs one; emptied defect-free images do not.

    Of several files for one image the PNG, which comes last, is taken.

    Raises:
        ValueError: no folder is set.
        FileNotFoundError: no such folder, or maps are missing.
    """
    if not settings.folder:
        raise ValueError(
            "saliency.folder: expected the folder of your maps, got ''. Set it or give --from-dir."
        )
    folder = Path(settings.folder).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a folder of saliency maps, found none.")
    paths = {
        path.stem: path
        for path in sorted(folder.iterdir(), key=lambda path: path.suffix.lower() == ".png")
        if path.suffix.lower() in IMAGE_SUFFIXES
    }
    needed = [r.name for r in records if r.classes or not settings.empty_defect_free]
    missing = [name for name in needed if name not in paths]
    if missing:
        which = "image with a defect" if settings.empty_defect_free else "image"
        raise FileNotFoundError(
            f"{folder}: expected a map <name>.png for every {which}, found "
            f"{len(paths)} maps; {len(missing)} are missing: {', '.join(missing[:5])}. Add them."
        )

    def make_map(record: Record, image: np.ndarray) -> np.ndarray:
        saliency = read_saliency(paths[record.name])
        if saliency.shape != image.shape[:2]:
            raise ValueError(
                f"{paths[record.name]}: expected the size of its image, {image.shape[0]} x "
                f"{image.shape[1]}, got {saliency.shape[0]} x {saliency.shape[1]}. Resize it."
            )
        return saliency

    return Prepared(make_map)
