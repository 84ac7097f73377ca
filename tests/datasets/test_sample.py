import csv
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from configs import DataConfig
from datasets import sample
from datasets.atomic import temporary_name
from datasets.files import read_image, read_mask
from datasets.sample import CLASS_NAMES, MATERIALS, make_image, make_surface, write_sample
from datasets.sources import read_data

NUM_CLASSES = len(CLASS_NAMES)


@cache
def picture(index: int) -> tuple[np.ndarray, np.ndarray]:
    return make_image(np.random.default_rng((7, 0, index)))


def pictures(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return [picture(index) for index in range(count)]


def contents(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): path.read_bytes() for path in files}


def times(root: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in root.rglob("*")}


def stop_at(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Make write_sample fail when it comes to the mask of `name`."""
    write_mask = sample.write_mask

    def write_or_stop(path: Path, mask: np.ndarray) -> None:
        if path.stem == name:
            raise KeyboardInterrupt
        write_mask(path, mask)

    monkeypatch.setattr(sample, "write_mask", write_or_stop)


def test_images_and_masks_have_the_promised_sizes_and_types():
    for image, mask in pictures(30):
        height, width = mask.shape
        assert image.shape == (height, width, 3)
        assert image.dtype == mask.dtype == np.uint8
        assert height != width
        assert height % 16 and width % 16
        assert 110 <= min(height, width) <= max(height, width) <= 170
        assert set(np.unique(mask)) <= {0, 1, 2, 3}


def test_label_kinds_occur_in_their_shares():
    labels = [tuple(np.unique(mask[mask > 0])) for _, mask in pictures(200)]
    assert {1, 2, 3} == {value for label in labels for value in label}
    counts = np.bincount([len(label) for label in labels], minlength=3)
    # Binomial with n = 200: the deviation is at most sqrt(200 * 0.5 * 0.5) = 7.1; four of them.
    assert np.abs(counts - 200 * np.array([0.15, 0.55, 0.30])).max() <= 28
    assert len(counts) == 3


def test_no_class_is_labelled_with_a_few_pixels():
    for _, mask in pictures(60):
        values, counts = np.unique(mask, return_counts=True)
        assert all(counts[values > 0] >= 20)


def test_patches_cover_their_promised_share():
    shares = [(mask == 2).mean() for _, mask in pictures(80) if set(np.unique(mask)) == {0, 2}]
    assert len(shares) >= 5
    assert 0.05 <= min(shares) <= max(shares) <= 0.25


@pytest.mark.parametrize(("value", "is_brighter"), [(1, False), (2, False), (3, True)])
def test_a_defect_has_its_polarity(value, is_brighter):
    differences = []
    for image, mask in pictures(80):
        if set(np.unique(mask)) == {0, value}:
            grey = image.mean(axis=2)
            differences.append(grey[mask == value].mean() - grey[mask == 0].mean())
    assert len(differences) >= 5
    right = np.array(differences) > 0 if is_brighter else np.array(differences) < 0
    assert right.mean() >= 0.9  # a shadow or a reflection may hide a single one


@pytest.mark.parametrize("material", MATERIALS)
def test_flawless_surface_is_textured_and_stays_in_range(material):
    surface = make_surface(np.random.default_rng(3), (117, 140), material)
    assert surface.shape == (117, 140, 3)
    assert surface.dtype == np.float32
    assert 0 < surface.min() < surface.max() < 1
    assert surface[..., 1].std() > 0.01


def test_metals_are_grained_along_their_rolling_direction_and_ceramic_is_not():
    ratios = {}
    for material in MATERIALS:
        grey = make_surface(np.random.default_rng(5), (120, 150), material)[..., 1]
        ratios[material] = (
            np.abs(np.diff(grey, axis=1)).mean() / np.abs(np.diff(grey, axis=0)).mean()
        )
    assert ratios["rolled steel"] > 1.5
    assert ratios["brushed metal"] > 1.5
    assert 0.8 < ratios["ceramic"] < 1.25


def test_same_seed_writes_the_same_files(tmp_path):
    for name in ("a", "b"):
        write_sample(tmp_path / name, num_train=4, num_test=2, seed=3)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_picture_does_not_depend_on_the_counts(tmp_path):
    write_sample(tmp_path / "few", num_train=2, num_test=1, seed=3)
    write_sample(tmp_path / "many", num_train=4, num_test=2, seed=3)
    few, many = contents(tmp_path / "few"), contents(tmp_path / "many")
    pictures_of_few = {name for name in few if name.endswith((".jpg", ".png"))}
    assert len(pictures_of_few) == 2 * 3
    assert all(few[name] == many[name] for name in pictures_of_few)


def test_seeds_and_splits_and_indices_differ(tmp_path):
    write_sample(tmp_path / "a", num_train=2, num_test=1, seed=0)
    write_sample(tmp_path / "b", num_train=2, num_test=1, seed=1)
    images = [path.read_bytes() for path in sorted(tmp_path.rglob("*.jpg"))]
    assert len(set(images)) == len(images) == 6


def test_labels_csv_equals_the_classes_in_the_masks(tmp_path):
    write_sample(tmp_path, num_train=20, num_test=5, seed=0)
    with (tmp_path / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = [f"train_{i:04d}" for i in range(20)] + [f"test_{i:04d}" for i in range(5)]
    assert [row["name"] for row in rows] == names
    for row in rows:
        mask = read_mask(tmp_path / f"SegmentationClass/{row['name']}.png", NUM_CLASSES)
        present = [CLASS_NAMES[value - 1] for value in np.unique(mask[mask > 0])]
        assert row["classes"] == "|".join(present)


def test_sample_is_read_back_by_read_data(tmp_path):
    settings = DataConfig(root=str(tmp_path / "sample"), sample_train=10, sample_test=4, seed=2)
    data = read_data(settings, tmp_path / "labels.csv")
    assert data.class_names == CLASS_NAMES
    lengths = {split: len(records) for split, records in data.splits.items()}
    assert lengths == {"train": 10, "fit": 9, "val": 1, "test": 4}
    for index, record in enumerate(data.split("test")):
        image, mask = make_image(np.random.default_rng((2, 1, index)))
        read = read_image(record.image)
        assert np.array_equal(read_mask(record.mask, NUM_CLASSES), mask)
        assert record.classes == tuple(np.unique(mask[mask > 0]) - 1)
        assert read.shape == image.shape
        assert np.abs(read.astype(int) - image).mean() < 4  # what JPEG loses


def test_masks_may_be_deleted_once_the_sample_is_written(tmp_path):
    settings = DataConfig(root=str(tmp_path / "sample"), sample_train=4, sample_test=2)
    before = read_data(settings, tmp_path / "labels.csv")
    for path in (tmp_path / "sample/SegmentationClass").iterdir():
        path.unlink()
    after = read_data(settings, tmp_path / "labels.csv")
    assert [r.classes for r in after.split("train")] == [r.classes for r in before.split("train")]
    assert after.split("train") == tuple(replace(r, mask=None) for r in before.split("train"))


def test_second_call_rewrites_nothing(tmp_path):
    write_sample(tmp_path, num_train=3, num_test=1, seed=0)
    before = times(tmp_path)
    write_sample(tmp_path, num_train=3, num_test=1, seed=0)
    assert times(tmp_path) == before


def test_a_stopped_first_call_is_completed(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, "train_0002")
        with pytest.raises(KeyboardInterrupt):
            write_sample(tmp_path / "stopped", num_train=4, num_test=1, seed=0)
    assert not (tmp_path / "stopped/labels.csv").exists()
    write_sample(tmp_path / "stopped", num_train=4, num_test=1, seed=0)
    write_sample(tmp_path / "straight", num_train=4, num_test=1, seed=0)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "straight")


def test_a_call_stopped_before_its_first_file_is_completed(tmp_path):
    temporary_name(tmp_path / "sample.json").write_text("{")
    write_sample(tmp_path, num_train=1, num_test=1, seed=0)
    assert json.loads((tmp_path / "sample.json").read_text())["complete"] is True


def test_changed_arguments_replace_the_sample_and_nothing_else(tmp_path):
    write_sample(tmp_path / "changed", num_train=4, num_test=3, seed=0)
    (tmp_path / "changed/JPEGImages/mine.jpg").write_text("mine")
    write_sample(tmp_path / "changed", num_train=2, num_test=1, seed=1)
    write_sample(tmp_path / "fresh", num_train=2, num_test=1, seed=1)
    changed = contents(tmp_path / "changed")
    assert changed.pop("JPEGImages/mine.jpg") == b"mine"
    assert changed == contents(tmp_path / "fresh")


def test_a_stopped_replacement_is_not_taken_for_the_old_sample(tmp_path, monkeypatch):
    write_sample(tmp_path / "a", num_train=4, num_test=1, seed=0)
    with monkeypatch.context() as patch:
        stop_at(patch, "train_0001")
        with pytest.raises(KeyboardInterrupt):
            write_sample(tmp_path / "a", num_train=2, num_test=1, seed=1)
    write_sample(tmp_path / "a", num_train=4, num_test=1, seed=0)
    write_sample(tmp_path / "b", num_train=4, num_test=1, seed=0)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_another_generator_version_replaces_the_sample(tmp_path, monkeypatch):
    write_sample(tmp_path, num_train=1, num_test=1, seed=0)
    image = tmp_path / "JPEGImages/train_0000.jpg"
    image.write_text("from an older generator")
    monkeypatch.setattr(sample, "GENERATOR_VERSION", sample.GENERATOR_VERSION + 1)
    write_sample(tmp_path, num_train=1, num_test=1, seed=0)
    assert read_image(image).ndim == 3


def test_a_folder_with_other_files_is_refused_and_left_alone(tmp_path):
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "JPEGImages/train_0000.jpg").write_text("mine")
    with pytest.raises(ValueError, match=r"expected an empty folder .* got JPEGImages\. Choose"):
        write_sample(tmp_path, num_train=1, num_test=1, seed=0)
    assert contents(tmp_path) == {"JPEGImages/train_0000.jpg": b"mine"}


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "sample").write_text("mine")
    with pytest.raises(ValueError, match="expected a folder for the sample, got a file"):
        write_sample(tmp_path / "sample", num_train=1, num_test=1, seed=0)


@pytest.mark.parametrize("text", ["{", "[]", '{"train": 1}', '{"train": "all"}'])
def test_an_unreadable_marker_is_refused(tmp_path, text):
    (tmp_path / "sample.json").write_text(text)
    with pytest.raises(ValueError, match=r"sample.json: expected the arguments of a sample, got"):
        write_sample(tmp_path, num_train=1, num_test=1, seed=0)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("labels.csv", b"name,classes\n", r"labels\.csv: expected a line .* 2 lack one: .*train_0"),
        ("labels.csv", b"name,classes\n\xff,\n", r"labels\.csv: expected UTF-8"),
        ("train.txt", b"../../x\n", r"labels\.csv: expected a line .* 1 lack one: .*\.\./x"),
        ("train.txt", b"\xff\n", r"train\.txt: expected UTF-8"),
    ],
)
def test_lists_and_labels_that_do_not_fit_are_named(tmp_path, file, content, message):
    settings = DataConfig(root=str(tmp_path / "sample"), sample_train=2, sample_test=1)
    write_sample(tmp_path / "sample", num_train=2, num_test=1, seed=settings.seed)
    (path,) = (tmp_path / "sample").rglob(file)
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_data(settings, tmp_path / "labels.csv")


def test_a_label_does_not_let_a_list_lead_elsewhere(tmp_path):
    settings = DataConfig(root=str(tmp_path / "sample"), sample_train=2, sample_test=1)
    write_sample(tmp_path / "sample", num_train=2, num_test=1, seed=settings.seed)
    (tmp_path / "sample/labels.csv").write_text("name,classes\n../../x,\n")
    (tmp_path / "sample/ImageSets/Segmentation/train.txt").write_text("../../x\n")
    with pytest.raises(ValueError, match=r"'\.\./\.\./x': expected a name that files can have"):
        read_data(settings, tmp_path / "labels.csv")


def test_a_negative_seed_is_refused(tmp_path):
    with pytest.raises(ValueError, match="sample seed: expected 0 or more, got -1"):
        write_sample(tmp_path / "sample", num_train=1, num_test=1, seed=-1)
    assert not (tmp_path / "sample").exists()
