"""PASCAL VOC 2012, segmentation part."""

from pathlib import Path
from xml.etree import ElementTree

from datasets.files import read_text
from datasets.layouts.common import Layout, find_file, if_there, listing, refuse_missing
from datasets.record import Record

VOC_CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
AUGMENTED = "train_aug"
AUGMENTED_MASKS = "SegmentationClassAug"
MASKS = ("SegmentationClass", AUGMENTED_MASKS)  # the first that has the image


def read_voc(root: Path, lists: dict[str, str]) -> Layout:
    """Read `JPEGImages`, `Annotations`, `ImageSets/Segmentation` and the masks.

    Image labels are the objects in the XML annotations, difficult ones left out. Masks are those
    of SegmentationClass and, for images without one there, of SegmentationClassAug.

    Args:
        root: VOC2012, or the folder VOCdevkit around it, or the one around that.
        lists: {"train", "test": list}: train, train_aug, val or any other list of
            ImageSets/Segmentation, or a file. Empty: train and val. The official val thus is
            `test` here: `val` is held out of train, so that nothing is chosen on official val.
            train_aug without a list: all of SegmentationClassAug that is not in val.

    Raises:
        FileNotFoundError: folders, lists, images or annotations are not there.
        ValueError: a damaged annotation, or one with an unknown class.
    """
    inside = [root, root / "VOC2012", root / "VOCdevkit/VOC2012"]
    roots = [folder for folder in inside if (folder / "JPEGImages").is_dir()]
    if not roots:
        raise FileNotFoundError(
            f"{root}: expected JPEGImages, Annotations and ImageSets of PASCAL VOC 2012, found "
            f"{listing(root)}. Set data.root to VOCdevkit/VOC2012."
        )
    folder = roots[0]
    splits = {}
    for split, default in (("train", "train"), ("test", "val")):
        path = _list_path(folder, lists[split] or default)
        if split == "test" and not lists[split] and not path.is_file():
            continue
        names = _outside_val(path) if path.is_dir() else _read_names(path)
        images = [folder / f"JPEGImages/{name}.jpg" for name in names]
        refuse_missing(images, path)
        splits[split] = tuple(_record(folder, image) for image in images)
    return VOC_CLASSES, splits


def _list_path(folder: Path, wanted: str) -> Path:
    """Return the list of that name, the masks of train_aug, or the user's own list."""
    listed = folder / f"ImageSets/Segmentation/{wanted}.txt"
    if listed.is_file():
        return listed
    masks, own = folder / AUGMENTED_MASKS, find_file(wanted, folder)
    if wanted == AUGMENTED and masks.is_dir():
        return masks
    return own if own.is_file() else listed


def _read_names(path: Path) -> list[str]:
    """Read a list: a name a line, or the paths of image and mask as lists of train_aug have."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected a list of image names, found none. Add it (for train_aug the folder "
            f"{AUGMENTED_MASKS} does too), or set data.train_list and data.test_list."
        )
    lines = read_text(path).splitlines()
    return [Path(line.split()[0]).stem for line in lines if line.strip()]


def _outside_val(masks: Path) -> list[str]:
    official = set(_read_names(masks.parent / "ImageSets/Segmentation/val.txt"))
    return sorted(path.stem for path in masks.glob("*.png") if path.stem not in official)


def _record(folder: Path, image: Path) -> Record:
    masks = (if_there(folder / kind / f"{image.stem}.png") for kind in MASKS)
    classes = _read_annotation(folder / f"Annotations/{image.stem}.xml")
    return Record(image.stem, image, classes, mask=next(filter(None, masks), None))


def _read_annotation(path: Path) -> tuple[int, ...]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: expected the annotation of an image, as image labels come from it, found "
            "none. Unpack Annotations/ anew."
        )
    try:
        objects = ElementTree.parse(path).getroot().findall("object")
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # LookupError: its encoding
        raise ValueError(f"{path}: expected XML, got: {error}. Unpack it anew.") from error
    names = {o.findtext("name", "") for o in objects if o.findtext("difficult", "0") != "1"}
    unknown = sorted(names - set(VOC_CLASSES))
    if unknown:
        raise ValueError(
            f"{path}: expected objects of the 20 classes of VOC, got "
            f"{', '.join(map(repr, unknown))}. "
            "Use source folder or csv for other classes."
        )
    return tuple(k for k, name in enumerate(VOC_CLASSES) if name in names)
