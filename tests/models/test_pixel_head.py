"""The online segmentation head by itself: sizes, and what it passes a gradient to."""

import pytest
import torch

from models.pixel_head import WIDTH, PixelHead


def inputs_of_the_head():
    """Images of 29 x 46 pixels, tokens, g and M of a grid of 2 x 3 patches; all take gradients."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 29, 46, generator=generator)
    tokens = torch.randn(2, 6, 2, 3, generator=generator)
    patch_map = torch.randn(2, 4, 2, 3, generator=generator)
    attention = torch.rand(2, 4, 2, 3, generator=generator)
    names = ("images", "patch_tokens", "patch_map", "class_attention")
    parts = (images, tokens, patch_map, attention)
    return {name: part.requires_grad_() for name, part in zip(names, parts, strict=True)}


def head():
    torch.manual_seed(0)
    return PixelHead(token_width=6, num_classes=4)


def test_the_head_segments_at_a_quarter_of_the_size():
    logits, features = head()(**inputs_of_the_head())
    assert logits.shape == (2, 5, 8, 12)  # 29 / 4 and 46 / 4, rounded up
    assert features.shape == (2, WIDTH, 8, 12)


@pytest.mark.parametrize("output", [0, 1])
def test_the_head_learns_from_images_and_tokens_and_takes_cams_as_constants(output):
    model, inputs = head(), inputs_of_the_head()
    weights = torch.rand(8, 12, generator=torch.Generator().manual_seed(1))
    (model(**inputs)[output] * weights).sum().backward()
    assert inputs["patch_map"].grad is None
    assert inputs["class_attention"].grad is None
    assert inputs["images"].grad.abs().sum() > 0
    assert inputs["patch_tokens"].grad.abs().sum() > 0


def test_the_head_reads_both_maps():
    model, inputs = head().eval(), inputs_of_the_head()
    logits, _ = model(**inputs)
    for name in ("patch_map", "class_attention"):
        changed, _ = model(**inputs | {name: inputs[name] / 2})
        assert not torch.equal(changed, logits)
