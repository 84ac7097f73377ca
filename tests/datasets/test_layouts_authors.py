"""A miniature of the authors' layout is read value by value."""

import os
import pickle
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from configs import DataConfig
from datasets.files import read_truth, write_image
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


def test_authors_labels_come_from_their_file_and_soft_values_are_absent(authors):
    data = read("authors", authors)
    assert data.class_names == ("class_1", "class_2", "class_3")
    assert labels(data, "train") == {
        "000002": (1,),
        "exp1.5_num_01": (0,),
        "000003": (),
        "000006": (1,),
    }
    assert labels(data, "test") == {"000004t": (1, 2)}
    record = found(data, "000004t")
    assert record.image == authors / "JPEGImages/000004t.jpg"
    assert read_truth(record, 3)[0].tolist() == [2, 3, 255, 0, 0, 0, 0, 0, 0]
    assert found(data, "000002").mask is None


def test_authors_labels_of_more_than_254_classes_are_refused(authors):
    names = ("exp1.5_num_01", "000002", "000003", "000004t", "000006")
    content = {name: np.zeros(255, np.float32) for name in names}
    np.save(authors / "cls_labels_soft.npy", content, allow_pickle=True)
    with pytest.raises(ValueError, match=r"cls_labels_soft\.npy: expected at most 254 classes, "):
        read("authors", authors)
    content = {name: label[:254] for name, label in content.items()}
    np.save(authors / "cls_labels_soft.npy", content, allow_pickle=True)
    assert len(read("authors", authors).class_names) == 254


def test_authors_folders_may_have_a_prefix_and_png_images(authors, write_grey):
    write_grey(authors / "rJPEGImages/000002.png", 90, mode="RGB")
    write_grey(authors / "rJPEGImages/000003.png", 90)
    write_grey(authors / "rJPEGImages/000006.png", 90, 0, 90)
    write_grey(authors / "rSegmentationClass/000002.png", 2)
    (authors / "own.txt").write_text("000002\n000003\n000006\n")
    data = read("authors", authors, prefix="r", train_list="own.txt", classes=("a", "b", "c"))
    assert data.class_names == ("a", "b", "c")
    record = found(data, "000002")
    assert record.image == authors / "rJPEGImages/000002.png"
    assert record.mask == authors / "rSegmentationClass/000002.png"
    assert labels(data, "train") == {"000002": (1,), "000003": (), "000006": (1,)}
    assert "test" not in data.splits  # the list of train decides alone


def test_authors_lists_and_labels_may_lie_elsewhere(authors, tmp_path):
    for name in ("train.txt", "test.txt", "cls_labels_soft.npy"):
        (authors / name).rename(tmp_path / name)
    data = read(
        "authors",
        authors,
        train_list=str(tmp_path / "train.txt"),
        table=str(tmp_path / "cls_labels_soft.npy"),
    )
    assert list(labels(data, "train")) == ["000002", "exp1.5_num_01", "000003", "000006"]
    assert "test" not in data.splits


def test_authors_label_file_must_be_the_only_one_or_named(authors):
    shutil.copy(authors / "cls_labels_soft.npy", authors / "cls_labels.npy")
    expected = r"expected one file cls_labels\*\.npy, found 2: cls_labels\.npy, cls_labels_s"
    with pytest.raises(FileNotFoundError, match=expected):
        read("authors", authors)
    assert labels(read("authors", authors, table="cls_labels.npy"), "test") == {"000004t": (1, 2)}


def test_crafted_label_file_is_refused_and_does_not_run(authors, tmp_path):
    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'it_ran'}",)

    array = np.empty((), object)
    array[()] = {"000002": Attack()}
    with (authors / "cls_labels_soft.npy").open("wb") as file:
        header = {"descr": "|O", "fortran_order": False, "shape": ()}
        np.lib.format.write_array_header_1_0(file, header)
        pickle.dump(array, file, protocol=2)
    with pytest.raises(ValueError, match=r"_soft\.npy: expected arrays only, got the global '"):
        read("authors", authors)
    assert not (tmp_path / "it_ran").exists()


def test_authors_faults_are_named(authors):
    with pytest.raises(ValueError, match=r"expected labels of 2 classes, got 3\. Correct data\.cl"):
        read("authors", authors, classes=("a", "b"))
    with pytest.raises(FileNotFoundError, match=r"xJPEGImages: expected the images, found 6 entr"):
        read("authors", authors, prefix="x")
    (authors / "test.txt").write_text("000004t\n000005\n")
    with pytest.raises(FileNotFoundError, match=r"test\.txt: .*1 of 2 are missing: .*000005\.jpg"):
        read("authors", authors)
    write_image(authors / "JPEGImages/000005.jpg", np.zeros((7, 9, 3), np.uint8))
    with pytest.raises(ValueError, match=r"_soft\.npy: expected a label .* 1 lack one: 000005\."):
        read("authors", authors)
    (authors / "train.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"MTD_VOC.train\.txt: expected a list file"):
        read("authors", authors)
