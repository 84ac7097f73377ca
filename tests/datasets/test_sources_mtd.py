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
    assert len(found) == 18
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
    for tile in range(100, 200):
        for view in (1, 2):
            add_mtd(mtd_root, "Free", f"exp{view}_num_{tile}")
    settings = mtd(mtd_root, test_share=0.3, group=r"num_(\d+)")
    data = read_data(settings, tmp_path / "labels.csv")
    splits = data.splits
    tiles = {split: {re.sub(".*_", "", name) for name in names(splits[split])} for split in splits}
    assert not tiles["train"] & tiles["test"]
    assert not tiles["fit"] & tiles["val"]
    assert len(splits["train"]) + len(splits["test"]) == 18 + 200
    # 0.3 of 203 defect-free images is 60.9; half a tile of three exposures is 1.5.
    assert 59 <= len(splits["test"]) <= 62
    # Each defect shows on one tile only, which is trained on.
    assert set(labels(data, "test").values()) == {()}
    assert {(k,) for k in range(5)} <= set(labels(data, "fit").values())


def test_mtd_split_takes_a_share_of_each_class_by_the_seed(mtd_root, tmp_path):
    def drawn(seed: int) -> dict[str, tuple[int, ...]]:
        settings = mtd(mtd_root, test_share=0.3, seed=seed)
        return labels(read_data(settings, tmp_path / "labels.csv"), "test")

    for seed in range(4):  # 0.3 of 18 images is 5.4; of three images of a class 0.9
        counts = Counter(drawn(seed).values())
        assert counts.total() in (5, 6)
        assert max(counts.values()) == 1
    assert drawn(0) == drawn(0)
    assert len({frozenset(drawn(seed)) for seed in range(4)}) > 1


def test_mtd_split_is_the_same_in_every_process(mtd_root, tmp_path):
    script = (
        "import sys; from pathlib import Path; from configs import DataConfig;"
        "from datasets.sources import read_data;"
        f"data = read_data(DataConfig(source='mtd', root={str(mtd_root)!r}), Path(sys.argv[1]));"
        "print({split: [r.name for r in records] for split, records in data.splits.items()})"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / seed / "labels.csv")],
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
    (tmp_path / "train.txt").write_text("exp1_num_61\nexp1_num_11\nexp2_num_21\nexp2_num_61")
    (tmp_path / "test.txt").write_text("exp3_num_31\n")
    lists = {"train_list": str(tmp_path / "train.txt"), "test_list": str(tmp_path / "test.txt")}
    data = read_data(mtd(mtd_root, **lists), tmp_path / "labels.csv")
    assert labels(data, "train") == {
        "exp1_num_61": (),
        "exp1_num_11": (0,),
        "exp2_num_21": (1,),
        "exp2_num_61": (),
    }
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


def test_share_that_leaves_one_training_picture_of_each_class_is_refused(mtd_root, tmp_path):
    expected = r"train: expected two groups of images .*, got 6 images in 6 groups\. Check data\.ro"
    with pytest.raises(ValueError, match=expected):
        read_data(mtd(mtd_root, test_share=0.999999), tmp_path / "labels.csv")


def test_fit_and_val_divide_train_by_the_seed(mtd_root, tmp_path):
    def splits(seed: int) -> dict[str, list[str]]:
        settings = mtd(mtd_root, test_share=0.0, val_fraction=0.25, seed=seed)
        found = read_data(settings, tmp_path / "labels.csv").splits
        return {split: names(records) for split, records in found.items()}

    first = splits(0)
    assert len(first["val"]) in (4, 5)  # a quarter of 18
    assert not set(first["fit"]) & set(first["val"])
    assert sorted(first["fit"] + first["val"]) == first["train"]
    assert splits(0) == first
    assert any(splits(seed)["val"] != first["val"] for seed in (1, 2, 3))


@pytest.mark.parametrize(("fraction", "num_val"), [(0.001, 1), (0.999, 12)])
def test_val_is_never_empty_and_fit_has_each_class(mtd_root, tmp_path, fraction, num_val):
    settings = mtd(mtd_root, test_share=0.0, val_fraction=fraction)
    data = read_data(settings, tmp_path / "labels.csv")
    assert (len(data.split("val")), len(data.split("fit"))) == (num_val, 18 - num_val)
    assert set(labels(data, "fit").values()) == {(), (0,), (1,), (2,), (3,), (4,)}


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
