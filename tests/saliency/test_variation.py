import types
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.schema import SaliencyConfig
from datasets.files import read_image, write_image
from datasets.record import Record
from saliency import variation
from saliency.variation import (
    agreement_sign,
    choose_grain,
    covariance,
    mixture_level,
    most_varying,
    relative,
)

CPU = torch.device("cpu")
SETTINGS = SaliencyConfig(generator="variation")
HEIGHT, WIDTH, CELL = 120, 80, 4
NUM_FREE, NUM_OWN = 12, 8


def surface(seed: int) -> np.ndarray:
    """Vertical streaks as bright as they like, (H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    streaks = rng.normal(110, 25, (1, WIDTH, 1)) + rng.normal(0, 6, (HEIGHT, WIDTH, 1))
    return np.repeat(np.clip(streaks, 0, 255).astype(np.uint8), 3, axis=2)


def with_zone(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Brighten and roughen a zone whose every grey level also occurs on defect-free surfaces."""
    rng = np.random.default_rng(100 + seed)
    image, mask = surface(seed).astype(np.float32), np.zeros((HEIGHT, WIDTH), bool)
    top = int(rng.integers(8, 70))
    mask[top : top + 40] = True
    rough = 22 + rng.normal(0, 14, (HEIGHT, WIDTH, 1))
    return np.where(mask[..., None], image + rough, image).clip(0, 255).astype(np.uint8), mask


def encode(image: np.ndarray) -> np.ndarray:
    """Stand in for a ViT: mean and deviation of each cell and two that tell nothing."""
    grey = image[..., 0].astype(np.float32) / 64
    cells = grey.reshape(HEIGHT // CELL, CELL, WIDTH // CELL, CELL)
    mean, deviation = cells.mean(axis=(1, 3)), cells.std(axis=(1, 3))
    rest = [cells[:, 0, :, 0] - mean, cells[:, 1, :, 2] - mean]
    features = np.stack([mean, deviation, *rest, np.ones_like(mean)], axis=-1)
    return features / np.linalg.norm(features, axis=-1, keepdims=True)


@pytest.fixture
def data(tmp_path: Path, monkeypatch) -> types.SimpleNamespace:
    """Defect-free images, images of class 0, and a single one of class 1."""
    monkeypatch.setattr(variation, "load_encoder", lambda *_: encode)
    records = []
    for index in range(NUM_FREE + NUM_OWN + 1):
        path = tmp_path / f"{index}.png"
        write_image(path, surface(index) if index < NUM_FREE else with_zone(index)[0])
        classes = () if index < NUM_FREE else ((0,) if index < NUM_FREE + NUM_OWN else (1,))
        records.append(Record(path.stem, path, classes))
    return types.SimpleNamespace(class_names=("zone", "rare"), split=lambda name: tuple(records))


def test_what_lies_along_the_grain_is_taken_away():
    columns = np.random.default_rng(0).normal(size=(1, 7, 3)).repeat(9, axis=0)
    assert not relative(columns, "vertical").any()
    assert not relative(columns.transpose(1, 0, 2), "horizontal").any()
    assert np.abs(relative(columns, "none")).max() > 0.1
    assert np.abs(relative(columns, "horizontal")).max() > 0.1


def test_grain_is_found_and_noise_has_none():
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(4, 30, 30, 5))
    columns = rng.normal(size=(4, 1, 30, 5))
    assert choose_grain(noise) == "none"
    assert choose_grain(noise + columns) == "vertical"
    assert choose_grain(noise + columns.transpose(0, 2, 1, 3)) == "horizontal"


def test_direction_is_the_one_with_more_variance_than_the_background_has():
    rng = np.random.default_rng(0)
    loud, extra = np.array([9.0, 1, 1, 1]), np.array([9.0, 1, 3, 1])
    background, own = (covariance(rng.normal(0, s, (6, 20, 20, 4))) for s in (loud, extra))
    direction = np.abs(most_varying(own, background))
    assert direction.argmax() == 2
    assert direction[2] > 10 * direction[[0, 1, 3]].max()


def test_covariance_is_the_mean_outer_product_of_images():
    first, second = np.ones((1, 2, 2)), np.array([[[2.0, 0.0]]])
    np.testing.assert_allclose(covariance([first, second]), [[2.5, 0.5], [0.5, 0.5]])


def test_sign_follows_the_witness_within_images_not_across_them():
    rising = np.arange(6.0).reshape(2, 3)
    # Across images the second pair is far higher in one and far lower in the other.
    assert agreement_sign([rising, rising + 100], [rising + 100, rising]) == 1
    assert agreement_sign([rising, -rising], [-rising, rising]) == -1


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_level_and_share_of_a_known_mixture(share):
    rng = np.random.default_rng(0)
    count = 200_000
    is_defect = rng.random(count) < share
    values = rng.normal(0, 1, count) + 4 * is_defect
    level, estimate = mixture_level(values, rng.normal(0, 1, count))

    assert estimate == pytest.approx(share, rel=0.05)
    thresholds = np.linspace(-2, 6, 200)
    ious = [(is_defect & (values > t)).sum() / (is_defect | (values > t)).sum() for t in thresholds]
    own = (is_defect & (values > level)).sum() / (is_defect | (values > level)).sum()
    assert own > max(ious) - 0.01


def test_no_defect_at_all_has_a_level_above_the_surface():
    values = np.zeros(100)
    level, share = mixture_level(values, values)
    assert level > 0
    assert 0 < share < 0.01


def test_zone_is_salient(data):
    prepared = variation.prepare(SETTINGS, data, [], CPU)
    assert prepared.facts["variation"]["grain"] == "vertical"
    image, mask = with_zone(NUM_FREE)
    saliency = prepared.make_map(data.split("train")[NUM_FREE], image)
    assert saliency.shape == (HEIGHT, WIDTH)
    assert saliency.dtype == np.float32
    assert 0 <= saliency.min() <= saliency.max() <= 1
    seen = saliency > 0.5
    assert (seen & mask).sum() > 0.6 * (seen | mask).sum()
    assert 0.25 < prepared.facts["variation"]["zone"]["share"] < 0.5  # a third, its edges blurred


def test_unlabelled_surface_stays_empty_and_an_unlabelled_zone_is_found(data):
    prepared = variation.prepare(SETTINGS, data, [], CPU)
    new_surface, new_zone = surface(999), with_zone(998)[0]
    unknown = Record("new", Path("new.png"), ())
    assert not prepared.make_map(unknown, new_surface).any()
    assert prepared.make_map(unknown, new_zone).max() > 0.5


def test_class_with_few_images_gets_empty_maps_and_a_line(data):
    prepared = variation.prepare(SETTINGS, data, [], CPU)
    rare = data.split("train")[-1]
    assert not prepared.make_map(rare, read_image(rare.image)).any()
    assert any("rare: 1 images" in line for line in prepared.lines)


def test_unreadable_images_are_collected(data):
    for index in (2, NUM_FREE + 1):
        data.split("train")[index].image.write_bytes(b"no picture")
    prepared = variation.prepare(SETTINGS, data, [], CPU)
    assert set(prepared.problems) == {"2", str(NUM_FREE + 1)}


def test_too_few_defect_free_images_are_refused(data):
    few = types.SimpleNamespace(split=lambda name: data.split(name)[NUM_FREE - 3 :])
    with pytest.raises(ValueError, match=r"generator=variation: expected 4 or more readable"):
        variation.prepare(SETTINGS, few, [], CPU)
