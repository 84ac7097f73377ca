import numpy as np
import pytest
import torch
from torch import Tensor

import datasets.transforms
from datasets.transforms import JITTER, as_image, as_map, eval_transform, train_transform

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


@pytest.fixture
def same_light(monkeypatch):
    monkeypatch.setattr(datasets.transforms, "JITTER", 0.0)


def positions(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return an image and a map of the same size, both with a value of its own per pixel."""
    levels = np.arange(height * width, dtype=np.uint8).reshape(height, width)
    return np.stack([levels] * 3, axis=-1), levels.astype(np.float32) / 255


def moved(transform, height: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    image, saliency = positions(height, width)
    torch.manual_seed(seed)
    return transform(as_image(image), as_map(saliency))


def draws(values: list[Tensor]) -> set[bytes]:
    return {value.numpy().tobytes() for value in values}


def test_map_flips_with_its_image(same_light):
    transform = train_transform((9, 14), **PLAIN)
    levels = positions(9, 14)[1]
    found = []
    for seed in range(40):
        image, saliency = moved(transform, 9, 14, seed)
        for channel in image:
            assert torch.allclose(channel, saliency[0], atol=1e-6)
        found.append(saliency[0])
    flips = [levels, levels[:, ::-1], levels[::-1], levels[::-1, ::-1]]
    assert draws(found) == {np.ascontiguousarray(flip).tobytes() for flip in flips}


def test_light_changes_move_the_image_but_never_the_map():
    transform = train_transform((9, 14), **PLAIN, flip=False)
    image, levels = positions(9, 14)
    images = []
    for seed in range(10):
        changed, saliency = moved(transform, 9, 14, seed)
        assert np.array_equal(saliency[0], levels)
        assert changed.min() >= 0 and changed.max() <= 1
        images.append(changed)
    assert len(draws(images)) == 10


def test_light_changes_stay_within_their_range():
    # On an even picture contrast changes nothing but rounding, so brightness alone is left.
    transform = train_transform((4, 6), **PLAIN, flip=False)
    even = as_image(np.full((4, 6, 3), 100, np.uint8))
    levels = []
    for seed in range(100):
        torch.manual_seed(seed)
        changed, _ = transform(even, as_map(np.zeros((4, 6), np.float32)))
        levels.append(changed.mean().item() * 255)
    assert JITTER == 0.3  # 100 becomes 70 to 130, and a level of rounding
    assert 69 <= min(levels) < 85
    assert 115 < max(levels) <= 131


def test_without_moves_training_equals_evaluation(same_light):
    preset = {"size": (6, 10), "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4)}
    for seed in range(5):
        trained = moved(train_transform(**preset, flip=False), 9, 14, seed)
        evaluated = moved(eval_transform(**preset), 9, 14, seed)
        assert all(torch.equal(a, b) for a, b in zip(trained, evaluated, strict=True))


def test_evaluation_is_deterministic_and_draws_nothing():
    transform = eval_transform((32, 48), **PLAIN)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    first = transform(as_image(positions(9, 14)[0]), as_map(positions(9, 14)[1]))
    assert torch.equal(torch.random.get_rng_state(), before)
    for seed in range(3):
        again = moved(transform, 9, 14, seed)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("train", [False, True])
def test_normalisation_by_hand(train, same_light):
    preset = {"size": (1, 2), "mean": (0.5, 0.4, 0.0), "std": (0.5, 0.2, 2.0)}
    transform = train_transform(**preset, flip=False) if train else eval_transform(**preset)
    pixels = np.array([[[255, 51, 102], [0, 255, 204]]], np.uint8)
    image, saliency = transform(as_image(pixels), as_map(np.array([[0.25, 1]], np.float32)))
    # red (1 - .5) / .5, (0 - .5) / .5; green (.2 - .4) / .2, (1 - .4) / .2; blue .4 / 2, .8 / 2
    expected = [[[1.0, -1.0]], [[-1.0, 3.0]], [[0.2, 0.4]]]
    assert torch.allclose(image, torch.tensor(expected), atol=1e-6)
    assert saliency.tolist() == [[[0.25, 1.0]]]


def test_results_are_plain_float_tensors_of_the_asked_size():
    for transform in (
        train_transform((32, 48), **PLAIN),
        eval_transform((32, 48), **PLAIN),
    ):
        image, saliency = moved(transform, 9, 14, seed=0)
        assert type(image) is type(saliency) is Tensor
        assert image.dtype == saliency.dtype == torch.float32
        assert image.shape == (3, 32, 48) and saliency.shape == (1, 32, 48)
        assert saliency.min() >= 0 and saliency.max() <= 1


def test_maps_of_integers_keep_their_values_when_resized():
    labels = np.array([[0, 3, 255], [1, 2, 0]], np.uint8)
    transform = eval_transform((7, 11), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    _, resized = transform(as_image(np.zeros((2, 3, 3), np.uint8)), as_map(labels))
    assert resized.dtype == torch.uint8
    assert set(resized.unique().tolist()) == {0, 1, 2, 3, 255}


def test_the_whole_image_is_kept():
    # Each corner's quarter of a doubled image still has that corner's level.
    pixels = np.array([[10, 80], [150, 240]], np.uint8)
    image, saliency = eval_transform((8, 12), **PLAIN)(
        as_image(np.stack([pixels] * 3, axis=-1)), as_map(pixels.astype(np.float32) / 255)
    )
    for result in (image[0], saliency[0]):
        corners = result[[0, 0, -1, -1], [0, -1, 0, -1]] * 255
        assert corners.tolist() == pytest.approx([10, 80, 150, 240], abs=0.01)


@pytest.mark.parametrize("native, size", [(1024, 224), (200, 336), (200, 168)])
def test_a_step_edge_lies_in_the_map_where_it_lies_in_the_image(native, size):
    edge = native // 3
    levels = np.zeros((8, native), np.uint8)
    levels[:, edge:] = 255
    transform = eval_transform((8, size), **PLAIN)
    pixels = as_image(np.stack([levels] * 3, axis=-1))
    image, saliency = transform(pixels, as_map(levels.astype(np.float32) / 255))
    _, mask = transform(pixels, as_map((levels > 0).astype(np.uint8)))
    dark = image[0, 0].double()  # what is left of the edge: the sum of 1 - level, in its pixels
    in_image = (1 - dark).sum().item()
    assert abs(in_image - edge * size / native) < 0.05  # by hand: edges scale with the side
    assert abs((1 - saliency[0, 0].double()).sum().item() - in_image) < 0.05
    assert abs((1 - mask[0, 0].double()).sum().item() - in_image) <= 0.5


def test_mask_values_of_equal_parts_are_those_of_the_nearest_centres():
    # Eight pixels to three: centres 1.33 - .5, 4 - .5, 6.67 - .5 -> pixels 1, 3 or 4, 6.
    values = as_map(np.arange(8, dtype=np.uint8)[None].repeat(2, axis=0))
    _, resized = eval_transform((2, 3), **PLAIN)(as_image(np.zeros((2, 8, 3), np.uint8)), values)
    assert resized[0, 0].tolist() in ([1, 3, 6], [1, 4, 6])
