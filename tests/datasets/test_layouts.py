"""A miniature of each released layout, read value by value."""

import os
import pickle
import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import DataConfig
from datasets.files import read_truth, write_image, write_mask
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


def write_grey(path: Path, *row: int, mode: str = "L") -> None:
    """Write 7 x 9 grey pixels, 0 but for the start of the first row."""
    pixels = np.zeros((7, 9), np.uint8)
    pixels[0, : len(row)] = row
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).convert(mode).save(path, format="PNG")


# DAGM


def write_dagm_part(folder: Path, images: dict[str, int], labels_txt: bool = True) -> None:
    rows = ["1"]
    for i, (stem, defect) in enumerate(images.items(), start=1):
        write_grey(folder / f"{stem}.PNG", 90, 91)
        if defect:
            write_grey(folder / f"Label/{stem}_label.PNG", 0, 255, 128, 127)
        rows.append(f"{i}\t{defect}\t{stem}.PNG\t0\t{f'{stem}_label.PNG' if defect else 0}")
    if labels_txt:
        (folder / "Label/Labels.txt").write_text("\r\n".join(rows) + "\r\n")


@pytest.fixture
def dagm(tmp_path: Path) -> Path:
    root = tmp_path / "DAGM2007"
    write_dagm_part(root / "Class1/Train", {"0576": 1, "0577": 0})
    write_dagm_part(root / "Class1/Test", {"0001": 0, "0002": 1})
    write_dagm_part(root / "Class2/Train", {"0576": 1})
    write_dagm_part(root / "Class10/Train", {"0576": 1, "0002": 0})
    return root


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


def test_dagm_faults_are_named(dagm):
    write_grey(dagm / "Class1/Train/0600.PNG", 9)
    expected = r"Train.Label.Labels\.txt: expected a line for every image .* 1 lack one: 0600\.PNG"
    with pytest.raises(ValueError, match=expected):
        read("dagm", dagm)
    (dagm / "Class1/Train/Label/Labels.txt").write_text("1\n1\tyes\t0576.PNG\n")
    with pytest.raises(ValueError, match=r"Labels\.txt, line 2: expected number, 0 or 1, image"):
        read("dagm", dagm)
    for path in dagm.glob("*/Train"):
        shutil.rmtree(path)
    with pytest.raises(FileNotFoundError, match="expected a folder Train in Class1, Class2, Cl"):
        read("dagm", dagm)
    with pytest.raises(FileNotFoundError, match=r"expected Class1, Class2, \.\.\. of DAGM, found"):
        read("dagm", dagm / "Class1")


# MVTec AD


@pytest.fixture
def mvtec(tmp_path: Path) -> Path:
    root = tmp_path / "mvtec/bottle"
    for i in range(5):
        write_image(root / f"train/good/{i:03d}.png", np.full((7, 9, 3), i, np.uint8))
    for kind, count in (("good", 3), ("broken_large", 10), ("contamination", 4), ("cut", 1)):
        for i in range(count):
            write_image(root / f"test/{kind}/{i:03d}.png", np.full((7, 9, 3), 50, np.uint8))
            if kind != "good":
                write_grey(root / f"ground_truth/{kind}/{i:03d}_mask.png", 0, 255)
    return root


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
    data = read("mvtec", mvtec, test_share=0.3)
    kinds = {split: [r.image.parent.name for r in data.split(split)] for split in ("train", "test")}
    # 0.3 of 10, 4 and 1: 3, round(1.2) = 1, and none of a single image.
    assert [kinds["test"].count(k) for k in ("broken_large", "contamination", "cut")] == [3, 1, 0]
    assert [kinds["train"].count(k) for k in ("broken_large", "contamination", "cut")] == [7, 3, 1]
    goods = {r.name for r in data.split("train") if not r.classes}
    assert goods == {f"train_good_{i:03d}" for i in range(5)}
    goods = {r.name for r in data.split("test") if not r.classes}
    assert goods == {f"test_good_{i:03d}" for i in range(3)}
    assert not names(data.split("train")) & names(data.split("test"))


def test_mvtec_split_depends_on_the_seed_and_on_no_other_type(mvtec):
    first = read("mvtec", mvtec, seed=0).splits
    assert read("mvtec", mvtec, seed=0).splits == first
    drawn = {frozenset(names(read("mvtec", mvtec, seed=s).split("test"))) for s in range(4)}
    assert len(drawn) > 1
    shutil.rmtree(mvtec / "test/contamination")
    after = read("mvtec", mvtec, seed=0).splits
    assert names(after["test"]) == {n for n in names(first["test"]) if "contam" not in n}


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


# PASCAL VOC

VOC_OBJECTS = {  # name: (class, difficult) of its objects
    "2007_000032": (("aeroplane", 0), ("person", 0), ("person", 1)),
    "2007_000039": (("tvmonitor", 0),),
    "2007_000061": (("boat", 1),),
    "2008_000002": (("cat", 0), ("dog", 1)),
    "2009_000001": (("train", 0),),
}


def annotation(objects: tuple[tuple[str, int], ...]) -> str:
    head = "<head><part><name>head</name></part></head>"
    parts = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult>"
        f"{head if name == 'person' else ''}</object>"
        for name, difficult in objects
    )
    return f"<annotation><folder>VOC2012</folder>{parts}</annotation>"


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    root = tmp_path / "VOCdevkit/VOC2012"
    (root / "Annotations").mkdir(parents=True)
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    for name, objects in VOC_OBJECTS.items():
        write_image(root / f"JPEGImages/{name}.jpg", np.full((7, 9, 3), 90, np.uint8))
        (root / f"Annotations/{name}.xml").write_text(annotation(objects))
    mask = np.zeros((7, 9), np.uint8)
    mask[0, :4] = 255, 1, 15, 20
    for name in ("2007_000032", "2007_000039", "2007_000061"):
        write_mask(root / f"SegmentationClass/{name}.png", mask)
    lists = {"train": "2007_000032\n2007_000039\n", "val": "2007_000061"}
    for split, text in lists.items():
        (root / f"ImageSets/Segmentation/{split}.txt").write_text(text)
    return root


def add_voc_augmented(root: Path) -> None:
    """Add SegmentationClassAug: grey masks of train, of val and of images of neither."""
    for name in ("2007_000032", "2007_000061", "2008_000002", "2009_000001"):
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
    assert labels(data, "train") == {"2007_000032": (0, 14), "2007_000039": (19,)}
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


def test_voc_train_aug_is_all_augmented_masks_outside_val(voc):
    add_voc_augmented(voc)
    data = read("voc", voc, train_list="train_aug")
    assert labels(data, "train") == {
        "2007_000032": (0, 14),
        "2008_000002": (7,),
        "2009_000001": (18,),
    }
    assert found(data, "2007_000032").mask == voc / "SegmentationClass/2007_000032.png"
    added = found(data, "2008_000002")
    assert added.mask == voc / "SegmentationClassAug/2008_000002.png"
    assert read_truth(added, 20)[0].tolist() == [8, 8, 255, 0, 0, 0, 0, 0, 0]
    assert labels(data, "test") == {"2007_000061": ()}


def test_voc_train_aug_list_may_hold_paths(voc):
    add_voc_augmented(voc)
    (voc / "ImageSets/Segmentation/train_aug.txt").write_text(
        "/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png\n2009_000001\n"
    )
    data = read("voc", voc, train_list="train_aug")
    assert list(labels(data, "train")) == ["2007_000032", "2009_000001"]


def test_voc_takes_a_list_of_the_user(voc, tmp_path):
    (tmp_path / "own.txt").write_text("2009_000001\n2007_000039")
    data = read("voc", voc, train_list=str(tmp_path / "own.txt"), test_list="val")
    assert labels(data, "train") == {"2009_000001": (18,), "2007_000039": (19,)}
    assert found(data, "2009_000001").mask is None
    assert labels(data, "test") == {"2007_000061": ()}


def test_voc_without_val_offers_no_test(voc):
    (voc / "ImageSets/Segmentation/val.txt").unlink()
    assert sorted(read("voc", voc).splits) == ["fit", "train", "val"]


def test_voc_faults_are_named(voc):
    with pytest.raises(FileNotFoundError, match=r"train_aug\.txt: expected a list of image names"):
        read("voc", voc, train_list="train_aug")
    with pytest.raises(FileNotFoundError, match=r"expected JPEGImages, Annotations .*found \d"):
        read("voc", voc / "ImageSets")
    with pytest.raises(ValueError, match=r"0061\.jpg: expected unique names, got 2007_000061 for"):
        read("voc", voc, train_list="val", test_list="val", val_fraction=0.5)
    (voc / "Annotations/2007_000061.xml").write_text(annotation((("rust", 0),)))
    with pytest.raises(ValueError, match=r"0061\.xml: expected objects of the 20 .*, got rust"):
        read("voc", voc)
    (voc / "Annotations/2007_000061.xml").write_text("<annotation>")
    with pytest.raises(ValueError, match=r"0061\.xml: expected XML, got: no element found"):
        read("voc", voc)
    (voc / "Annotations/2007_000061.xml").unlink()
    with pytest.raises(FileNotFoundError, match=r"0061\.xml: expected the annotation of an image"):
        read("voc", voc)
    (voc / "JPEGImages/2007_000061.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"val\.txt: expected pictures .*1 of 1 are miss"):
        read("voc", voc)


# The authors' layout

AUTHORS_LABELS = {
    "exp1.5_num_01": [1, 0, 0],
    "000002": [0.01, 1, 0.1],  # "soft"
    "000003.jpg": [0, 0, 0],
    "000004t.png": [0, 0.9, 1],
}


def write_labels_file(path: Path, table: dict[str, list[float]]) -> None:
    content = {name: np.array(label, np.float32) for name, label in table.items()}
    np.save(path, content, allow_pickle=True)


@pytest.fixture
def authors(tmp_path: Path) -> Path:
    root = tmp_path / "MTD_VOC"
    write_labels_file(root.parent / "l.npy", AUTHORS_LABELS)
    for name in ("exp1.5_num_01", "000002", "000003", "000004t"):
        write_image(root / f"JPEGImages/{name}.jpg", np.full((7, 9, 3), 90, np.uint8))
        write_grey(root / f"SALmapsALL/{name}.png", 200)
    mask = np.zeros((7, 9), np.uint8)
    mask[0, :3] = 2, 3, 255
    write_mask(root / "SegmentationMASK/000004t.png", mask)
    (root.parent / "l.npy").rename(root / "cls_labels_soft.npy")
    (root / "train.txt").write_text("000002\nexp1.5_num_01\r\n000003")
    (root / "test.txt").write_text("000004t")
    return root


def test_authors_labels_come_from_their_file_and_soft_values_are_absent(authors):
    data = read("authors", authors)
    assert data.class_names == ("class_1", "class_2", "class_3")
    assert labels(data, "train") == {"000002": (1,), "exp1.5_num_01": (0,), "000003": ()}
    assert labels(data, "test") == {"000004t": (1, 2)}
    record = found(data, "000004t")
    assert record.image == authors / "JPEGImages/000004t.jpg"
    assert read_truth(record, 3)[0].tolist() == [2, 3, 255, 0, 0, 0, 0, 0, 0]
    assert found(data, "000002").mask is None


def test_authors_folders_may_have_a_prefix_and_png_images(authors):
    write_grey(authors / "rJPEGImages/000002.png", 90, mode="RGB")
    write_grey(authors / "rJPEGImages/000003.png", 90)
    write_grey(authors / "rSegmentationClass/000002.png", 2)
    (authors / "two.txt").write_text("000002\n000003\n")
    data = read("authors", authors, prefix="r", train_list="two.txt", classes=("a", "b", "c"))
    assert data.class_names == ("a", "b", "c")
    record = found(data, "000002")
    assert record.image == authors / "rJPEGImages/000002.png"
    assert record.mask == authors / "rSegmentationClass/000002.png"
    assert labels(data, "train") == {"000002": (1,), "000003": ()}
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
    assert list(labels(data, "train")) == ["000002", "exp1.5_num_01", "000003"]
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
