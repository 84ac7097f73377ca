"""The whole localiser: shapes, gradients, scores and its checkpoint."""

import math

import pytest
import torch

from configs import Config, LossConfig, TrainConfig, to_dict
from losses.stac import stac_loss
from models import stac
from models.stac import (
    PIXEL_LR_SCALE,
    build_stac,
    image_scores,
    pool_patches,
    stac_from_checkpoint,
)

SIZE = (48, 80)
DTYPES = [(torch.float64, 1e-9), (torch.float32, 1e-5)]


def settings(**changes) -> TrainConfig:
    small = {
        "backbone": "deit_tiny_patch16_224",
        "pretrained": "none",
        "image_size": SIZE,
        "projection_width": 32,
    }
    return TrainConfig(**small | changes)


def run_loss(model, labels):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(len(labels), 3, *SIZE, generator=generator)
    saliency = torch.rand(len(labels), 1, *SIZE, generator=generator)
    return stac_loss(model(images), labels, saliency, LossConfig(), generator)


def test_output_shapes_and_types():
    torch.manual_seed(0)
    model = build_stac(settings(pixel_block=2), 3).eval()
    output = model(torch.randn(2, 3, *SIZE))
    shapes = {name: tuple(value.shape) for name, value in output._asdict().items()}
    assert shapes == {
        "class_logits": (2, 3),
        "patch_logits": (2, 3),
        "class_tokens": (3, 2, 3, 192),  # of the last attention_layers blocks
        "patch_map": (2, 3, 3, 5),
        "class_attention": (2, 3, 3, 5),
        "feature_map": (2, 3, 3, 5),
        "embedding": (2, 64, 12, 20),
        "pixel_logits": (2, 4, 12, 20),
    }
    assert all(value.dtype == torch.float32 for value in output)
    headless = build_stac(settings(), 3).eval()(torch.randn(2, 3, *SIZE))
    assert headless.pixel_logits is None
    assert headless.embedding.shape == (2, 32, 3, 5)


@pytest.mark.parametrize(("padding", "level"), [("replicate", True), ("zeros", False)])
def test_heads_see_the_patch_itself_past_the_border(padding, level):
    """Of tokens alike everywhere, which replicated padding alone makes a level map."""
    torch.manual_seed(0)
    with_head = build_stac(settings(head_padding=padding, pixel_block=1), 2).eval()
    tokens = torch.randn(1, 192, 1, 1).expand(1, 192, 3, 5)
    level_maps = torch.full((2, 1, 2, 3, 5), 0.1)
    maps, _ = with_head.pixel_head(torch.ones(1, 3, *SIZE), tokens, *level_maps)
    assert torch.allclose(maps, maps[..., 5:6, 9:10].expand_as(maps), atol=1e-5) == level
    model = build_stac(settings(head_padding=padding), 2).eval()
    for head in (model.head, model.projection):
        maps = head(tokens)
        assert torch.allclose(maps, maps[..., 1:2, 2:3].expand_as(maps), atol=1e-5) == level


@pytest.mark.parametrize("pixel_block", [0, 12])
def test_every_parameter_gets_a_gradient(pixel_block):
    torch.manual_seed(0)
    model = build_stac(settings(drop_path=0.0, pixel_block=pixel_block), 3).train()
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    total, _ = run_loss(model, labels)
    total.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # The bias before the BatchNorm shifts every value and is taken out again.
    assert without in ([], ["projection.0.bias"])


def test_image_score_is_the_sigmoid_of_the_mean_logit():
    torch.manual_seed(0)
    output = build_stac(settings(), 2).eval()(torch.randn(1, 3, *SIZE))
    chosen = output._replace(
        class_logits=torch.tensor([[2.0, -1.0]]), patch_logits=torch.tensor([[0.0, -1.0]])
    )
    # sigmoid(1) = 0.731059, sigmoid(-1) = 0.268941
    assert image_scores(chosen)[0].tolist() == pytest.approx([0.731059, 0.268941], abs=1e-6)


def test_image_score_is_the_mean_with_the_highest_pixels_of_the_head():
    torch.manual_seed(0)
    output = build_stac(settings(), 2).eval()(torch.randn(1, 3, *SIZE))
    logits = torch.full((1, 3, 20, 20), -9.0)
    logits[:, 0] = 9.0  # background
    logits[0, :, 0, :4] = torch.tensor([0.0, 0.0, math.log(2)])[:, None]  # shares 1/4, 1/4, 1/2
    chosen = output._replace(
        class_logits=torch.tensor([[2.0, -1.0]]),
        patch_logits=torch.tensor([[0.0, -1.0]]),
        pixel_logits=logits,
    )
    # The highest 1 % of 400 pixels are these four.
    expected = [(0.731059 + 0.25) / 2, (0.268941 + 0.5) / 2]
    assert image_scores(chosen)[0].tolist() == pytest.approx(expected, abs=1e-6)


def test_model_is_rebuilt_from_its_checkpoint_alone():
    torch.manual_seed(0)
    config = Config(train=settings(image_size=(40, 70), pixel_block=1))
    model = build_stac(config.train, 2).eval()
    checkpoint = {
        "model": model.state_dict(),
        "config": to_dict(config),
        "class_names": ["dent", "stain"],
    }
    again = stac_from_checkpoint(checkpoint)
    images = torch.randn(1, 3, 48, 80)
    for left, right in zip(model(images), again(images), strict=True):
        assert torch.equal(left, right)


def test_learning_rates_are_scaled_for_what_is_new():
    model = build_stac(settings(depth=2, attention_layers=1, pixel_block=1), 2)
    scale = {name: model.lr_scale(name, 7.0) for name, _ in model.named_parameters()}
    of_head = {name for name in scale if name.startswith("pixel_head.")}
    assert of_head and {scale[name] for name in of_head} == {PIXEL_LR_SCALE}
    new = {"encoder.cls_token", "encoder.pos_embed_cls", "head.weight", "head.bias"}
    assert {scale[name] for name in new} == {7.0}
    assert {scale[name] for name in scale.keys() - of_head - new} == {1.0}
    projection = build_stac(settings(depth=1, attention_layers=1), 2).projection
    names = [f"projection.{name}" for name, _ in projection.named_parameters()]
    assert names and {model.lr_scale(name, 7.0) for name in names} == {7.0}


def test_frozen_blocks_come_from_the_settings():
    model = build_stac(settings(depth=2, attention_layers=1, frozen_blocks=1), 2)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert "encoder.blocks.0.attn.qkv.weight" in frozen
    assert "encoder.blocks.1.attn.qkv.weight" not in frozen


def slow_pool(values, decay, unit):
    ranked = sorted(values, reverse=True)
    weights = [decay ** (rank * unit) for rank in range(len(ranked))]
    return sum(v * w for v, w in zip(ranked, weights, strict=True)) / sum(weights)


@pytest.mark.parametrize("num_classes", [1, 3, 6, 20])
@pytest.mark.parametrize("scale_window", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_pooling_matches_a_loop(monkeypatch, num_classes, scale_window, dtype, tolerance):
    monkeypatch.setattr(stac, "POOLING_DECAY", 0.9)  # tells the ranks apart
    generator = torch.Generator().manual_seed(num_classes)
    maps = torch.randn(2, num_classes, 5, 7, generator=generator, dtype=torch.float64)
    pooled = pool_patches(maps.to(dtype), scale_window)
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


def test_pooling_is_the_mean_where_the_decay_is_one(monkeypatch):
    monkeypatch.setattr(stac, "POOLING_DECAY", 1.0)
    maps = torch.arange(6.0).view(1, 1, 2, 3)
    assert pool_patches(maps).item() == pytest.approx(2.5)
