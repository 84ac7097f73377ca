"""DAGM 2007: ten generated textures, a weak ellipse around each defect."""

import re
from collections.abc import Sequence
from pathlib import Path

from datasets.files import read_text
from datasets.layouts.common import (
    GREY_LEVEL,
    Layout,
    folders_in,
    if_there,
    images_in,
    listing,
    make_record,
)
from datasets.record import Record


def read_dagm(root: Path, textures: Sequence[str]) -> Layout:
    """Read `ClassN/{Train,Test}/*.PNG`, a class per texture; defect-free images are kept.

    `Label/Labels.txt` says which images have a defect; without that file those do that have a mask
    `Label/<number>_label.PNG`. Numbers repeat between textures, so names are ClassN_Train_number.

    Args:
        root: folder that holds Class1, Class2, ...
        textures: folders to use, in the order of the classes; empty = all, by number.

    Raises:
        FileNotFoundError: a texture is not there, or none has a Train folder.
        ValueError: a Labels.txt that is damaged or lacks images.
    """
    numbered = [p.name for p in folders_in(root) if re.fullmatch(r"Class\d+", p.name)]
    textures = tuple(textures) or tuple(sorted(numbered, key=lambda name: int(name[5:])))
    absent = [texture for texture in textures if texture not in numbered]
    if absent or not textures:
        raise FileNotFoundError(
            f"{root}: expected {', '.join(absent) or 'Class1, Class2, ...'} of DAGM, found "
            f"{listing(root)}. Set data.root to the folder that holds them, or data.classes."
        )
    splits: dict[str, list[Record]] = {}
    for k, texture in enumerate(textures):
        for split, part in (("train", "Train"), ("test", "Test")):
            if (root / texture / part).is_dir():
                splits.setdefault(split, []).extend(_read_part(root, root / texture / part, k))
    if "train" not in splits:
        raise FileNotFoundError(
            f"{root}: expected a folder Train in {', '.join(textures)}, found none. Add them."
        )
    return textures, {split: tuple(records) for split, records in splits.items()}


def _read_part(root: Path, folder: Path, k: int) -> list[Record]:
    images = images_in(folder)
    masks = [folder / "Label" / f"{path.stem}_label{path.suffix}" for path in images]
    labels_path = folder / "Label/Labels.txt"
    if labels_path.is_file():
        flags = _read_flags(labels_path)
        absent = [path.name for path in images if path.stem not in flags]
        if absent:
            raise ValueError(
                f"{labels_path}: expected a line for every image of {folder}, {len(absent)} lack "
                f"one: {', '.join(absent[:5])}. Add them or remove the images."
            )
        defective = [flags[path.stem] for path in images]
    else:
        defective = [mask.is_file() for mask in masks]
    return [
        make_record(path, root, (k,) if defect else (), if_there(mask), GREY_LEVEL, has_masks=True)
        for path, mask, defect in zip(images, masks, defective, strict=True)
    ]


def _read_flags(path: Path) -> dict[str, bool]:
    """Read lines `number, 0 or 1, image file, ...` as {stem: whether it has a defect}.

    The first line of the release is a lone 1, which is passed over.
    """
    flags = {}
    for line, text in enumerate(read_text(path).splitlines(), start=1):
        fields = text.split()
        if len(fields) < 2 and line == 1 or not fields:
            continue
        if len(fields) < 3 or fields[1] not in ("0", "1"):
            raise ValueError(
                f"{path}, line {line}: expected number, 0 or 1, image file, got {text!r}. "
                "Unpack the file anew."
            )
        flags[Path(fields[2]).stem] = fields[1] == "1"
    return flags
