"""Pictures that show the same thing are one group, others are not, and what is found is kept."""

import csv
import os
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pytest

from configs import DataConfig
from datasets.files import read_truth, write_image
from datasets.groups import (
    MIN_FAR,
    SIDE,
    connected,
    find_exposures,
    find_groups,
    with_groups,
    without_common,
)
from datasets.record import Record
from datasets.sources import read_data


def texture(seed: int, size: tuple[int, int] = (60, 80), grain: float = 3.0) -> np.ndarray:
    """Return (H, W) uint8 of smooth noise."""
    noise = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), grain)
    return np.clip(128 + 40 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def write_all(folder: Path, **pictures: np.ndarray) -> list[Path]:
    paths = [folder / f"{name}.png" for name in pictures]
    for path, pixels in zip(paths, pictures.values(), strict=True):
        write_image(path, np.ascontiguousarray(pixels))
    return paths


def named_groups(paths: list[Path]) -> list[list[str]]:
    names = [path.stem for path in paths]
    return [[names[i] for i in group] for group in find_groups(paths, names)]


def records_of(paths: list[Path]) -> list[Record]:
    return [Record(path.stem, path, (0,)) for path in paths]


def test_turned_mirrored_and_brighter_copies_are_one_group(tmp_path):
    one, other = texture(0), texture(1)
    versions = {f"v{k}": np.rot90(m, k % 4) for k, m in enumerate([one] * 4 + [one[:, ::-1]] * 4)}
    paths = write_all(tmp_path, other=other, light=one // 2 + 50, **versions, turned=other[::-1])
    assert named_groups(paths) == [["other", "turned"], ["light", *versions]]


def test_a_jpeg_copy_of_another_size_is_a_copy(tmp_path):
    (path,) = write_all(tmp_path, a=texture(0, (200, 300)))
    small = cv2.resize(texture(0, (200, 300)), (120, 80), interpolation=cv2.INTER_AREA)
    write_image(tmp_path / "b.jpg", small)
    assert named_groups([path, tmp_path / "b.jpg"]) == [["a", "b"]]


def test_different_textures_and_even_pictures_are_no_copies(tmp_path):
    pictures = {f"t{seed}": texture(seed) for seed in range(30)}
    even = {"even": np.full((60, 80), 90, np.uint8), "equal": np.full((60, 80), 90, np.uint8)}
    paths = write_all(tmp_path, **pictures, **even)
    assert all(len(group) == 1 for group in named_groups(paths))


def test_a_picture_that_cannot_be_read_is_a_group_of_its_own(tmp_path):
    paths = write_all(tmp_path, a=texture(0), b=texture(0))
    broken = [tmp_path / "c.png", tmp_path / "missing.png"]
    broken[0].write_bytes(b"no picture")
    assert named_groups([*paths, *broken]) == [["a", "b"], ["c"], ["missing"]]


def test_aligned_parts_do_not_melt_into_one_group_but_their_copies_do(tmp_path):
    # One pose of a part, whose outline all share; each has its own faint grain. Two are equal.
    part = np.zeros((96, 96), np.float32)
    cv2.circle(part, (48, 48), 30, 120, -1)
    cv2.rectangle(part, (20, 60), (70, 80), 60, -1)
    pictures = {}
    for seed in range(MIN_FAR + 10):
        pictures[f"p{seed:03}"] = np.clip(part + texture(seed, (96, 96)) / 16, 0, 255)
    pictures["copy"] = pictures["p007"]
    paths = write_all(tmp_path, **{n: p.astype(np.uint8) for n, p in pictures.items()})
    groups = named_groups(paths)
    assert [group for group in groups if len(group) > 1] == [["p007", "copy"]]


def test_what_all_pictures_show_is_left_where_they_are_not_aligned():
    detail = np.random.default_rng(0).normal(size=(MIN_FAR, SIDE, SIDE)).astype(np.float32)
    detail /= np.linalg.norm(detail, axis=(1, 2), keepdims=True)
    assert without_common(detail) is detail
    few = np.repeat(detail[:1], MIN_FAR - 1, axis=0)
    assert without_common(few) is few  # too few to say what is common


def exposures(num_tiles: int, num_exposures: int) -> tuple[np.ndarray, list[str]]:
    """Return detail of tiles under several lights, numbered as MTD does, and names."""
    random = np.random.default_rng(0)
    detail, names = [], []
    for tile in range(num_tiles):
        own = random.normal(size=(SIDE, SIDE))
        for exposure in range(num_exposures):
            picture = own + 0.6 * random.normal(size=(SIDE, SIDE))  # correlation 1 / 1.36
            detail.append(picture / np.linalg.norm(picture))
            names.append(f"exp{exposure + 1}_num_{1000 * tile + 17 * exposure}")
    return np.array(detail, np.float32), names


def test_exposures_of_one_part_are_found_by_near_names_and_detail():
    detail, names = exposures(20, 4)
    groups = connected(len(names), find_exposures(detail, names))
    assert groups == [[4 * tile + i for i in range(4)] for tile in range(20)]


def test_names_far_apart_are_no_exposures():
    detail, names = exposures(20, 4)
    rng = np.random.default_rng(1)
    shuffled = [names[i] for i in rng.permutation(len(names))]
    assert find_exposures(detail, shuffled) == []


def test_few_like_neighbours_say_nothing_about_names():
    # Of 200 textures four neighbours look alike by chance: no rule for the others.
    random = np.random.default_rng(0)
    detail = random.normal(size=(200, SIDE, SIDE))
    detail[1], detail[3] = detail[0], detail[2]
    detail /= np.linalg.norm(detail, axis=(1, 2), keepdims=True)
    assert find_exposures(detail.astype(np.float32), [f"{i:04}" for i in range(200)]) == []


def test_connected_groups_are_whole_and_in_order():
    assert connected(6, [(4, 1), (5, 0), (1, 2)]) == [[0, 5], [1, 2, 4], [3]]
    assert connected(0, []) == []


def test_a_group_is_named_by_its_first_name_and_kept_in_groups_csv(tmp_path, monkeypatch):
    paths = write_all(tmp_path, b=texture(0), a=texture(0).T, c=texture(1))
    cache = tmp_path / "run/groups.csv"
    grouped = with_groups(records_of(paths), "auto", cache)
    assert [record.group for record in grouped] == ["a", "a", "c"]
    with cache.open(newline="") as file:
        rows = [(row["name"], row["group"]) for row in csv.DictReader(file)]
    assert rows == [("a", "a"), ("b", "a"), ("c", "c")]
    monkeypatch.setattr("datasets.groups.find_groups", None)  # would fail if it was called
    assert with_groups(records_of(paths)[::-1], "auto", cache) == grouped[::-1]


@pytest.mark.parametrize("damage", ["another picture", "another name", "no table"])
def test_groups_are_found_anew_when_the_pictures_are_others(tmp_path, damage):
    paths = write_all(tmp_path, a=texture(0), b=texture(0), c=texture(1))
    cache = tmp_path / "groups.csv"
    with_groups(records_of(paths), "auto", cache)
    if damage == "another picture":
        write_image(paths[1], texture(5, (61, 80)))
    elif damage == "another name":
        paths[1] = paths[1].rename(tmp_path / "d.png")
    else:
        cache.write_bytes(b"\xff\xfe")
    before = cache.read_bytes()
    found = with_groups(records_of(paths), "auto", cache)
    expected = ["a", "b", "c"] if damage == "another picture" else ["a", "a", "c"]
    assert [record.group for record in found] == expected
    assert cache.read_bytes() != before


def test_a_regular_expression_groups_by_what_it_captures(tmp_path):
    names = ("good_01_2008_517500_315_crop_2", "pit_01_2011_517500_315_crop_9", "pit_x")
    records = [Record(name, tmp_path / f"{name}.png", ()) for name in names]
    groups = [r.group for r in with_groups(records, r"_(\d+_\d+)_crop", tmp_path / "groups.csv")]
    assert groups == ["517500_315", "517500_315", "pit_x"]
    whole = [r.group for r in with_groups(records, "^pit", tmp_path / "groups.csv")]
    assert whole == [names[0], "pit", "pit"]
    assert not (tmp_path / "groups.csv").exists()


def test_a_wrong_regular_expression_is_named(tmp_path):
    records = [Record("a1", tmp_path / "a1.png", ())]
    with pytest.raises(ValueError, match="data.group: expected auto, none or a regular expression"):
        with_groups(records, "(", tmp_path / "groups.csv")
    with pytest.raises(ValueError, match="found in none of 1, such as a1. Correct it"):
        with_groups(records, "tile", tmp_path / "groups.csv")


def test_groups_of_a_table_stay_and_none_looks_at_nothing(tmp_path):
    paths = write_all(tmp_path, a=texture(0), b=texture(0))
    records = records_of(paths)
    assert with_groups(records, "none", tmp_path / "groups.csv") == records
    named = [replace(records[0], group="part 1"), records[1]]
    assert with_groups(named, "auto", tmp_path / "groups.csv") == named
    assert not (tmp_path / "groups.csv").exists()


def real_data(source: str, variable: str, folder: Path) -> tuple[Record, ...]:
    root = os.environ.get(variable)
    if not root:
        pytest.skip(f"{variable} does not name a folder with the training part of {source}")
    settings = DataConfig(source=source, root=root, test_share=0.0)
    return read_data(settings, folder / "labels.csv").split("train")


def test_real_neu_seg_shows_1101_pictures(tmp_path):
    records = real_data("neu_seg", "STAC_DATA_NEU", tmp_path)
    assert (len(records), len({record.group for record in records})) == (3630, 1101)


def test_real_mtd_keeps_the_exposures_of_a_defect_together(tmp_path):
    records = [r for r in real_data("mtd", "STAC_DATA_MTD", tmp_path) if r.classes]
    number = {r.name: int(r.name.rpartition("_")[2]) for r in records}
    masks = {r.name: cv2.resize((read_truth(r, 5) > 0) * 1.0, (96, 96)) > 0.3 for r in records}
    pairs = [
        (a, b)
        for a, b in combinations(records, 2)
        if a.classes == b.classes and abs(number[a.name] - number[b.name]) < 1500
    ]
    union = [max(1, (masks[a.name] | masks[b.name]).sum()) for a, b in pairs]
    common = [(masks[a.name] & masks[b.name]).sum() for a, b in pairs]
    alike = [pair for pair, i, u in zip(pairs, common, union, strict=True) if i > 0.5 * u]
    together = sum(a.group == b.group for a, b in alike)
    assert len(alike) > 200 and together >= 0.95 * len(alike)
