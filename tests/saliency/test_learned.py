"""Learned refinement: its targets, its folds, its masks, and that it finds a planted defect."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from configs import Config, RefinementConfig, SaliencyConfig, changed
from datasets.files import read_cam, read_image, write_image, write_mask
from datasets.record import Record
from saliency import learned, student
from saliency.generator import Prepared
from scoring.saliency import SaliencyHistogram

CPU = torch.device("cpu")
BACKBONE = SaliencyConfig(backbone="test_vit", weights="none")
TINY = Config(saliency=BACKBONE, refinement=RefinementConfig(image_size=(64, 64), steps=40))


@pytest.fixture(autouse=True, scope="module")
def small_student() -> Iterator[None]:
    """Networks that learn from few images in a few steps."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("FEATURE_SIZE", 64), ("BATCH_SIZE", 4), ("LR", 1e-2)):
            patch.setattr(student, name, value)
        yield


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> SimpleNamespace:
    """12 images with a dark square of class 0 and 4 without a defect; priors are half noise."""
    root = tmp_path_factory.mktemp("planted")
    rng = np.random.default_rng(0)
    records, truths = [], {}
    for i in range(16):
        classes = (0,) if i < 12 else ()
        truth = np.zeros((50, 70), np.uint8)
        image = rng.normal(150, 8, (50, 70, 1)).repeat(3, 2)
        if classes:
            y, x = rng.integers(5, 25), rng.integers(5, 45)
            truth[y : y + 18, x : x + 18] = 1
            image[truth == 1] -= 70
        write_image(root / f"image_{i}.png", image.clip(0, 255).astype(np.uint8))
        write_mask(root / f"mask_{i}.png", truth)
        mask = root / f"mask_{i}.png"
        records.append(Record(f"image_{i}", root / f"image_{i}.png", classes, mask=mask))
        truths[f"image_{i}"] = truth

    def noisy(record: Record, image: np.ndarray) -> np.ndarray:
        wrong = np.random.default_rng(int(record.name.split("_")[1])).random(image.shape[:2]) < 0.3
        return np.where(wrong, 1 - truths[record.name], truths[record.name]).astype(np.float32)

    data = SimpleNamespace(class_names=("dent", "stain"), split=lambda name: records)
    return SimpleNamespace(records=records, truths=truths, data=data, prior=Prepared(noisy))


@pytest.fixture(scope="module")
def refined(planted, tmp_path_factory) -> Prepared:
    folder = tmp_path_factory.mktemp("priors")
    return learned.prepare(TINY, planted.prior, planted.data, folder, CPU, 0)


def best_iou(generator: Prepared, planted: SimpleNamespace) -> float:
    histogram = SaliencyHistogram(2)
    for record in planted.records[:12]:
        saliency = generator.make_map(record, read_image(record.image))
        histogram.update(planted.truths[record.name], saliency, labelled=True)
    return histogram.scores().best_fg_iou


def test_refined_maps_are_better_than_their_noisy_priors(planted, refined):
    assert best_iou(refined, planted) > best_iou(planted.prior, planted) + 5


def test_maps_have_the_size_and_range_of_any_generator(planted, refined):
    record = planted.records[0]
    image = read_image(record.image)
    own = refined.make_map(record, image)
    assert (own.shape, own.dtype) == ((50, 70), np.float32)
    assert 0 <= own.min() <= own.max() <= 1
    unseen = Record("unseen", record.image, (0,))
    both = refined.make_map(unseen, image)  # by the mean of both networks, not by one
    assert not np.array_equal(both, own)


def read_priors(folder: Path, record: Record, num_classes: int) -> np.ndarray:
    inputs = student.StudentInputs(BACKBONE, num_classes, folder / "features", folder, CPU)
    return inputs.priors(record)


def test_priors_are_made_for_each_class_alone(planted, tmp_path):
    asked = []

    def make_map(record: Record, image: np.ndarray) -> np.ndarray:
        asked.append(record.classes)
        return np.full(image.shape[:2], 0.25 * (1 + record.classes[0]), np.float32)

    record = Record("two", planted.records[0].image, (0, 1))
    free = Record("free", planted.records[0].image, ())
    learned.write_priors(Prepared(make_map), [record, free], tmp_path, 3, torch.device("cpu"))
    assert asked == [(0,), (1,)]
    assert read_cam(tmp_path / "free.npz").cam.shape == (0, 50, 70)
    maps = read_priors(tmp_path, record, 3)
    assert maps[:, 0, 0].tolist() == [0.25, 0.5, 0.0]
    assert not read_priors(tmp_path, free, 3).any()


def test_a_map_never_comes_from_a_network_that_saw_its_image(planted, tmp_path, monkeypatch):
    seen = []

    def remember(records, *_):
        seen.append({record.name for record in records})
        return len(seen) - 1  # stands for the network

    monkeypatch.setattr(learned, "train_student", remember)
    used = []
    monkeypatch.setattr(
        learned, "foreground", lambda models, *_: used.append(models) or torch.zeros(1, 50, 70)
    )
    generator = learned.prepare(TINY, planted.prior, planted.data, tmp_path, CPU, 0)
    for record in planted.records:
        generator.make_map(record, np.zeros((50, 70, 3), np.uint8))
    for record, (network,) in zip(planted.records, used, strict=True):
        assert record.name not in seen[network]
    assert len(seen) == 2
    assert set.union(*seen) == {record.name for record in planted.records}


def test_every_round_and_half_starts_from_other_weights(planted, tmp_path, monkeypatch):
    seeds = []
    monkeypatch.setattr(
        learned, "train_student", lambda *arguments: seeds.append(arguments[-1]) or None
    )
    for seed in (0, 1):
        refinement = RefinementConfig(image_size=(64, 64), seed=seed)
        config = Config(saliency=BACKBONE, refinement=refinement)
        for turn in (0, 1):
            folder = tmp_path / str(seed)
            folder.mkdir(exist_ok=True)
            learned.prepare(config, planted.prior, planted.data, folder, CPU, turn)
    assert len(set(seeds)) == 8


def test_a_round_learns_from_the_maps_of_the_one_before(planted, tmp_path, monkeypatch):
    """The second round's priors are the first one's maps; its features are not made again."""
    monkeypatch.setattr(learned, "train_student", lambda *_: None)
    half = torch.full((1, 50, 70), 0.5)
    monkeypatch.setattr(learned, "foreground", lambda *_: half)
    generator = learned.prepare(TINY, planted.prior, planted.data, tmp_path, CPU, 0)
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "features").iterdir()}
    assert len(made) == len(planted.records)
    learned.prepare(TINY, generator, planted.data, tmp_path, CPU, 1)
    maps = read_priors(tmp_path / "priors_1", planted.records[0], 2)
    np.testing.assert_allclose(maps[0], 0.5, atol=1e-3)
    assert not maps[1].any()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "features").iterdir()} == made


def test_too_few_images_are_refused(planted, tmp_path):
    few = SimpleNamespace(class_names=("dent",), split=lambda name: planted.records[:3])
    message = r"expected 4 training images or more, .* got 3 with 1 in the smaller half\. Set"
    with pytest.raises(ValueError, match=message):
        learned.prepare(TINY, planted.prior, few, tmp_path, CPU, 0)


def test_copies_of_one_picture_are_one_half_and_so_too_few(planted, tmp_path):
    copies = [replace(record, group="one picture") for record in planted.records[:8]]
    alike = SimpleNamespace(class_names=("dent",), split=lambda name: copies)
    with pytest.raises(ValueError, match="got 8 with 0 in the smaller half"):
        learned.prepare(TINY, planted.prior, alike, tmp_path, CPU, 0)


def test_refinement_is_off_by_default():
    assert Config().refinement.rounds == 0


def test_masks_are_drawn_by_the_seed_and_evenly_over_the_classes():
    path = Path("x.png")
    records = [
        Record(str(i), path, ((0,), (0,), (0,), (1,), ())[i % 5], mask=path if i else None)
        for i in range(100)
    ]
    chosen = learned.choose_masked(records, 10, 2, seed=3)
    assert len({record.name for record in chosen}) == 10
    assert all(record.mask and record.classes for record in chosen)
    assert sum(record.classes == (1,) for record in chosen) == 5
    assert chosen == learned.choose_masked(records, 10, 2, seed=3)
    assert chosen[:4] == learned.choose_masked(records, 4, 2, seed=3)  # fewer are among more
    assert chosen != learned.choose_masked(records, 10, 2, seed=4)
    assert learned.choose_masked(records, 0, 2, seed=3) == []
    with pytest.raises(ValueError, match="masks of 80 defective training images, got 79. Lower"):
        learned.choose_masked(records, 80, 2, seed=3)


def test_masks_become_targets_of_every_network_and_are_named(planted, tmp_path, monkeypatch):
    trained_on = []

    def remember(records, num_classes, settings, inputs, *_):
        trained_on.append([record.name for record in records])
        targets = {record.name: inputs.priors(record)[0] for record in records}
        for name in masked:
            np.testing.assert_array_equal(targets[name], planted.truths[name])
        return torch.nn.Identity()

    masked = [r.name for r in learned.choose_masked(planted.records, 3, 2, seed=0)]
    monkeypatch.setattr(learned, "train_student", remember)
    config = changed(TINY, {"refinement.masks": 3})
    generator = learned.prepare(config, planted.prior, planted.data, tmp_path, CPU, 0)

    for names in trained_on:
        share = sum(name in masked for name in names) / len(names)
        assert 0.15 < share < 0.45  # a quarter, in whole repeats
        others = [name for name in names if name not in masked]
        assert len(others) == len(set(others))
    assert generator.facts["masked"] == sorted(masked)
    assert "made with 3 pixel masks: no longer image labels alone" in generator.lines
    record = next(r for r in planted.records if r.name == masked[0])
    own = generator.make_map(record, read_image(record.image))
    np.testing.assert_array_equal(own, planted.truths[masked[0]])


def test_no_mask_is_opened_without_being_asked_for(planted, tmp_path, monkeypatch):
    monkeypatch.setattr(learned, "train_student", lambda *_: torch.nn.Identity())
    monkeypatch.setattr(learned, "read_truth", None)
    generator = learned.prepare(TINY, planted.prior, planted.data, tmp_path, CPU, 0)
    assert "masked" not in generator.facts


def test_unknown_pixels_of_a_mask_stay_unknown(tmp_path):
    write_mask(tmp_path / "m.png", np.array([[0, 1, 255, 2]], np.uint8))
    record = Record("m", tmp_path / "m.png", (0, 1), mask=tmp_path / "m.png")
    learned.write_mask_as_prior(record, tmp_path, 3)
    maps = read_priors(tmp_path, record, 3)
    np.testing.assert_array_equal(maps[:, 0], [[0, 1, 0.5, 0], [0, 0, 0.5, 1], [0, 0, 0, 0]])
    assert student.LOW < 0.5 < student.HIGH
