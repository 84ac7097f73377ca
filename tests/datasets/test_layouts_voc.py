"""A miniature of PASCAL VOC is read value by value."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from PIL import Image

from configs import DataConfig
from datasets.files import read_truth
from datasets.layouts.voc import VOC_CLASSES
from datasets.record import Record
from datasets.sources import Data, read_data


def read(source: str, root: Path, **settings: object) -> Data:
    config = DataConfig(source=source, root=str(root), **settings)
    return read_data(config, root.parent / "run/labels.csv")


def labels(data: Data, split: str) -> dict[str, tuple[int, ...]]:
    return {record.name: record.classes for record in data.split(split)}


def found(data: Data, name: str) -> Record:
    records = {record.name: record for records in data.splits.values() for record in records}
    return records[name]


def names(records: Iterable[Record]) -> set[str]:
    return {record.name for record in records}


def add_voc_augmented(root: Path, write_grey: Callable[..., None]) -> None:
    """Add SegmentationClassAug: grey masks of train, of val and of images of neither."""
    for name in ("2007_000032", "2007_000033", "2007_000061", "2008_000002", "2009_000001"):
        write_grey(root / f"SegmentationClassAug/{name}.png", 8, 8, 255)


def test_voc_labels_are_the_objects_that_are_not_difficult(voc):
    data = read("voc", voc)
    assert data.class_names == VOC_CLASSES
    assert (len(VOC_CLASSES), VOC_CLASSES[0], VOC_CLASSES[14], VOC_CLASSES[19]) == (
        20,
        "aeroplane",
        "person",
        "tvmonitor",
    )
    assert labels(data, "train") == {
        "2007_000032": (0, 14),
        "2007_000033": (14,),
        "2007_000039": (19,),
    }
    assert labels(data, "test") == {"2007_000061": ()}


def test_voc_masks_are_palette_indices_with_255(voc):
    record = found(read("voc", voc), "2007_000032")
    assert record.mask == voc / "SegmentationClass/2007_000032.png"
    with Image.open(record.mask) as picture:
        assert picture.mode == "P"
    truth = read_truth(record, 20)
    assert truth[0].tolist() == [255, 1, 15, 20, 0, 0, 0, 0, 0]
    assert not truth[1:].any()


@pytest.mark.parametrize("above", [0, 1, 2])
def test_voc_root_may_be_the_devkit_or_the_folder_around_it(voc, above):
    root = [voc, voc.parent, voc.parent.parent][above]
    assert found(read("voc", root), "2007_000039").image == voc / "JPEGImages/2007_000039.jpg"


def test_voc_train_aug_is_all_augmented_masks_outside_val(voc, write_grey):
    add_voc_augmented(voc, write_grey)
    data = read("voc", voc, train_list="train_aug")
    assert labels(data, "train") == {
        "2007_000032": (0, 14),
        "2007_000033": (14,),
        "2008_000002": (7,),
        "2009_000001": (18,),
    }
    assert found(data, "2007_000032").mask == voc / "SegmentationClass/2007_000032.png"
    added = found(data, "2008_000002")
    assert added.mask == voc / "SegmentationClassAug/2008_000002.png"
    assert read_truth(added, 20)[0].tolist() == [8, 8, 255, 0, 0, 0, 0, 0, 0]
    assert labels(data, "test") == {"2007_000061": ()}


def test_voc_train_aug_list_may_hold_paths(voc, write_grey):
    add_voc_augmented(voc, write_grey)
    (voc / "ImageSets/Segmentation/train_aug.txt").write_text(
        "/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png\n"
        "2007_000033\n2009_000001\n"
    )
    data = read("voc", voc, train_list="train_aug")
    assert list(labels(data, "train")) == ["2007_000032", "2007_000033", "2009_000001"]


def test_voc_takes_a_list_of_the_user(voc, tmp_path):
    (tmp_path / "own.txt").write_text("2009_000001\n2007_000033\n2007_000032")
    data = read("voc", voc, train_list=str(tmp_path / "own.txt"), test_list="val")
    assert labels(data, "train") == {
        "2009_000001": (18,),
        "2007_000033": (14,),
        "2007_000032": (0, 14),
    }
    assert found(data, "2009_000001").mask is None
    assert labels(data, "test") == {"2007_000061": ()}


def test_voc_without_val_offers_no_test(voc):
    (voc / "ImageSets/Segmentation/val.txt").unlink()
    assert sorted(read("voc", voc).splits) == ["fit", "train", "val"]


def test_voc_faults_are_named(voc, voc_annotation):
    with pytest.raises(FileNotFoundError, match=r"train_aug\.txt: expected a list of image names"):
        read("voc", voc, train_list="train_aug")
    with pytest.raises(FileNotFoundError, match=r"expected JPEGImages, Annotations .*found \d"):
        read("voc", voc / "ImageSets")
    with pytest.raises(ValueError, match=r"0061\.jpg: expected unique names, got 2007_000061 for"):
        read("voc", voc, train_list="val", test_list="val", val_fraction=0.5)
    (voc / "Annotations/2007_000061.xml").write_text(voc_annotation((("rust", 0),)))
    with pytest.raises(ValueError, match=r"0061\.xml: expected objects of the 20 .*, got 'rust'"):
        read("voc", voc)
    (voc / "Annotations/2007_000061.xml").write_text(voc_annotation((("ru\nst", 0),)))
    with pytest.raises(ValueError, match=r"got 'ru\\nst'\. Use source folder") as caught:
        read("voc", voc)
    assert "\n" not in str(caught.value)
    (voc / "Annotations/2007_000061.xml").write_text("<annotation>")
    with pytest.raises(ValueError, match=r"0061\.xml: expected XML, got: no element found"):
        read("voc", voc)
    encoded = '<?xml version="1.0" encoding="klingon"?><annotation/>'
    (voc / "Annotations/2007_000061.xml").write_text(encoded)
    with pytest.raises(ValueError, match=r"0061\.xml: expected XML, got: unknown encoding"):
        read("voc", voc)
    (voc / "Annotations/2007_000061.xml").unlink()
    with pytest.raises(FileNotFoundError, match=r"0061\.xml: expected the annotation of an image"):
        read("voc", voc)
    (voc / "own.txt").write_bytes(b"\xff\n")
    with pytest.raises(ValueError, match=r"own\.txt: expected UTF-8"):
        read("voc", voc, train_list=str(voc / "own.txt"))
    (voc / "JPEGImages/2007_000061.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"val\.txt: expected pictures .*1 of 1 are miss"):
        read("voc", voc)
