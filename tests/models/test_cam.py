"""Pooling, combination, normalisation and resizing of CAMs against slow references."""

import math

import pytest
import torch

from models.cam import combine, min_max, pool_patches, resize_and_sum, training_cam

DTYPES = [(torch.float64, 1e-9), (torch.float32, 1e-5)]


def slow_pool(values, decay, unit):
    ranked = sorted(values, reverse=True)
    weights = [decay ** (rank * unit) for rank in range(len(ranked))]
    return sum(v * w for v, w in zip(ranked, weights, strict=True)) / sum(weights)


@pytest.mark.parametrize("num_classes", [1, 3, 6, 20])
@pytest.mark.parametrize("scale_window", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_pooling_matches_a_loop(num_classes, scale_window, dtype, tolerance):
    generator = torch.Generator().manual_seed(num_classes)
    maps = torch.randn(2, num_classes, 5, 7, generator=generator, dtype=torch.float64)
    pooled = pool_patches(maps.to(dtype), 0.9, scale_window)
    unit = 196 / 35 if scale_window else 1
    for image in range(2):
        for k in range(num_classes):
            expected = slow_pool(maps[image, k].flatten().tolist(), 0.9, unit)
            assert pooled[image, k].item() == pytest.approx(expected, rel=tolerance)


def test_pooling_window_is_the_same_share_of_any_grid():
    """Repeating every patch 2 x 2 leaves the scaled pooling (nearly) as it was."""
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(1, 3, 14, 14, generator=generator)
    finer = maps.repeat_interleave(2, -1).repeat_interleave(2, -2)
    torch.testing.assert_close(pool_patches(finer), pool_patches(maps), rtol=0, atol=2e-3)
    paper = pool_patches(finer, scale_window=False)
    assert (paper - pool_patches(maps)).abs().max() > 0.05


def test_decay_of_one_is_the_mean():
    maps = torch.arange(6.0).view(1, 1, 2, 3)
    assert pool_patches(maps, decay=1.0).item() == pytest.approx(2.5)


def test_cam_types_by_hand():
    attention = torch.tensor([[[[0.25, 0.5]]]])
    logits = torch.tensor([[[[4.0, -1.0]]]])
    assert combine("patchcam", attention, logits).flatten().tolist() == [4.0, 0.0]
    assert combine("attention", attention, logits).flatten().tolist() == [0.25, 0.5]
    # sqrt(0.25 * 4) = 1, sqrt(0.5 * 0) = 0
    assert combine("fused", attention, logits).flatten().tolist() == [1.0, 0.0]
    assert combine("product", attention, logits).flatten().tolist() == [1.0, 0.0]
    # Of two classes, each against the background: sigmoid(1 - 1) and sigmoid(2 - 1)
    pixel_logits = torch.tensor([1.0, 1.0, 2.0]).view(1, 3, 1, 1)
    pixel = combine("pixel", attention, logits, pixel_logits=pixel_logits).flatten().tolist()
    assert pixel == pytest.approx([0.5, 0.731059], abs=1e-6)
    with pytest.raises(ValueError, match=r"pixel, .* without .* head \(train\.pixel_block = 0\)"):
        combine("pixel", attention, logits)
    with pytest.raises(ValueError, match="expected patchcam, .* or pixel, got 'grad'"):
        combine("grad", attention, logits)


def test_min_max_by_hand_and_constant_maps_are_zero():
    maps = torch.tensor([[[1.0, 3.0], [2.0, 5.0]], [[7.0, 7.0], [7.0, 7.0]]])
    assert min_max(maps)[0].flatten().tolist() == [0.0, 0.5, 0.25, 1.0]
    assert min_max(maps)[1].flatten().tolist() == [0.0] * 4


def test_min_max_of_a_constant_map_has_a_finite_gradient():
    maps = torch.zeros(1, 2, 2, requires_grad=True)
    min_max(maps).sum().backward()
    assert torch.isfinite(maps.grad).all()


def bilinear(values, height, width):
    """Resize nested lists with half-pixel centres and clamped borders."""
    rows, columns = len(values), len(values[0])

    def source(position, new, old):
        x = max((position + 0.5) * old / new - 0.5, 0.0)
        low = min(int(x), old - 1)
        return low, min(low + 1, old - 1), x - low

    result = []
    for y in range(height):
        y0, y1, dy = source(y, height, rows)
        line = []
        for x in range(width):
            x0, x1, dx = source(x, width, columns)
            top = values[y0][x0] * (1 - dx) + values[y0][x1] * dx
            bottom = values[y1][x0] * (1 - dx) + values[y1][x1] * dx
            line.append(top * (1 - dy) + bottom * dy)
        result.append(line)
    return result


@pytest.mark.parametrize("num_classes", [1, 3, 6, 20])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_training_cam_matches_a_loop(num_classes, dtype, tolerance):
    """Product, resizing and min-max of cams1 and cams2, which differ in their logits alone."""
    generator = torch.Generator().manual_seed(num_classes)
    attention = torch.rand(3, num_classes, 3, 4, generator=generator, dtype=torch.float64)
    logits = torch.randn(3, num_classes, 3, 4, generator=generator, dtype=torch.float64)
    labels = torch.zeros(3, num_classes)
    labels[1, 0] = labels[2, 0] = labels[2, -1] = 1  # 0, 1 and up to 2 labels
    size = (13, 18)
    got = training_cam(attention.to(dtype), logits.to(dtype), labels, size)
    assert got.dtype == dtype
    for b in range(3):
        for k in range(num_classes):
            raw = (attention[b, k] * logits[b, k].clamp_min(0)).tolist()
            full = bilinear(raw, *size)
            low, high = min(map(min, full)), max(map(max, full))
            for y in range(size[0]):
                for x in range(size[1]):
                    expected = (full[y][x] - low) / (high - low) if labels[b, k] else 0.0
                    assert math.isclose(
                        got[b, k, y, x], expected, rel_tol=tolerance, abs_tol=tolerance
                    )


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("cam_type", ["patchcam", "attention", "fused", "product"])
def test_types_scales_and_mirror_images_match_a_loop(cam_type, dtype, tolerance):
    """Inference: per scale the map plus the mirrored map of the mirror image, resized, added."""
    formulas = {
        "patchcam": lambda m, g: max(g, 0.0),
        "attention": lambda m, g: m,
        "fused": lambda m, g: math.sqrt(m * max(g, 0.0)),
        "product": lambda m, g: m * max(g, 0.0),
    }
    generator = torch.Generator().manual_seed(3)
    total = [[[0.0] * 9 for _ in range(7)] for _ in range(2)]
    maps = []
    for grid in ((3, 4), (5, 6)):
        views = [
            [torch.randn(2, *grid, generator=generator, dtype=torch.float64) for _ in range(2)]
            for _ in range(2)
        ]  # of the image and of its mirror image: M before taking its size, g
        combined = [
            combine(cam_type, attention.abs().to(dtype), logits.to(dtype))
            for attention, logits in views
        ]
        maps.append(combined[0] + combined[1].flip(-1))
        for k in range(2):
            raw = [[0.0] * grid[1] for _ in range(grid[0])]
            for y in range(grid[0]):
                for x in range(grid[1]):
                    for (attention, logits), column in zip(views, (x, -1 - x), strict=True):
                        m, g = attention[k, y, column].abs().item(), logits[k, y, column].item()
                        raw[y][x] += formulas[cam_type](m, g)
            full = bilinear(raw, 7, 9)
            total[k] = [
                [a + b for a, b in zip(*rows, strict=True)]
                for rows in zip(total[k], full, strict=True)
            ]
    got = resize_and_sum(maps, (7, 9))
    assert got.dtype == dtype
    expected = torch.tensor(total, dtype=torch.float64)
    torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)
    for k in range(2):
        low, high = min(map(min, total[k])), max(map(max, total[k]))
        normalised = (expected[k] - low) / (high - low)
        found = min_max(got)[k].double()
        torch.testing.assert_close(found, normalised, rtol=tolerance, atol=tolerance)


def test_fused_training_maps_have_a_finite_gradient_where_the_product_is_zero():
    attention = torch.tensor([[[[0.25, 0.5, 0.1]]]], requires_grad=True)
    logits = torch.tensor([[[[4.0, -1.0, 0.0]]]], requires_grad=True)
    combine("fused", attention, logits).sum().backward()
    # d sqrt(m g) / dm = sqrt(g / m) / 2 = 2, / dg = sqrt(m / g) / 2 = 0.125; 0 where the map is
    assert attention.grad.flatten().tolist() == pytest.approx([2.0, 0.0, 0.0])
    assert logits.grad.flatten().tolist() == pytest.approx([0.125, 0.0, 0.0])


@pytest.mark.parametrize("cam_type", ["patchcam", "attention", "fused"])
def test_training_can_guide_any_type_of_map(cam_type):
    generator = torch.Generator().manual_seed(0)
    attention = torch.rand(2, 3, 3, 5, generator=generator)
    logits = torch.randn(2, 3, 3, 5, generator=generator)
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    maps = training_cam(attention, logits, labels, (9, 20), cam_type)
    native = resize_and_sum([combine(cam_type, attention, logits)[0]], (9, 20))
    torch.testing.assert_close(maps[0, 0], min_max(native)[0])
    assert not maps[1].any()
    assert not maps[0, 1].any()


def test_a_map_without_a_positive_logit_is_revived_and_learns():
    attention = torch.full((1, 2, 2, 2), 0.25)
    logits = torch.tensor([[[[-3.0, -2.0], [-1.0, -3.0]], [[-1.0, 2.0], [0.0, -4.0]]]])
    # The first class is negative everywhere: less its minimum. The second is as ever.
    assert combine("patchcam", attention, logits).tolist() == [[[[0, 1], [2, 0]], [[0, 2], [0, 0]]]]
    assert combine("patchcam", attention, logits, revive=False)[0, 0].tolist() == [[0, 0], [0, 0]]
    assert combine("product", attention, logits)[0, 0].tolist() == [[0, 0.25], [0.5, 0]]

    logits.requires_grad_()
    guided = training_cam(attention, logits, torch.tensor([[1.0, 0.0]]), (4, 4))
    assert guided[0, 0].amax() == 1 and not guided[0, 1].any()
    (guided[:, :, :2, :2].sum() - guided[:, :, 2:, 2:].sum()).backward()
    assert logits.grad[0, 0].abs().sum() > 0
