import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from configs import DataConfig
from configs.command_line import ROOT
from datasets.files import read_image, read_truth
from datasets.layouts.mtd import MTD_CLASSES
from datasets.record import Record
from datasets.sources import Data, read_data


def mtd(root: Path, **settings: object) -> DataConfig:
    return DataConfig(source="mtd", root=str(root), **settings)


def names(records: Iterable[Record]) -> list[str]:
    return [record.name for record in records]


def labels(data: Data, split: str) -> dict[str, tuple[int, ...]]:
    return {record.name: record.classes for record in data.split(split)}


# MTD


def test_mtd_classes_come_from_the_folders_and_masks_are_grey(mtd_root, tmp_path, mtd_pictures):
    data = read_data(mtd(mtd_root, test_share=0.0), tmp_path / "labels.csv")
    assert data.class_names == MTD_CLASSES == ("blowhole", "break", "crack", "fray", "uneven")
    found = {record.name: record for record in data.split("train")}
    assert len(found) == 12
    for folder, stems in mtd_pictures.items():
        for stem in stems:
            record = found[stem]
            free = folder == "Free"
            assert record.classes == (() if free else (MTD_CLASSES.index(folder.lower()),))
            defect = 0 if free else record.classes[0] + 1
            assert read_truth(record, 5)[0, :4].tolist() == [0, defect, defect, 0]
    assert not (tmp_path / "labels.csv").exists()


def test_mtd_without_test_share_offers_no_test(mtd_root, tmp_path):
    data = read_data(mtd(mtd_root, test_share=0.0), tmp_path / "labels.csv")
    assert sorted(data.splits) == ["fit", "train", "val"]
    with pytest.raises(ValueError, match="split 'test': expected one of train, fit, val"):
        data.split("test")


def test_mtd_split_keeps_tiles_together_and_about_the_share(mtd_root, tmp_path, add_mtd):
    for tile in range(100, 300):
        for view in (1, 2):
            add_mtd(mtd_root, "Free", f"exp{view}_num_{tile}")
    splits = read_data(mtd(mtd_root, test_share=0.3), tmp_path / "labels.csv").splits
    tiles = {split: {re.sub(".*_", "", name) for name in names(splits[split])} for split in splits}
    assert not tiles["train"] & tiles["test"]
    assert len(splits["train"]) + len(splits["test"]) == 12 + 400
    # 206 tiles, share 0.3: binomial mean 62, standard deviation 6.6; allow 4 of these.
    assert 36 <= len(tiles["test"]) <= 88


def test_mtd_split_depends_on_a_picture_alone(mtd_root, tmp_path, add_mtd):
    before = read_data(mtd(mtd_root, test_share=0.5), tmp_path / "labels.csv").splits
    add_mtd(mtd_root, "Free", "exp1_num_999")
    other_seed = mtd(mtd_root, test_share=0.5, seed=9)
    after = read_data(other_seed, tmp_path / "labels.csv").splits
    for split in ("train", "test"):
        assert before[split]
        assert set(names(after[split])) - set(names(before[split])) <= {"exp1_num_999"}
        assert set(names(before[split])) <= set(names(after[split]))


def test_mtd_split_is_the_same_in_every_process(mtd_root):
    script = (
        "from pathlib import Path; from configs import DataConfig;"
        "from datasets.sources import read_data;"
        f"data = read_data(DataConfig(source='mtd', root={str(mtd_root)!r}), Path('labels.csv'));"
        "print({split: [r.name for r in records] for split, records in data.splits.items()})"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1
    assert "exp1_num_11" in printed.pop()


def test_mtd_list_files_decide(mtd_root, tmp_path):
    (tmp_path / "train.txt").write_text("exp1_num_61\nexp1_num_11\nexp2_num_21")
    (tmp_path / "test.txt").write_text("exp3_num_31\n")
    lists = {"train_list": str(tmp_path / "train.txt"), "test_list": str(tmp_path / "test.txt")}
    data = read_data(mtd(mtd_root, **lists), tmp_path / "labels.csv")
    assert labels(data, "train") == {"exp1_num_61": (), "exp1_num_11": (0,), "exp2_num_21": (1,)}
    assert labels(data, "test") == {"exp3_num_31": (2,)}
    lists["test_list"] = ""
    assert "test" not in read_data(mtd(mtd_root, **lists), tmp_path / "labels.csv").splits


def test_mtd_list_files_with_unknown_or_repeated_names_are_refused(mtd_root, tmp_path):
    train, test = tmp_path / "train.txt", tmp_path / "test.txt"
    settings = mtd(mtd_root, train_list=str(train), test_list=str(test))
    with pytest.raises(FileNotFoundError, match=r"train\.txt: expected a list file"):
        read_data(settings, tmp_path / "labels.csv")
    train.write_text("exp1_num_11\nexp1_num_12\nexp1_num_13\n")
    test.write_text("exp1_num_21\n")
    expected = r"train\.txt: expected names of images .* got 2 others: exp1_num_12, exp1_num_13"
    with pytest.raises(ValueError, match=expected):
        read_data(settings, tmp_path / "labels.csv")
    train.write_text("exp1_num_11\nexp1_num_21\nexp1_num_11\n")
    with pytest.raises(ValueError, match=r"train\.txt.*exp1_num_11"):
        read_data(settings, tmp_path / "labels.csv")
    train.write_text("exp1_num_11\nexp1_num_21\n")
    with pytest.raises(ValueError, match=r"test\.txt.*exp1_num_21"):
        read_data(settings, tmp_path / "labels.csv")


def test_missing_mtd_class_folder_says_what_lies_there(mtd_root, tmp_path):
    shutil.rmtree(mtd_root / "MT_Fray")
    expected = r"MT_Fray.Imgs: expected a folder of MTD, found 5 entries: MT_Blowhole, MT_Break"
    with pytest.raises(FileNotFoundError, match=expected):
        read_data(mtd(mtd_root), tmp_path / "labels.csv")


def test_mtd_picture_in_two_folders_is_refused(mtd_root, tmp_path, add_mtd):
    add_mtd(mtd_root, "Crack", "exp1_num_11")
    expected = r"exp1_num_11\.jpg: expected unique names, got exp1_num_11 in .*MT_Blowhole.Imgs too"
    with pytest.raises(ValueError, match=expected):
        read_data(mtd(mtd_root), tmp_path / "labels.csv")


def test_mtd_picture_without_mask_can_be_trained_on(mtd_root, tmp_path):
    (mtd_root / "MT_Blowhole/Imgs/exp1_num_11.png").unlink()
    records = read_data(mtd(mtd_root, test_share=0.0), tmp_path / "labels.csv").split("train")
    assert [record.name for record in records if record.mask is None] == ["exp1_num_11"]


def test_share_that_leaves_no_training_picture_is_refused(mtd_root, tmp_path):
    with pytest.raises(
        ValueError, match="train: expected at least 2 images, one of them for validation, got 0"
    ):
        read_data(mtd(mtd_root, test_share=0.999999), tmp_path / "labels.csv")


def test_fit_and_val_divide_train_by_the_seed(mtd_root, tmp_path):
    def splits(seed: int) -> dict[str, list[str]]:
        settings = mtd(mtd_root, test_share=0.0, val_fraction=0.25, seed=seed)
        found = read_data(settings, tmp_path / "labels.csv").splits
        return {split: names(records) for split, records in found.items()}

    first = splits(0)
    assert len(first["val"]) == 3  # a quarter of 12
    assert not set(first["fit"]) & set(first["val"])
    assert sorted(first["fit"] + first["val"]) == first["train"]
    assert splits(0) == first
    assert any(splits(seed)["val"] != first["val"] for seed in (1, 2, 3))


@pytest.mark.parametrize(("fraction", "num_val"), [(0.001, 1), (0.999, 11)])
def test_fit_and_val_are_never_empty(mtd_root, tmp_path, fraction, num_val):
    settings = mtd(mtd_root, test_share=0.0, val_fraction=fraction)
    data = read_data(settings, tmp_path / "labels.csv")
    assert (len(data.split("val")), len(data.split("fit"))) == (num_val, 12 - num_val)


def test_real_mtd_has_its_known_numbers_and_fitting_masks(tmp_path):
    root = os.environ.get("STAC_DATA_MTD")
    if not root:
        pytest.skip("STAC_DATA_MTD does not name a folder with the training part of MTD")
    settings = mtd(Path(root), test_share=0.0)
    records = read_data(settings, tmp_path / "labels.csv").split("train")
    counts = Counter(record.classes for record in records)
    assert counts == {(0,): 81, (1,): 62, (2,): 39, (3,): 24, (4,): 65, (): 852}
    for record in records[::10]:
        truth = read_truth(record, 5)
        assert truth.shape == read_image(record.image).shape[:2]
        assert set(np.unique(truth)) - {0} == {k + 1 for k in record.classes}
