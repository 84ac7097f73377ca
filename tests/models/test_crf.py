"""The CRF moves maps to the edges of the image."""

import numpy as np
import pytest
import torch

from benchmarks.refinement import numpy_crf
from models.crf import dense_crf


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


def test_numpy_says_the_same():
    _, image, maps = planted(40)
    np.testing.assert_allclose(
        numpy_crf(image.numpy(), maps.numpy(), 3), dense_crf(image, maps, 3).numpy(), atol=1e-4
    )
