"""Whatever the layout, no picture and its copy are on two sides of a split that we draw."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from configs import DataConfig
from datasets.files import write_image, write_mask
from datasets.sample import write_sample
from datasets.sources import Data, read_data

NUMBERS = range(24)  # images of each layout, of two labels; each is one of two copies
SIZE = (48, 64)
BLANK = np.zeros(SIZE, np.uint8)


def picture(family: int, version: int) -> np.ndarray:
    noise = np.random.default_rng(family).normal(size=SIZE).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 3)
    pixels = np.clip(128 + 40 * smooth / smooth.std(), 0, 255).astype(np.uint8)
    return np.ascontiguousarray((pixels, pixels[::-1, ::-1])[version])


def neu_seg(root: Path) -> dict:
    for i in NUMBERS:
        write_image(root / f"images/training/{i:06}.jpg", BLANK)
        write_mask(root / f"annotations/training/{i:06}.png", np.full(SIZE, 1 + i % 3, np.uint8))
    return {}


def mtd(root: Path) -> dict:
    for folder in ("Blowhole", "Break", "Crack", "Fray", "Uneven", "Free"):
        for i in range(4):
            write_image(root / f"MT_{folder}/Imgs/{folder}_{i}.jpg", BLANK)
    return {"test_share": 0.4}


def dagm(root: Path) -> dict:
    for i in NUMBERS:
        write_image(root / f"Class1/Train/{i:04}.png", BLANK)
        if i % 2:
            write_image(root / f"Class1/Train/Label/{i:04}_label.png", BLANK)
    return {}


def mvtec(root: Path) -> dict:
    for part, kind in (("train", "good"), ("test", "good"), ("test", "hole"), ("test", "cut")):
        for i in range(6):
            write_image(root / part / kind / f"{i:03}.png", BLANK)
    return {"defect_types": True, "test_share": 0.4}


def voc(root: Path) -> dict:
    names = [f"2007_{i:06}" for i in NUMBERS]
    (root / "Annotations").mkdir(parents=True)
    for i, name in enumerate(names):
        write_image(root / f"JPEGImages/{name}.jpg", BLANK)
        thing = f"<object><name>{('cat', 'dog')[i % 2]}</name></object>"
        (root / f"Annotations/{name}.xml").write_text(f"<annotation>{thing}</annotation>")
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/train.txt").write_text("\n".join(names))
    return {}


def authors(root: Path) -> dict:
    for i in NUMBERS:
        write_image(root / f"JPEGImages/{i:04}.jpg", BLANK)
    labels = {f"{i:04}": np.eye(2, dtype=np.float32)[i % 2] for i in NUMBERS}
    np.save(root / "cls_labels.npy", labels, allow_pickle=True)
    (root / "train.txt").write_text("\n".join(labels))
    return {}


def folder(root: Path) -> dict:
    for i in NUMBERS:
        write_image(root / ("dent", "good")[i % 2] / f"{i}.png", BLANK)
    return {"test_share": 0.4}


def csv(root: Path) -> dict:
    folder(root)
    rows = [f"{('dent', 'good')[i % 2]}/{i}.png,{('dent', '')[i % 2]}" for i in NUMBERS]
    (root / "t.csv").write_text("image,classes\n" + "\n".join(rows))
    return {"test_share": 0.4, "table": "t.csv"}


def sample(root: Path) -> dict:
    write_sample(root, len(NUMBERS), 4, 0)
    return {"sample_train": len(NUMBERS), "sample_test": 4}


LAYOUTS = (neu_seg, mtd, dagm, mvtec, voc, authors, folder, csv, sample)
DRAW_TEST = (mtd, mvtec, folder, csv)


def read(layout: Callable, root: Path, settings: dict, seed: int) -> Data:
    name = layout.__name__
    given = {"source": name, "root": str(root), "val_fraction": 0.3} | settings
    seed = 0 if layout is sample else seed  # the sample is drawn by the same seed
    return read_data(DataConfig(**given, seed=seed), root.parent / f"run_{name}/labels.csv")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_group_is_in_two_splits_of_a_draw(layout, tmp_path):
    root = tmp_path / "data"
    settings = layout(root)
    drawn_from = ("train", "test") if layout in DRAW_TEST else ("train",)
    blank = read(layout, root, {**settings, "group": "none"}, seed=0)
    images = sorted(r.image for s in drawn_from for r in blank.splits.get(s, ()))
    order = np.random.default_rng(0).permutation(len(images))  # copies of other labels too
    for place, i in enumerate(order):
        pixels = picture(place // 2, place % 2)
        write_image(images[i], pixels)
    family = {images[i]: place // 2 for place, i in enumerate(order)}
    for seed in range(6):
        splits = read(layout, root, settings, seed).splits
        found = {s: {family[r.image] for r in splits[s] if r.image in family} for s in splits}
        assert not found["fit"] & found["val"]
        assert found["fit"] | found["val"] == found["train"]
        if layout in DRAW_TEST:
            assert found["test"] and not found["train"] & found["test"]
        groups = {r.image: r.group for records in splits.values() for r in records}
        assert len({groups[image] for image in family}) == len(set(family.values()))


def test_a_group_column_keeps_pictures_of_a_part_together(tmp_path):
    settings = csv(tmp_path / "data")
    rows = [
        f"{('dent', 'good')[i % 2]}/{i}.png,{('dent', '')[i % 2]},part {i // 4}" for i in NUMBERS
    ]
    (tmp_path / "data/t.csv").write_text("image,classes,group\n" + "\n".join(rows))
    for seed in range(6):
        data = read(csv, tmp_path / "data", settings, seed)
        parts = {s: {r.group for r in data.splits[s]} for s in ("fit", "val", "test")}
        assert sum(map(len, parts.values())) == len(set().union(*parts.values())) == 6


def test_a_defective_copy_of_a_good_training_part_is_trained_on(tmp_path):
    settings = mvtec(tmp_path / "data") | {"test_share": 0.8, "group": r"_(\d+)$"}
    splits = read(mvtec, tmp_path / "data", settings, 0).splits  # all numbers are in train/good
    assert "test" not in splits and len(splits["train"]) == 24


@pytest.mark.parametrize("layout", [neu_seg, folder])
def test_a_clean_training_part_shows_nothing_of_the_test_split(layout, tmp_path):
    root = tmp_path / "data"
    names = [f"{i:06}" for i in range(12)]
    if layout is neu_seg:
        neu_seg(root)
        for i, name in enumerate(names):  # the test split shows every other training picture
            write_image(root / f"images/test/{name}.jpg", picture(2 * i, 1))
            write_mask(root / f"annotations/test/{name}.png", BLANK + 1)
        for i in NUMBERS:
            write_image(root / f"images/training/{i:06}.jpg", picture(i, 0))
    else:
        for i in NUMBERS:
            write_image(root / "train" / ("dent", "good")[i // 2 % 2] / f"{i}.png", picture(i, 0))
        for i, name in enumerate(names):
            write_image(root / f"test/dent/{name}.png", picture(2 * i, 1))
    splits = read(layout, root, {"clean_test": True}, 0).splits
    numbers = sorted(int(record.image.stem) for record in splits["train"])
    assert numbers == [i for i in NUMBERS if i % 2]
    assert len(splits["test"]) == 12
    assert len(read(layout, root, {}, 0).splits["train"]) == 24


def test_a_clean_training_part_needs_a_test_split(tmp_path):
    neu_seg(tmp_path / "data")
    with pytest.raises(ValueError, match="data.clean_test: expected a test split, found none"):
        read(neu_seg, tmp_path / "data", {"clean_test": True}, 0)


def test_a_test_split_that_shows_all_leaves_nothing_to_train_on(tmp_path):
    root = tmp_path / "data"
    for split in ("train", "test"):
        for i in range(3):
            write_image(root / split / f"dent/{i}.png", picture(i, split == "test"))
    with pytest.raises(ValueError, match="got none of 3. Check data.group"):
        read(folder, root, {"clean_test": True}, 0)


def test_lists_replace_the_splits_of_neu_seg(tmp_path):
    root = tmp_path / "data"
    neu_seg(root)
    (root / "train.txt").write_text("\n".join(f"{i:06}" for i in range(0, 12)))
    (tmp_path / "test.txt").write_text("000020\n000021\n")
    lists = {"train_list": "train.txt", "test_list": str(tmp_path / "test.txt"), "group": "none"}
    splits = read(neu_seg, root, lists, 0).splits
    assert len(splits["train"]) == 12 and len(splits["fit"]) + len(splits["val"]) == 12
    assert [record.name for record in splits["test"]] == ["000020", "000021"]
    (tmp_path / "test.txt").write_text("000000\n")
    with pytest.raises(ValueError, match="expected no image of train.txt, got 1: 000000"):
        read(neu_seg, root, lists, 0)


def test_a_develop_list_names_training_images(tmp_path):
    root = tmp_path / "data"
    neu_seg(root)
    settings = {"develop_list": str(tmp_path / "develop.txt"), "group": "none"}
    with pytest.raises(FileNotFoundError, match="Correct data.develop_list"):
        read(neu_seg, root, settings, 0)
    (tmp_path / "develop.txt").write_text("000003\n000004\nnone_such\n")
    assert read(neu_seg, root, settings, 0).develop == {"000003", "000004"}
    (tmp_path / "develop.txt").write_text("none_such\n")  # of another release
    assert read(neu_seg, root, settings, 0).develop == frozenset()
