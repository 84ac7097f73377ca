"""MVTec AD: one category of it, whose official training part knows no defect."""

from pathlib import Path

from datasets.layouts.common import (
    GREY_LEVEL,
    UNDIVIDED,
    Layout,
    folders_in,
    if_there,
    images_in,
    listing,
    make_record,
)
from datasets.record import Record

GOOD = "good"


def read_mvtec(root: Path, defect_types: bool) -> Layout:
    """Read `train/good`, `test/<type>` and `ground_truth/<type>/<number>_mask.png`.

    The release keeps all defects in test, where no training from image labels could see them. They
    are undivided here: a draw leaves some of each class in test and moves the others to train.

    Args:
        root: the folder of one category.
        defect_types: a class per defect type; else the one class "defect".

    Raises:
        FileNotFoundError: train/good or test/<type> is not there.
    """
    types = [p.name for p in folders_in(root / "test") if p.name != GOOD]
    if not (root / "train" / GOOD).is_dir() or not types:
        raise FileNotFoundError(
            f"{root}: expected train/good and test/<defect type> of an MVTec AD category, found "
            f"{listing(root)}. Set data.root to the folder of one category, such as bottle."
        )
    class_names = tuple(types) if defect_types else ("defect",)
    has_masks = (root / "ground_truth").is_dir()

    def records(part: str, kind: str) -> list[Record]:
        classes = () if kind == GOOD else (types.index(kind) if defect_types else 0,)
        listed = []
        for path in images_in(root / part / kind):
            mask = if_there(root / "ground_truth" / kind / f"{path.stem}_mask.png")
            listed.append(make_record(path, root, classes, mask, GREY_LEVEL, has_masks))
        return listed

    splits = {"train": tuple(records("train", GOOD))}
    if (root / "test" / GOOD).is_dir():
        splits["test"] = tuple(records("test", GOOD))
    defective = tuple(record for kind in types for record in records("test", kind))
    return class_names, {**splits, UNDIVIDED: defective}
