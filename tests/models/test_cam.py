"""The types of CAMs, normalisation and resizing against slow references."""

import math

import pytest
import torch

from models.cam import guided_cams, min_max, raw_cam, resize_and_sum
from models.stac import StacOutput

DTYPES = [(torch.float64, 1e-9), (torch.float32, 1e-5)]


def output_of(attention, patch_map, feature_map=None, pixel_logits=None):
    """Return a localiser's output of which only the parts of the CAMs are there."""
    empty = torch.zeros(0)
    return StacOutput(
        class_logits=empty,
        patch_logits=empty,
        class_tokens=empty,
        patch_map=patch_map,
        class_attention=attention,
        feature_map=patch_map if feature_map is None else feature_map,
        embedding=empty,
        pixel_logits=pixel_logits,
    )


def test_cam_types_by_hand():
    attention = torch.tensor([[[[0.25, 0.5]]]])
    logits = torch.tensor([[[[4.0, -1.0]]]])
    output = output_of(attention, logits)
    assert raw_cam(output, "patchcam").flatten().tolist() == [4.0, 0.0]
    assert raw_cam(output, "attention").flatten().tolist() == [0.25, 0.5]
    # sqrt(0.25 * 4) = 1, sqrt(0.5 * 0) = 0
    assert raw_cam(output, "fused").flatten().tolist() == [1.0, 0.0]
    # Of two classes, each against the background: sigmoid(1 - 1) and sigmoid(2 - 1)
    pixel_logits = torch.tensor([1.0, 1.0, 2.0]).view(1, 3, 1, 1)
    pixel = raw_cam(output_of(attention, logits, pixel_logits=pixel_logits), "pixel").flatten()
    assert pixel.tolist() == pytest.approx([0.5, 0.731059], abs=1e-6)
    with pytest.raises(ValueError, match=r"pixel, .* without .* head \(train\.pixel_block = 0\)"):
        raw_cam(output, "pixel")
    with pytest.raises(ValueError, match="expected patchcam, .* fused or pixel, got 'product'"):
        raw_cam(output, "product")


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
def test_guided_cams_match_a_loop(num_classes, dtype, tolerance):
    """Product, resizing and min-max of cams1 and cams2, which differ in their logits alone."""
    generator = torch.Generator().manual_seed(num_classes)
    shape = (3, num_classes, 3, 4)
    attention = torch.rand(shape, generator=generator, dtype=torch.float64)
    logits = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)]
    labels = torch.zeros(3, num_classes)
    labels[1, 0] = labels[2, 0] = labels[2, -1] = 1  # 0, 1 and up to 2 labels
    size = (13, 18)
    output = output_of(attention.to(dtype), logits[0].to(dtype), logits[1].to(dtype))
    for got, of_patches in zip(guided_cams(output, labels, size), logits, strict=True):
        assert got.dtype == dtype
        expected = torch.zeros(3, num_classes, *size, dtype=torch.float64)
        for b, k in labels.nonzero().tolist():
            raw = (attention[b, k] * of_patches[b, k].clamp_min(0)).tolist()
            full = bilinear(raw, *size)
            low, high = min(map(min, full)), max(map(max, full))
            expected[b, k] = (torch.tensor(full, dtype=torch.float64) - low) / (high - low)
        torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)


def test_guided_cams_are_float32_of_half_precision():
    generator = torch.Generator().manual_seed(0)
    attention = torch.rand(1, 1, 3, 4, generator=generator)
    logits = torch.randn(1, 1, 3, 4, generator=generator).bfloat16()
    for maps in guided_cams(output_of(attention, logits), torch.ones(1, 1), (9, 10)):
        assert maps.dtype == torch.float32


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("cam_type", ["patchcam", "attention", "fused"])
def test_types_scales_and_mirror_images_match_a_loop(cam_type, dtype, tolerance):
    """Inference: per scale the map plus the mirrored map of the mirror image, resized, added."""
    formulas = {
        "patchcam": lambda m, g: max(g, 0.0),
        "attention": lambda m, g: m,
        "fused": lambda m, g: math.sqrt(m * max(g, 0.0)),
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
            raw_cam(output_of(attention.abs().to(dtype), logits.to(dtype)), cam_type)
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


def test_fused_maps_have_a_finite_gradient_where_the_product_is_zero():
    attention = torch.tensor([[[[0.25, 0.5, 0.1]]]], requires_grad=True)
    logits = torch.tensor([[[[4.0, -1.0, 0.0]]]], requires_grad=True)
    raw_cam(output_of(attention, logits), "fused").sum().backward()
    # d sqrt(m g) / dm = sqrt(g / m) / 2 = 2, / dg = sqrt(m / g) / 2 = 0.125; 0 where the map is
    assert attention.grad.flatten().tolist() == pytest.approx([2.0, 0.0, 0.0])
    assert logits.grad.flatten().tolist() == pytest.approx([0.125, 0.0, 0.0])


def test_a_map_without_a_positive_logit_is_revived_and_learns():
    attention = torch.full((1, 2, 2, 2), 0.25)
    logits = torch.tensor([[[[-3.0, -2.0], [-1.0, -3.0]], [[-1.0, 2.0], [0.0, -4.0]]]])
    # The first class is negative everywhere: less its minimum. The second is as ever.
    output = output_of(attention, logits)
    assert raw_cam(output, "patchcam").tolist() == [[[[0, 1], [2, 0]], [[0, 2], [0, 0]]]]
    assert raw_cam(output, "patchcam", revive=False)[0, 0].tolist() == [[0, 0], [0, 0]]
    # Roots of 0.25 and of 0.5.
    fused = raw_cam(output, "fused")[0, 0].flatten().tolist()
    assert fused == pytest.approx([0, 0.5, 0.70710678, 0])

    logits.requires_grad_()
    guided, _ = guided_cams(output_of(attention, logits), torch.tensor([[1.0, 0.0]]), (4, 4))
    assert guided[0, 0].amax() == 1 and not guided[0, 1].any()
    (guided[:, :, :2, :2].sum() - guided[:, :, 2:, 2:].sum()).backward()
    assert logits.grad[0, 0].abs().sum() > 0
