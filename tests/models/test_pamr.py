"""Pixel-adaptive refinement against a slow reference and on a picture with a clear edge."""

import math

import pytest
import torch

import models.pamr
from models.pamr import OFFSETS, SHARPNESS, pamr


def slow_refinement(image, maps, iterations, dilations):
    """One pixel, one neighbour at a time; image 3 x H x W and maps M x H x W nested lists."""
    height, width = len(image[0]), len(image[0][0])
    places = [(y * d, x * d) for d in dilations for y, x in OFFSETS]

    def clamp(y, x):
        return min(max(y, 0), height - 1), min(max(x, 0), width - 1)

    for _ in range(iterations):
        refined = [[[0.0] * width for _ in range(height)] for _ in maps]
        for y in range(height):
            for x in range(width):
                near = [clamp(y + dy, x + dx) for dy, dx in places]
                scores = [0.0] * len(near)
                for channel in image:
                    own = channel[y][x]
                    values = [channel[a][b] for a, b in near]
                    every = [*values, own]
                    mean = sum(every) / len(every)
                    variance = sum((v - mean) ** 2 for v in every) / (len(every) - 1)
                    scale = SHARPNESS * math.sqrt(variance) + 1e-8
                    for i, value in enumerate(values):
                        scores[i] -= abs(value - own) / scale / 3
                weights = [math.exp(score) for score in scores]
                for m, values in enumerate(maps):
                    total = sum(w * values[a][b] for w, (a, b) in zip(weights, near, strict=True))
                    refined[m][y][x] = total / sum(weights)
        maps = refined
    return maps


def test_refinement_matches_a_loop():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, 7, 9, generator=generator, dtype=torch.float64)
    maps = torch.rand(2, 7, 9, generator=generator, dtype=torch.float64)
    got = pamr(image, maps, 2, (1, 3))
    expected = torch.tensor(slow_refinement(image.tolist(), maps.tolist(), 2, (1, 3)))
    torch.testing.assert_close(got, expected.double(), rtol=1e-6, atol=1e-6)


def test_a_blurred_map_snaps_to_the_edge_of_the_image():
    image = torch.zeros(3, 32, 40)
    image[:, :, 20:] = 1
    image += 0.01 * torch.randn(3, 32, 40, generator=torch.Generator().manual_seed(1))
    ramp = torch.linspace(0, 1, 40).expand(1, 32, 40)  # 0.5 in the middle
    refined = pamr(image, ramp, 10)
    step = ramp[0, 16, 20] - ramp[0, 16, 19]
    assert refined[0, 16, 20] - refined[0, 16, 19] > 5 * step
    assert refined.min() >= 0
    assert refined.max() <= 1


def test_large_images_are_refined_in_blocks_with_the_same_result(monkeypatch):
    generator = torch.Generator().manual_seed(2)
    image = torch.rand(3, 45, 70, generator=generator)
    maps = torch.rand(2, 45, 70, generator=generator)
    whole = pamr(image, maps, 3, (1, 2))
    monkeypatch.setattr(models.pamr, "BLOCK", 16)
    torch.testing.assert_close(pamr(image, maps, 3, (1, 2)), whole)


def test_no_map_stays_no_map():
    assert pamr(torch.rand(3, 5, 6), torch.zeros(0, 5, 6)).shape == (0, 5, 6)


def test_no_step_changes_nothing():
    maps = torch.rand(2, 5, 6)
    assert torch.equal(pamr(torch.rand(3, 5, 6), maps, 0), maps)


def test_other_size_is_refused():
    with pytest.raises(ValueError, match=r"expected the size of the image, \(5, 6\), got \(6, 5\)"):
        pamr(torch.rand(3, 5, 6), torch.rand(1, 6, 5))
