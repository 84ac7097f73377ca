import csv
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from configs import DataConfig
from datasets.files import read_truth, write_image
from datasets.layouts.neu_seg import NEU_SEG_CLASSES
from datasets.record import Record
from datasets.sources import Data, read_data
from inference import preflight

NEU_LABELS = {
    "000001": (0,),
    "000002": (0, 2),
    "000003": (1,),
    "000004": (2,),
    "000005": (),
}


def neu(root: Path) -> DataConfig:
    return DataConfig(source="neu_seg", root=str(root))


def names(records: Iterable[Record]) -> list[str]:
    return [record.name for record in records]


def labels(data: Data, split: str) -> dict[str, tuple[int, ...]]:
    return {record.name: record.classes for record in data.split(split)}


def lines(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))


def test_neu_seg_labels_are_the_classes_in_the_masks(neu_root, tmp_path):
    data = read_data(neu(neu_root), tmp_path / "run/labels.csv")
    assert data.class_names == NEU_SEG_CLASSES == ("inclusion", "patches", "scratches")
    assert labels(data, "train") == NEU_LABELS
    first = data.split("train")[0]
    assert first.image == neu_root / "images/training/000001.jpg"
    assert first.mask_level is None
    assert read_truth(first, 3)[0].tolist() == [1, 0, 0, 0, 0, 0, 0, 0]


def test_neu_seg_labels_are_written_once_and_masks_never_opened_again(neu_root, tmp_path):
    path = tmp_path / "run/labels.csv"
    read_data(neu(neu_root), path)
    assert lines(path) == [
        ["name", "classes"],
        ["000001", "inclusion"],
        ["000002", "inclusion|scratches"],
        ["000003", "patches"],
        ["000004", "scratches"],
        ["000005", ""],
    ]
    assert sorted(p.name for p in path.parent.iterdir()) == ["groups.csv", "labels.csv"]
    written = path.stat().st_mtime_ns
    shutil.rmtree(neu_root / "annotations")
    data = read_data(neu(neu_root), path)
    assert labels(data, "train") == NEU_LABELS
    assert all(record.mask is None for record in data.split("train"))
    assert path.stat().st_mtime_ns == written


def test_the_check_before_a_run_writes_nothing_and_wants_the_scored_split(
    neu_root, tmp_path, monkeypatch
):
    monkeypatch.setattr(preflight, "pass_a_batch", lambda *_: 0)
    for number, path in enumerate(sorted(neu_root.glob("images/training/*"))):
        write_image(path, np.full((6, 8), 20 * number, np.uint8))  # pictures that differ
    settings = ["data.source=neu_seg", f"data.root={neu_root}"]
    common = ["--out", str(tmp_path / "run"), "--set", *settings]
    preflight.main([*common, "data.eval_split=val"])
    with pytest.raises(ValueError, match="split 'test': expected one of train, fit, val"):
        preflight.main([*common, "data.eval_split=test"])
    assert not (tmp_path / "run").exists()
    (tmp_path / "run").mkdir()
    read_data(neu(neu_root), tmp_path / "run/labels.csv")
    shutil.rmtree(neu_root / "annotations")
    preflight.main([*common, "data.eval_split=val"])


def test_neu_seg_test_names_end_in_t(neu_root, tmp_path, write_neu_split):
    write_neu_split(neu_root, "test", {"000001": (2,), "000009": (3,)})
    data = read_data(neu(neu_root), tmp_path / "labels.csv")
    assert labels(data, "test") == {"000001t": (1,), "000009t": (2,)}
    assert labels(data, "train") == NEU_LABELS
    assert data.split("test")[0].image == neu_root / "images/test/000001.jpg"
    assert data.split("test")[0].mask == neu_root / "annotations/test/000001.png"


def test_test_split_added_later_is_labelled_from_its_own_masks_only(
    neu_root, tmp_path, write_neu_split
):
    read_data(neu(neu_root), tmp_path / "labels.csv")
    shutil.rmtree(neu_root / "annotations")
    write_neu_split(neu_root, "test", {"000001": (2,)})
    data = read_data(neu(neu_root), tmp_path / "labels.csv")
    assert labels(data, "test") == {"000001t": (1,)}
    assert labels(data, "train") == NEU_LABELS
    assert len(lines(tmp_path / "labels.csv")) == 1 + 6


def test_split_that_is_not_there_is_not_offered(neu_root, tmp_path):
    data = read_data(neu(neu_root), tmp_path / "labels.csv")
    assert sorted(data.splits) == ["fit", "train", "val"]
    expected = r"split 'test': expected one of train, fit, val, which lie here\. Add the missing"
    with pytest.raises(ValueError, match=expected):
        data.split("test")


def test_missing_masks_are_counted_at_the_first_read(neu_root, tmp_path):
    for name in ("000002", "000004"):
        (neu_root / f"annotations/training/{name}.png").unlink()
    expected = r"annotations.training: expected a mask for every image, .*; 2 are missing: 000002"
    with pytest.raises(FileNotFoundError, match=expected):
        read_data(neu(neu_root), tmp_path / "labels.csv")
    assert not (tmp_path / "labels.csv").exists()


def test_unknown_mask_value_names_the_file(neu_root, tmp_path, write_neu_split):
    write_neu_split(neu_root, "training", {"000003": (7,)})
    expected = r"000003\.png: expected mask values 0\.\.3 and 255, got 7"
    with pytest.raises(ValueError, match=expected):
        read_data(neu(neu_root), tmp_path / "labels.csv")
    assert not (tmp_path / "labels.csv").exists()


def test_two_neu_seg_pictures_of_one_name_are_refused(neu_root, tmp_path):
    write_image(neu_root / "images/training/000001.png", np.zeros((6, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"000001.*: expected unique names, got"):
        read_data(neu(neu_root), tmp_path / "labels.csv")


def test_training_and_test_picture_of_one_final_name_are_refused(
    neu_root, tmp_path, write_neu_split
):
    write_neu_split(neu_root, "training", {"000001t": (1,)})
    write_neu_split(neu_root, "test", {"000001": (2,)})
    with pytest.raises(ValueError, match=r"000001.*: expected unique names, got"):
        read_data(neu(neu_root), tmp_path / "labels.csv")


def test_wrong_neu_seg_folder_says_what_lies_there(neu_root, tmp_path):
    expected = r"expected images/training and annotations/training.*found 2 entries: anno.*, images"
    (neu_root / "images/training").rename(neu_root / "images/train")
    with pytest.raises(FileNotFoundError, match=expected):
        read_data(neu(neu_root), tmp_path / "labels.csv")
    with pytest.raises(
        FileNotFoundError, match="expected the folder of the neu_seg release, found"
    ):
        read_data(neu(tmp_path / "none"), tmp_path / "labels.csv")


def test_folder_without_images_is_refused(neu_root, tmp_path):
    (neu_root / "images/test").mkdir()
    with pytest.raises(FileNotFoundError, match=r"test: expected images \(\.png.*an empty folder"):
        read_data(neu(neu_root), tmp_path / "labels.csv")


@pytest.mark.parametrize(
    "line",
    ["000001,rust", "000001", "000001,inclusion,patches"],
    ids=["unknown class", "no classes column", "comma for |"],
)
def test_damaged_labels_name_file_and_line(neu_root, tmp_path, line):
    path = tmp_path / "labels.csv"
    path.write_text(f"name,classes\n000005,\n{line}\n")
    expected = (
        r"labels\.csv, line 3: expected columns name, classes with classes of inclusion, .*got"
    )
    with pytest.raises(ValueError, match=expected):
        read_data(neu(neu_root), path)


def test_labels_with_other_columns_are_refused(neu_root, tmp_path):
    (tmp_path / "labels.csv").write_text("file,label\n000001,inclusion\n")
    with pytest.raises(ValueError, match=r"labels\.csv, line 2: expected columns name, classes"):
        read_data(neu(neu_root), tmp_path / "labels.csv")


def test_limit_keeps_evenly_spaced_pictures_of_each_split(neu_root, tmp_path, write_neu_split):
    write_neu_split(neu_root, "test", {f"{i:06d}": (1,) for i in range(10)})
    data = read_data(replace(neu(neu_root), limit=4), tmp_path / "labels.csv")
    # 10 pictures, 4 kept: indices 0, 10/4, 20/4, 30/4 rounded down.
    assert names(data.split("test")) == ["000000t", "000002t", "000005t", "000007t"]
    assert len(data.split("train")) == 4
    assert len(data.split("fit")) + len(data.split("val")) == 4
    whole = read_data(replace(neu(neu_root), limit=99), tmp_path / "labels.csv")
    assert len(whole.split("test")) == 10


def test_one_picture_cannot_be_divided(neu_root, tmp_path):
    expected = "two groups of images or more of some class, .* got 1 images in 1 groups"
    with pytest.raises(ValueError, match=expected):
        read_data(replace(neu(neu_root), limit=1), tmp_path / "labels.csv")


def test_real_neu_seg_has_its_known_numbers(tmp_path):
    root = os.environ.get("STAC_DATA_NEU")
    if not root:
        pytest.skip("STAC_DATA_NEU does not name a folder with the training part of NEU-Seg")
    data = read_data(neu(Path(root)), tmp_path / "labels.csv")
    records = data.split("train")
    assert len(records) == 3630
    assert sum(len(record.classes) > 1 for record in records) == 695
    counts = Counter(k for record in records for k in record.classes)
    assert [counts[k] for k in range(3)] == [1460, 1448, 1429]
