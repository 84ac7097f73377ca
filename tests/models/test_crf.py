"""The CRF moves maps to the edges of the image."""

import numpy as np
import pytest
import torch

from models.crf import (
    COLOUR_SIGMA,
    COLOUR_WEIGHT,
    FLOOR,
    POSITION_SIGMA,
    REACH,
    SMOOTH_SIGMA,
    SMOOTH_WEIGHT,
    STEP,
    dense_crf,
)


def planted(size=48, seed=0):
    """A bright square and a map of it that is blurred, shifted and noisy."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.zeros(size, size)
    truth[12:36, 14:34] = 1
    image = 60 + 120 * truth + 3 * torch.randn(size, size, generator=generator)
    blurred = torch.nn.functional.avg_pool2d(truth[None], 9, 1, 4)[0]
    shifted = blurred.roll((3, -3), (0, 1))
    noise = 0.25 * torch.randn(size, size, generator=generator)
    return truth, image.expand(3, -1, -1).clone(), (shifted + noise).clamp(0, 1)[None]


def iou(mask, truth):
    mask, truth = mask > 0.5, truth > 0.5
    return float((mask & truth).sum() / (mask | truth).sum())


def test_maps_follow_the_edges_of_the_image():
    truth, image, maps = planted()
    refined = dense_crf(image, maps)
    assert iou(maps[0], truth) < 0.75
    assert iou(refined[0], truth) > 0.88
    assert refined.shape == maps.shape
    assert refined.min() >= 0 and refined.max() <= 1


def test_classes_compete():
    truth, image, maps = planted()
    both = torch.cat([maps, 0.4 * maps])
    refined = dense_crf(image, both)
    assert (refined.sum(dim=0) <= 1 + 1e-5).all()
    assert iou(refined[0], truth) > 0.9
    assert refined[1].max() < 0.5


def test_without_maps_or_iterations_nothing_changes():
    _, image, maps = planted()
    assert torch.equal(dense_crf(image, maps, 0), maps)
    assert dense_crf(image, maps[:0]).shape == (0, 48, 48)


def test_a_map_of_another_size_is_refused():
    with pytest.raises(ValueError, match="expected the size of the image"):
        dense_crf(torch.zeros(3, 8, 8), torch.zeros(1, 8, 9))


def test_images_smaller_than_the_window_are_refined():
    refined = dense_crf(torch.rand(3, 7, 9) * 255, torch.rand(2, 7, 9))
    assert torch.isfinite(refined).all()


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=0))
    return powers / powers.sum(axis=0)


def slow_neighbours(belief, image, reach, step, position_sigma):
    """Average the beliefs of the neighbours of one pixel after the other, in float64."""
    _, height, width = belief.shape
    offsets = range(-reach, reach + 1, step)
    averages = np.zeros_like(belief)
    for y, x in np.ndindex(height, width):
        total, weights = 0.0, 0.0
        for dy, dx in ((dy, dx) for dy in offsets for dx in offsets if (dy, dx) != (0, 0)):
            if not (0 <= y + dy < height and 0 <= x + dx < width):
                continue
            exponent = -(dy * dy + dx * dx) / (2 * position_sigma**2)
            if image is not None:
                difference = image[:, y + dy, x + dx] - image[:, y, x]
                exponent -= (difference**2).sum() / (2 * COLOUR_SIGMA**2)
            total = total + np.exp(exponent) * belief[:, y + dy, x + dx]
            weights += np.exp(exponent)
        averages[:, y, x] = total / weights
    return averages


def test_mean_field_matches_a_loop():
    generator = torch.Generator().manual_seed(3)
    image = (100 + 20 * torch.rand(3, 11, 14, generator=generator)).double()
    maps = torch.rand(2, 11, 14, generator=generator, dtype=torch.float64)
    shares = np.concatenate([1 - maps.amax(0, keepdim=True).numpy(), maps.numpy()]).clip(FLOOR)
    evidence = np.log(shares / shares.sum(axis=0))
    belief = softmax(evidence)
    for _ in range(2):
        coloured = slow_neighbours(belief, image.numpy(), REACH, STEP, POSITION_SIGMA)
        near = slow_neighbours(belief, None, int(2 * SMOOTH_SIGMA), 1, SMOOTH_SIGMA)
        belief = softmax(evidence + COLOUR_WEIGHT * coloured + SMOOTH_WEIGHT * near)
    np.testing.assert_allclose(dense_crf(image, maps, 2).numpy(), belief[1:], rtol=0, atol=1e-6)
