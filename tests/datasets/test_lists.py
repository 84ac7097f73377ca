"""The lists of configs/splits/, and the module that writes such lists."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import datasets.lists
from configs import load
from configs.command_line import ROOT
from datasets.files import write_image, write_mask

SPLITS = ROOT / "configs/splits"


def names(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").split()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., None]:
    """Write the textures of these seeds, in the NEU-Seg layout: folder, seeds, turned or not."""

    def write_pictures(folder: str, seeds: range, turned: bool) -> None:
        for i in seeds:
            pixels = np.random.default_rng(i).integers(0, 255, (24, 24), np.uint8).repeat(2, 0)
            pixels = np.rot90(pixels) if turned else pixels
            path = tmp_path / f"data/images/{folder}/{i:03}{'ab'[turned]}.png"
            write_image(path, np.ascontiguousarray(pixels))
            mask = tmp_path / f"data/annotations/{folder}/{path.name}"
            write_mask(mask, np.full(pixels.shape, 1 + i % 3, np.uint8))

    return write_pictures


def call(tmp_path: Path, *flags: str) -> None:
    root = ["data.source=neu_seg", f"data.root={tmp_path}/data"]
    datasets.lists.main(["--out", str(tmp_path / "run"), "--set", *root, *flags])


def test_the_develop_part_is_a_third_of_whole_groups(tmp_path, write, capsys):
    write("training", range(30), False)
    write("training", range(30), True)
    call(tmp_path, "--develop", str(tmp_path / "lists/develop.txt"))
    develop = names(tmp_path / "lists/develop.txt")
    assert develop == sorted(develop)
    assert {name[:3] for name in develop if name.endswith("a")} == {
        name[:3] for name in develop if name.endswith("b")
    }
    for label in range(3):  # 20 images of each, in pairs
        assert abs(sum(int(name[:3]) % 3 == label for name in develop) - 20 / 3) <= 2
    assert f"develop.txt: {len(develop)} images" in capsys.readouterr().out


def test_the_clean_part_is_what_the_test_split_does_not_show(tmp_path, write):
    write("training", range(12), False)
    write("test", range(4, 9), True)
    paths = [tmp_path / "train.txt", tmp_path / "test.txt"]
    call(tmp_path, "--clean", *map(str, paths))
    clean, shown = map(names, paths)
    assert clean == [f"{i:03}a" for i in (0, 1, 2, 3, 9, 10, 11)]
    assert shown == [f"{i:03}a" for i in range(4, 9)]


def test_the_shipped_lists_fit_together():
    lists = {path.stem: names(path) for path in SPLITS.glob("*.txt")}
    for found in lists.values():
        assert found == sorted(set(found))
    # docs/datasets.md: 3,630 training images of 1,101 pictures, of which the test split shows 806.
    assert len(lists["neu_seg_clean_train"]) == 1180
    assert len(lists["neu_seg_clean_test"]) == 806
    assert len(lists["neu_seg_pictures"]) == 1101
    assert not {*lists["neu_seg_clean_train"]} & {*lists["neu_seg_clean_test"]}
    assert {*lists["neu_seg_clean_test"]} < {*lists["neu_seg_pictures"]}
    assert len({*lists["neu_seg_clean_train"]} & {*lists["neu_seg_pictures"]}) == 295
    assert abs(len(lists["neu_seg_develop"]) - 3630 / 3) < 10
    assert abs(len(lists["mtd_develop"]) - 1123 / 3) < 10


@pytest.mark.parametrize("config", ["neu_seg", "neu_seg_cpu", "mtd", "mtd_cpu"])
def test_configs_name_lists_that_are_there(config):
    data = load([ROOT / f"configs/{config}.toml"]).data
    assert (ROOT / data.develop_list).parent == SPLITS
    assert (ROOT / data.develop_list).is_file()
    clean = load([ROOT / "configs/neu_seg.toml", ROOT / "configs/variants/neu_seg_clean.toml"]).data
    assert (ROOT / clean.train_list).is_file() and (ROOT / clean.test_list).is_file()
