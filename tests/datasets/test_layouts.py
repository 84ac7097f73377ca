"""Miniatures of DAGM and MVTec AD are read value by value."""

import shutil
from collections.abc import Iterable
from pathlib import Path

import pytest

from configs import DataConfig
from datasets.files import read_truth
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


# DAGM


def test_dagm_textures_are_classes_in_the_order_of_their_numbers(dagm):
    data = read("dagm", dagm)
    assert data.class_names == ("Class1", "Class2", "Class10")
    assert labels(data, "train") == {
        "Class1_Train_0576": (0,),
        "Class1_Train_0577": (),
        "Class2_Train_0576": (1,),
        "Class10_Train_0576": (2,),
        "Class10_Train_0002": (),
    }
    # Class2 and Class10 lie here without Test.
    assert labels(data, "test") == {"Class1_Test_0001": (), "Class1_Test_0002": (0,)}


def test_dagm_masks_are_ellipses_and_defect_free_images_are_background(dagm):
    data = read("dagm", dagm)
    record = found(data, "Class10_Train_0576")
    assert record.image == dagm / "Class10/Train/0576.PNG"
    assert record.mask == dagm / "Class10/Train/Label/0576_label.PNG"
    truth = read_truth(record, 3)
    assert truth.shape == (7, 9)
    assert truth[0].tolist() == [0, 3, 3, 0, 0, 0, 0, 0, 0]
    assert not truth[1:].any()
    free = read_truth(found(data, "Class1_Train_0577"), 3)
    assert free.shape == (7, 9) and not free.any()


def test_dagm_takes_any_textures_in_the_order_given(dagm):
    data = read("dagm", dagm, classes=("Class10", "Class1"))
    assert data.class_names == ("Class10", "Class1")
    assert labels(data, "train") == {
        "Class10_Train_0576": (0,),
        "Class10_Train_0002": (),
        "Class1_Train_0576": (1,),
        "Class1_Train_0577": (),
    }
    with pytest.raises(FileNotFoundError, match=r"expected Class3 of DAGM, found 3 entries: Cla"):
        read("dagm", dagm, classes=("Class1", "Class3"))


def test_dagm_labels_txt_decides_and_an_ellipse_may_be_missing(dagm):
    (dagm / "Class2/Train/Label/0576_label.PNG").unlink()
    record = found(read("dagm", dagm), "Class2_Train_0576")
    assert (record.classes, record.mask) == ((1,), None)


def test_dagm_without_labels_txt_goes_by_the_ellipses(dagm):
    before = read("dagm", dagm).splits
    for path in dagm.glob("*/*/Label/Labels.txt"):
        path.unlink()
    assert read("dagm", dagm).splits == before


def test_dagm_faults_are_named(dagm, write_grey):
    write_grey(dagm / "Class1/Train/0600.PNG", 9)
    expected = r"Train.Label.Labels\.txt: expected a line for every image .* 1 lack one: 0600\.PNG"
    with pytest.raises(ValueError, match=expected):
        read("dagm", dagm)
    (dagm / "Class1/Train/Label/Labels.txt").write_text("1\n1\tyes\t0576.PNG\n")
    with pytest.raises(ValueError, match=r"Labels\.txt, line 2: expected number, 0 or 1, image"):
        read("dagm", dagm)
    (dagm / "Class1/Train/Label/Labels.txt").write_bytes(b"1\n\xff\n")
    with pytest.raises(ValueError, match=r"Labels\.txt: expected UTF-8"):
        read("dagm", dagm)
    for path in dagm.glob("*/Train"):
        shutil.rmtree(path)
    with pytest.raises(FileNotFoundError, match="expected a folder Train in Class1, Class2, Cl"):
        read("dagm", dagm)
    with pytest.raises(FileNotFoundError, match=r"expected Class1, Class2, \.\.\. of DAGM, found"):
        read("dagm", dagm / "Class1")


# MVTec AD


def test_mvtec_is_binary_with_masks_and_background_for_good(mvtec):
    data = read("mvtec", mvtec)
    assert data.class_names == ("defect",)
    record = found(data, "test_contamination_002")
    assert record.image == mvtec / "test/contamination/002.png"
    assert record.mask == mvtec / "ground_truth/contamination/002_mask.png"
    assert record.classes == (0,)
    assert read_truth(record, 1)[0].tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0]
    good = found(data, "test_good_001")
    assert good.classes == ()
    assert read_truth(good, 1).tolist() == [[0] * 9] * 7


def test_mvtec_can_have_a_class_per_type_of_defect(mvtec):
    data = read("mvtec", mvtec, defect_types=True)
    assert data.class_names == ("broken_large", "contamination", "cut")
    record = found(data, "test_contamination_002")
    assert record.classes == (1,)
    assert read_truth(record, 3)[0].tolist() == [0, 2, 0, 0, 0, 0, 0, 0, 0]


def test_mvtec_split_takes_a_share_of_each_type_and_keeps_official_good(mvtec):
    data = read("mvtec", mvtec, test_share=0.3, defect_types=True)
    kinds = {split: [r.image.parent.name for r in data.split(split)] for split in ("train", "test")}
    # 0.3 of 10, 4 and 1: 3, 1.2 to the nearest, and none of a single image.
    assert [kinds["test"].count(k) for k in ("broken_large", "contamination", "cut")] == [3, 1, 0]
    assert [kinds["train"].count(k) for k in ("broken_large", "contamination", "cut")] == [7, 3, 1]
    goods = {r.name for r in data.split("train") if not r.classes}
    assert goods == {f"train_good_{i:03d}" for i in range(5)}
    goods = {r.name for r in data.split("test") if not r.classes}
    assert goods == {f"test_good_{i:03d}" for i in range(3)}
    assert not names(data.split("train")) & names(data.split("test"))


def test_mvtec_split_takes_a_share_of_all_defects_where_they_are_one_class(mvtec):
    data = read("mvtec", mvtec, test_share=0.3)
    assert sum(bool(r.classes) for r in data.split("test")) in (4, 5)  # 0.3 of 15
    assert sum(bool(r.classes) for r in data.split("train")) in (10, 11)
    assert not names(data.split("train")) & names(data.split("test"))


def test_mvtec_split_depends_on_the_seed_and_never_draws_official_good(mvtec):
    first = read("mvtec", mvtec, seed=0).splits
    assert read("mvtec", mvtec, seed=0).splits == first
    drawn = {frozenset(names(read("mvtec", mvtec, seed=s).split("test"))) for s in range(4)}
    assert len(drawn) > 1
    goods = {f"test_good_{i:03d}" for i in range(3)}
    assert all(goods == {name for name in of_seed if "good" in name} for of_seed in drawn)


def test_mvtec_without_share_or_masks(mvtec):
    data = read("mvtec", mvtec, test_share=0.0)
    assert len(data.split("train")) == 5 + 3 + 15
    assert "test" not in data.splits
    shutil.rmtree(mvtec / "ground_truth")
    assert all(record.mask is None for record in read("mvtec", mvtec).split("train"))


def test_mvtec_root_must_be_a_category(mvtec):
    expected = r"expected train/good and test/<defect type> .* found 1 entries: bottle\. Set"
    with pytest.raises(FileNotFoundError, match=expected):
        read("mvtec", mvtec.parent)
