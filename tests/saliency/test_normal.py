import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from configs import SaliencyConfig
from datasets.files import read_image, write_image
from datasets.record import Record, spread
from saliency import normal
from saliency.normal import (
    coreset,
    farthest_points,
    learn_scale,
    nearest_distance,
    prepare,
    share_among_alike,
)

CPU = torch.device("cpu")
HEIGHT, WIDTH = 50, 71
BLOB = (slice(12, 30), slice(40, 58))
SETTINGS = SaliencyConfig(
    generator="normal",
    weights="none",
    backbone="test_vit",
    image_size=160,
)


@pytest.fixture(autouse=True)
def small_memory(monkeypatch) -> None:
    monkeypatch.setattr(normal, "CORESET", 400)


def surface(seed: int) -> np.ndarray:
    """Stripes and noise, (H, W, 3) uint8."""
    noise = np.random.default_rng(seed).normal(0, 4, (HEIGHT, WIDTH, 1))
    stripes = 30 * (np.arange(WIDTH) // 5 % 2)[None, :, None]
    return np.repeat(np.clip(100 + stripes + noise, 0, 255).astype(np.uint8), 3, axis=2)


def with_defect(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Turn the stripes of one square by a right angle; no grey level is new."""
    image, mask = surface(seed), np.zeros((HEIGHT, WIDTH), bool)
    image[BLOB] = image[BLOB].transpose(1, 0, 2)
    mask[BLOB] = True
    return image, mask


@pytest.fixture
def data(tmp_path: Path) -> types.SimpleNamespace:
    """Eight defect-free and two defective training images."""
    records = []
    for index in range(10):
        path = tmp_path / f"{index}.png"
        write_image(path, surface(index) if index < 8 else with_defect(index)[0])
        records.append(Record(path.stem, path, () if index < 8 else (0,)))
    return types.SimpleNamespace(class_names=("turned",), split=lambda name: tuple(records))


def loop_farthest(points: np.ndarray, count: int) -> list[int]:
    chosen = [0]
    while len(chosen) < count:
        distances = [min(np.linalg.norm(p - points[c]) for c in chosen) for p in points]
        chosen.append(int(np.argmax(distances)))
    return chosen


def test_farthest_points_match_a_loop_reference():
    points = np.random.default_rng(0).normal(size=(60, 5))
    chosen = farthest_points(torch.from_numpy(points), 20)
    assert chosen.tolist() == loop_farthest(points, 20)


def test_farthest_points_cover_all_others():
    points = torch.randn(300, 4, generator=torch.Generator().manual_seed(0)).double()
    chosen = farthest_points(points, 40)
    kept = points[chosen]
    apart = torch.cdist(kept, kept) + 1e9 * torch.eye(40)
    # No point is farther from the coreset than two of the coreset are from each other.
    assert torch.cdist(points, kept).amin(dim=1).max() <= apart.min() + 1e-6
    drawn = points[torch.randperm(300, generator=torch.Generator().manual_seed(1))[:40]]
    assert torch.cdist(points, kept).amin(1).max() < torch.cdist(points, drawn).amin(1).max()


def test_coreset_is_a_subset_without_repetition():
    patches = np.random.default_rng(0).normal(size=(200, 16)).astype(np.float32)
    kept = coreset(patches, 50, CPU)
    matches = (kept[:, None] == torch.from_numpy(patches)).all(dim=2)
    assert matches.sum(dim=1).tolist() == [1] * 50
    assert (matches.sum(dim=0) <= 1).all()
    assert len(coreset(patches, 999, CPU)) == 200


def test_distance_is_the_mean_of_those_to_the_nearest_of_each_memory():
    features = np.zeros((2, 3, 2), np.float32)
    features[..., 0] = 1
    features[1, 2] = (0, 1)
    first, second = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    # (0, 1): 1 - 0 from the first memory, 1 - 0.8 from the second
    expected = [[0, 0, 0], [0, 0, 0.6]]
    np.testing.assert_allclose(nearest_distance(features, [first, second]), expected, atol=1e-6)


def test_patches_that_look_alike_share_their_values():
    features = np.zeros((2, 4, 3), np.float32)
    features[:, :2] = (1, 0, 0)
    features[:, 2:] = (0, 1, 0)
    values = np.array([[1, 0, 0, 0], [1, 0, 0, 0]], np.float32)
    # Less their mean the two kinds are opposite: cosine 1 within a kind, -1 across.
    across = np.exp(-2 / 0.1)
    inside, outside = 2 / (4 + 4 * across), 2 * across / (4 + 4 * across)
    shared = share_among_alike(values, features)
    np.testing.assert_allclose(shared, [[inside] * 2 + [outside] * 2] * 2, rtol=1e-5)


def test_scale_puts_the_given_share_of_normal_area_above_half(monkeypatch):
    monkeypatch.setattr(normal, "FALSE_ALARM", 0.1)
    values = [np.linspace(0, 1, 501).reshape(3, 167), np.linspace(1, 2, 501).reshape(3, 167)]
    scale = learn_scale(values)
    assert scale.low == pytest.approx(1)
    scaled = scale(np.concatenate(values))
    assert (scaled > 0.5).mean() == pytest.approx(0.1, abs=0.002)
    assert scaled.min() == 0
    assert scale(np.array([9.0])) == 1


def test_defect_is_salient_and_surface_is_not(data):
    torch.manual_seed(0)
    prepared = prepare(SETTINGS, data, [], CPU)
    record = data.split("train")[8]
    image, mask = with_defect(8)
    saliency = prepared.make_map(record, image)
    assert saliency.shape == (HEIGHT, WIDTH)
    assert saliency.dtype == np.float32
    assert 0 <= saliency.min() <= saliency.max() <= 1
    order = saliency[mask][:, None] > saliency[~mask]
    assert order.mean() > 0.8
    surfaces = [prepared.make_map(r, read_image(r.image)) for r in data.split("train")[:8]]
    assert (np.array(surfaces) > 0.5).mean() < 0.02
    assert saliency[mask].mean() > 5 * np.mean(surfaces)


def test_colour_image_of_another_size_is_taken(data):
    torch.manual_seed(0)
    prepared = prepare(SETTINGS, data, [], CPU)
    image = np.random.default_rng(0).integers(0, 255, (83, 40, 3)).astype(np.uint8)
    saliency = prepared.make_map(Record("new", Path("new.png"), (0,)), image)
    assert saliency.shape == (83, 40)
    assert saliency.mean() > 0.5


def test_image_of_the_memory_is_not_compared_with_itself(data):
    torch.manual_seed(0)
    odd = data.split("train")[3]
    write_image(odd.image, with_defect(3)[0])  # labelled defect-free, yet like no other
    prepared = prepare(SETTINGS, data, [], CPU)
    image, mask = with_defect(3)
    own = prepared.make_map(odd, image)
    stranger = prepared.make_map(Record("stranger", odd.image, (0,)), image)
    # A stranger of the same look meets its copy in one of the two halves; the image never does.
    assert own[mask].mean() > 1.5 * stranger[mask].mean()


def test_facts_name_the_memory(data):
    prepared = prepare(SETTINGS, data, [], CPU)
    facts = prepared.facts["normal"]
    assert facts["images"] == 8
    assert facts["patches"] == 400
    assert 0 < facts["low"] < facts["level"]
    assert "400 patches of 8 defect-free images" in prepared.lines[0]


def test_too_few_defect_free_images_are_refused_with_the_remedy(data):
    few = types.SimpleNamespace(split=lambda name: data.split(name)[5:])
    message = (
        r"saliency\.generator=normal: expected 4 or more readable defect-free images to train on, "
        r".*, got 3 in 3 groups\. Set saliency\.generator to contrast or feature"
    )
    with pytest.raises(ValueError, match=message):
        prepare(SETTINGS, few, [], CPU)


def test_defect_free_images_of_one_picture_are_refused_with_the_remedy(data):
    """The half that is compared with would be empty."""
    alike = tuple(replace(r, group="" if r.classes else "one") for r in data.split("fit"))
    message = r"in two halves that show no picture twice, got 8 in 1 groups\. Set saliency\.gener"
    with pytest.raises(ValueError, match=message):
        prepare(SETTINGS, types.SimpleNamespace(split=lambda name: alike), [], CPU)


def test_unreadable_defect_free_images_are_collected(data):
    data.split("train")[2].image.write_bytes(b"no picture")
    prepared = prepare(SETTINGS, data, [], CPU)
    assert list(prepared.problems) == ["2"]
    assert prepared.facts["normal"]["images"] == 7


def test_memory_images_are_spread_over_the_split():
    records = [Record(str(i), Path("x.png"), ()) for i in range(10)]
    assert [r.name for r in spread(records, 4)] == ["0", "2", "5", "7"]
    assert spread(records, 99) == records
    assert spread([], 4) == []
