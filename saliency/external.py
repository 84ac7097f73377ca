"""Saliency maps that lie in a folder, made elsewhere."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from configs import SaliencyConfig
from datasets.files import IMAGE_SUFFIXES, read_saliency
from datasets.record import Record
from datasets.sources import Data
from saliency.generator import Prepared


def prepare(
    settings: SaliencyConfig, data: Data, records: Sequence[Record], device: torch.device
) -> Prepared:
    """Find the user's map of every image that needs one; emptied defect-free images do not.

    Of several files for one image the PNG, which comes last, is taken.

    Raises:
        ValueError: no folder is set, or no map of an image with a defect exceeds level 1 of 255.
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

    _refuse_values_0_to_1([paths[record.name] for record in records if record.classes])

    def make_map(record: Record, image: np.ndarray) -> np.ndarray:
        saliency = read_saliency(paths[record.name])
        if saliency.shape != image.shape[:2]:
            raise ValueError(
                f"{paths[record.name]}: expected the size of its image, {image.shape[0]} x "
                f"{image.shape[1]}, got {saliency.shape[0]} x {saliency.shape[1]}. Resize it."
            )
        return saliency

    return Prepared(make_map)


def _refuse_values_0_to_1(paths: Sequence[Path]) -> None:
    """Check that some map exceeds level 1; maps that cannot be read are reported when made."""
    highest = None
    for path in paths:
        try:
            highest = max(highest or 0, round(255 * float(read_saliency(path).max())))
        except (ValueError, OSError):
            continue
        if highest > 1:
            return
    if highest is not None:
        raise ValueError(
            f"{paths[0]}: expected grey levels 0..255, got 0..{highest} in it and in all "
            f"{len(paths)} maps of images with a defect. Multiply maps of values 0..1 by 255."
        )
