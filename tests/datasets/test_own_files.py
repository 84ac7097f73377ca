"""The user's own pictures: folders of classes and CSV tables, read value by value."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from configs import DataConfig
from datasets.files import read_truth, write_image, write_mask
from datasets.record import Record
from datasets.sources import Data, read_data


def read(source: str, root: Path, **settings: object) -> Data:
    config = DataConfig(source=source, root=str(root), **settings)
    return read_data(config, root.parent / "run/labels.csv")


def labels(data: Data, split: str) -> dict[str, tuple[int, ...]]:
    return {record.name: record.classes for record in data.split(split)}


def found(data: Data, name: str) -> Record:
    return {r.name: r for records in data.splits.values() for r in records}[name]


def write_black_and_white(path: Path) -> None:
    pixels = np.zeros((7, 9), np.uint8)
    pixels[0, :4] = 0, 127, 128, 255
    write_image(path, pixels)


# A folder per class


def test_folders_are_classes_and_ok_is_defect_free(parts):
    data = read("folder", parts, test_share=0.0)
    assert data.class_names == ("Scratch", "dent")
    assert labels(data, "train") == {
        **{f"Scratch_{i}": (0,) for i in range(4)},
        **{f"dent_{i}": (1,) for i in range(4)},
        **{f"OK_{i}": () for i in range(3)},
    }
    assert found(data, "OK_2").image == parts / "OK/2.PNG"
    assert all(record.mask is None for record in data.split("train"))
    assert "test" not in data.splits


@pytest.mark.parametrize("name", ["good", "Normal", "FREE", "background", "No_Defect"])
def test_other_names_of_defect_free_folders(parts, name):
    (parts / "OK").rename(parts / name)
    data = read("folder", parts, test_share=0.0)
    assert data.class_names == ("Scratch", "dent")
    assert found(data, f"{name}_1").classes == ()


def test_masks_mirror_the_folders_and_defect_free_is_background(parts):
    write_black_and_white(parts / "masks/dent/3.png")
    data = read("folder", parts)
    assert data.class_names == ("Scratch", "dent")
    assert read_truth(found(data, "dent_3"), 2)[0].tolist() == [0, 0, 2, 2, 0, 0, 0, 0, 0]
    assert found(data, "dent_2").mask is None
    free = read_truth(found(data, "OK_0"), 2)
    assert free.shape == (11, 6) and not free.any()


def test_masks_may_hold_class_indices(parts):
    mask = np.zeros((7, 9), np.uint8)
    mask[0, :3] = 2, 1, 255
    write_mask(parts / "masks/dent/3.png", mask)
    truth = read_truth(found(read("folder", parts, mask_level=0), "dent_3"), 2)
    assert truth[0].tolist() == [2, 1, 255, 0, 0, 0, 0, 0, 0]


def test_a_share_of_each_folder_becomes_test(parts):
    data = read("folder", parts, test_share=0.25)
    test = [record.classes for record in data.split("test")]
    # A quarter of 4, 4 and 3 images: 1, 1 and round(0.75) = 1.
    assert sorted(test) == [(), (0,), (1,)]
    assert not set(labels(data, "test")) & set(labels(data, "train"))
    assert read("folder", parts, test_share=0.25).splits == data.splits
    drawn = {frozenset(labels(read("folder", parts, seed=s), "test")) for s in range(4)}
    assert len(drawn) > 1


def test_train_and_test_folders_decide(tmp_path, write_picture):
    root = tmp_path / "own"
    for path in ("train/crack/1.jpg", "train/crack/2.jpg", "train/good/1.jpg", "test/hole/1.jpg"):
        write_picture(root / path)
    write_black_and_white(root / "masks/test/hole/1.png")
    data = read("folder", root)
    assert data.class_names == ("crack", "hole")
    assert labels(data, "train") == {
        "train_crack_1": (0,),
        "train_crack_2": (0,),
        "train_good_1": (),
    }
    assert labels(data, "test") == {"test_hole_1": (1,)}
    assert read_truth(data.split("test")[0], 2)[0].tolist() == [0, 0, 2, 2, 0, 0, 0, 0, 0]
    shutil.rmtree(root / "test")
    assert sorted(read("folder", root).splits) == ["fit", "train", "val"]


def test_a_val_folder_is_val_and_all_of_train_is_fitted(tmp_path, write_picture):
    for path in ("train/crack/1.jpg", "val/crack/1.jpg"):
        write_picture(tmp_path / "own" / path)
    data = read("folder", tmp_path / "own")
    assert labels(data, "fit") == labels(data, "train") == {"train_crack_1": (0,)}
    assert labels(data, "val") == {"val_crack_1": (0,)}
    assert data.default_splits("val") == ["train", "val"]
    write_picture(tmp_path / "own/test/crack/1.jpg")
    data = read("folder", tmp_path / "own")
    assert data.default_splits("test") == ["train", "val", "test"]
    assert [r.name for r in data.records(["fit", "train", "val"])] == [
        "train_crack_1",
        "val_crack_1",
    ]


def test_folder_faults_are_named(parts, tmp_path, write_picture):
    write_picture(parts / "dent/1.png")
    with pytest.raises(ValueError, match=r"dent.1\.png: expected unique names, got dent_1 for "):
        read("folder", parts, test_share=0.0)
    (parts / "dent/1.png").unlink()
    (parts / "hole").mkdir()
    with pytest.raises(ValueError, match=r"hole: expected images .*an empty folder"):
        read("folder", parts)
    write_picture(tmp_path / "free/good/1.jpg")
    with pytest.raises(
        FileNotFoundError, match=r"expected a folder .* found 1 entries: good\. Set"
    ):
        read("folder", tmp_path / "free")


# A table


def read_csv(root: Path, text: str, **settings: object) -> Data:
    (root / "t.csv").write_text(text, encoding="utf-8-sig")  # as spreadsheets save it
    return read("csv", root, table="t.csv", **settings)


def test_table_with_a_column_of_joined_classes(pictures, own_table):
    data = read_csv(pictures, own_table, mask_level=0)
    assert data.class_names == ("dent", "scratch")
    assert labels(data, "train") == {"a_1": (0, 1), "a_2": (1,)}
    assert labels(data, "test") == {"b_1": ()}
    assert read_truth(found(data, "a_1"), 2)[0].tolist() == [2, 1, 255, 0, 0, 0, 0, 0, 0]
    assert found(data, "a_2").mask is None
    assert not read_truth(found(data, "b_1"), 2).any()


def test_a_cell_that_names_no_defect_is_defect_free(pictures):
    text = "image,classes\na/1.png,dent\na/2.png, Good \nb/1.png,defect-free\nb/2.jpg,dent\n"
    data = read_csv(pictures, text, test_share=0.0)
    assert data.class_names == ("dent",)
    assert labels(data, "train") == {"a_1": (0,), "a_2": (), "b_1": (), "b_2": (0,)}
    data = read_csv(pictures, text, test_share=0.0, classes=("dent", "Good"))  # a class if so named
    assert labels(data, "train") == {"a_1": (0,), "a_2": (1,), "b_1": (), "b_2": (0,)}


def test_classes_may_be_put_in_order(pictures, own_table):
    data = read_csv(pictures, own_table, mask_level=0, classes=("scratch", "dent", "hole"))
    assert data.class_names == ("scratch", "dent", "hole")
    assert labels(data, "train") == {"a_1": (0, 1), "a_2": (0,)}


def test_table_with_a_column_per_class_and_grey_masks(pictures):
    write_black_and_white(pictures / "a/2_mask.png")
    text = "image,hole,crack,mask\na/1.png,1,1,\na/2.png,0,1,a\\2_mask.png\nb/1.png,0,0,\n"
    data = read_csv(pictures, text, test_share=0.0)
    assert data.class_names == ("hole", "crack")
    assert labels(data, "train") == {"a_1": (0, 1), "a_2": (1,), "b_1": ()}
    assert read_truth(found(data, "a_2"), 2)[0].tolist() == [0, 0, 2, 2, 0, 0, 0, 0, 0]
    chosen = read_csv(pictures, text, test_share=0.0, classes=("crack",))
    assert labels(chosen, "train") == {"a_1": (0,), "a_2": (0,), "b_1": ()}


def test_table_without_split_draws_a_share_of_each_label(pictures, write_picture):
    lines = [f"b/{i}.jpg,{'dent' if i % 2 else ''}" for i in range(10)]
    for i in range(10):
        write_picture(pictures / f"b/{i}.jpg")
    data = read_csv(pictures, "\n".join(["image,classes", *lines]), test_share=0.4)
    # Five images of each label, 0.4 of them are two.
    assert sorted(labels(data, "test").values()) == [(), (), (0,), (0,)]
    assert all(record.mask is None for record in data.split("test"))
    turned = read_csv(pictures, "\n".join(["image,classes", *lines[::-1]]), test_share=0.4)
    assert labels(turned, "test") == labels(data, "test")


def test_table_anywhere_and_val_lines(pictures, tmp_path):
    (tmp_path / "t.csv").write_text("image,x,split\na/1.png,1,train\na/2.png,0,val\n")
    data = read("csv", pictures, table=str(tmp_path / "t.csv"))
    assert (labels(data, "fit"), labels(data, "val")) == ({"a_1": (0,)}, {"a_2": ()})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,classes\na/1.png,x", r"expected the column image, .*got file, classes\. Correct"),
        ("image;classes\na/1.png;x", r"separated by commas, got image;classes\."),
        ("", r"expected the column image, .*got nothing"),
        ("image,x\n", r"t\.csv: expected a line for each image, got none"),
        ("image,split\na/1.png,train", r"a column per class \(any name\)"),
        ("image,x\na/1.png,2", r"1 of 1 do not: line 2: expected 0 or 1 for each class, got '2'"),
        ("image,x\na/1.png,1,1", r"line 2: expected as many cells as in the first line"),
        (
            "image,classes\nb/1.png,x\na/1.png",
            r"line 3: expected as many cells as in the first",
        ),
        ("image,x\n../own/a/1.png,1", r"expected a path under data\.root, got '\.\./own/a/1\.png'"),
        ("image,x,split\na/1.png,1,dev", r"line 2: expected split train, val, test, got 'dev'"),
        ("image,x,split\na/1.png,1,test", r"t\.csv: expected lines of split train, got none"),
        ("image,x\na/1.png,1\na/1.png,1", r"a.1\.png: expected unique names, got a_1 for"),
    ],
)
def test_table_faults_are_named(pictures, text, message):
    with pytest.raises(ValueError, match=message):
        read_csv(pictures, text, test_share=0.0)


def test_grey_mask_of_a_picture_with_two_classes_is_refused(pictures, own_table):
    message = r"1 of 3 do not: line 2: expected one class for a grey mask, got 2\. Give masks"
    with pytest.raises(ValueError, match=message):
        read_csv(pictures, own_table, test_share=0.0)


def test_unknown_classes_and_missing_files_of_a_table_are_counted(pictures, own_table):
    with pytest.raises(
        ValueError, match=r"2 of 3 do not: line 2: expected classes of dent, got sc"
    ):
        read_csv(pictures, own_table, mask_level=0, classes=("dent",))
    (pictures / "a/1_mask.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"t\.csv: .* 1 of 2 are missing: .*a.1_mask\.png"):
        read_csv(pictures, own_table, mask_level=0)
    (pictures / "a/2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 are missing: .*a.2\.png\. Add them or co"):
        read_csv(pictures, own_table, mask_level=0)
    (pictures / "latin.csv").write_bytes(b"image,fl\xe4che\n")
    with pytest.raises(ValueError, match=r"latin\.csv: expected CSV in UTF-8, got: .*0xe4"):
        read("csv", pictures, table="latin.csv")
    with pytest.raises(FileNotFoundError, match=r"none\.csv: expected a CSV file, found none"):
        read("csv", pictures, table="none.csv")
