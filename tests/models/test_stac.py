"""The whole localiser: shapes, gradients, scores and its checkpoint."""

import pytest
import torch

from configs import Config, load, to_dict
from losses.stac import stac_loss
from models.cam import training_cam
from models.stac import build_stac, image_scores, stac_from_checkpoint

SIZE = (48, 80)
OVERRIDES = ["train.backbone=deit_tiny_patch16_224", "train.pretrained=none"]


def settings(**changes) -> dict:
    base = to_dict(Config())["train"]
    return base | {
        "backbone": "deit_tiny_patch16_224",
        "image_size": list(SIZE),
        "projection_width": 32,
        **changes,
    }


def run_loss(model, labels, config):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(len(labels), 3, *SIZE, generator=generator)
    saliency = torch.rand(len(labels), 1, *SIZE, generator=generator)
    output = model(images)
    cams = [
        training_cam(output.class_attention, logits, labels, SIZE)
        for logits in (output.patch_map, output.feature_map)
    ]
    return stac_loss(
        class_logits=output.class_logits,
        patch_logits=output.patch_logits,
        class_tokens=output.class_tokens,
        cams=cams,
        embedding=output.embedding,
        pixel_logits=output.pixel_logits,
        labels=labels,
        saliency=saliency,
        settings=config.loss,
        generator=generator,
    )


def test_output_shapes_and_types():
    torch.manual_seed(0)
    model = build_stac(settings(pixel_block=2), 3, "none").eval()
    output = model(torch.randn(2, 3, *SIZE))
    shapes = {name: tuple(value.shape) for name, value in output._asdict().items()}
    assert shapes == {
        "class_logits": (2, 3),
        "patch_logits": (2, 3),
        "class_tokens": (12, 2, 3, 192),
        "patch_map": (2, 3, 3, 5),
        "class_attention": (2, 3, 3, 5),
        "feature_map": (2, 3, 3, 5),
        "embedding": (2, 64, 12, 20),
        "pixel_logits": (2, 4, 12, 20),
    }
    assert all(value.dtype == torch.float32 for value in output)
    headless = build_stac(settings(), 3, "none").eval()(torch.randn(2, 3, *SIZE))
    assert headless.pixel_logits is None
    assert headless.embedding.shape == (2, 32, 3, 5)


@pytest.mark.parametrize(("padding", "level"), [("replicate", True), ("zeros", False)])
def test_heads_see_the_patch_itself_past_the_border(padding, level):
    """Of tokens alike everywhere, which replicated padding alone makes a level map."""
    torch.manual_seed(0)
    with_head = build_stac(settings(head_padding=padding, pixel_block=1), 2, "none").eval()
    tokens = torch.randn(1, 192, 1, 1).expand(1, 192, 3, 5)
    level_maps = torch.full((2, 1, 2, 3, 5), 0.1)
    maps, _ = with_head.pixel_head(torch.ones(1, 3, *SIZE), tokens, *level_maps)
    assert torch.allclose(maps, maps[..., 5:6, 9:10].expand_as(maps), atol=1e-5) == level
    model = build_stac(settings(head_padding=padding), 2, "none").eval()
    for head in (model.head, model.projection):
        maps = head(tokens)
        assert torch.allclose(maps, maps[..., 1:2, 2:3].expand_as(maps), atol=1e-5) == level


@pytest.mark.parametrize("pixel_block", [0, 12])
def test_every_parameter_gets_a_gradient(pixel_block):
    torch.manual_seed(0)
    model = build_stac(settings(drop_path=0.0, pixel_block=pixel_block), 3, "none").train()
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    total, _ = run_loss(model, labels, Config())
    total.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # The bias before the BatchNorm shifts every value and is taken out again.
    assert without in ([], ["projection.0.bias"])


def test_image_score_is_the_sigmoid_of_the_mean_logit():
    torch.manual_seed(0)
    output = build_stac(settings(), 2, "none").eval()(torch.randn(1, 3, *SIZE))
    chosen = output._replace(
        class_logits=torch.tensor([[2.0, -1.0]]), patch_logits=torch.tensor([[0.0, -1.0]])
    )
    # sigmoid(1) = 0.731059, sigmoid(-1) = 0.268941
    assert image_scores(chosen)[0].tolist() == pytest.approx([0.731059, 0.268941], abs=1e-6)


def test_model_is_rebuilt_from_its_checkpoint_alone():
    torch.manual_seed(0)
    changes = ["train.image_size=[40, 70]", "train.pixel_block=1"]
    config = load("configs/sample.toml", [*OVERRIDES, *changes])
    model = build_stac(to_dict(config)["train"], 2, "none").eval()
    checkpoint = {
        "model": model.state_dict(),
        "config": to_dict(config),
        "class_names": ["dent", "stain"],
    }
    again = stac_from_checkpoint(checkpoint)
    images = torch.randn(1, 3, 48, 80)
    for left, right in zip(model(images), again(images), strict=True):
        assert torch.equal(left, right)


def test_learning_rates_fall_towards_the_input_and_are_scaled_for_what_is_new():
    sizes = {"depth": 2, "attention_layers": 1, "final_norm": True, "pixel_block": 1}
    model = build_stac(settings(**sizes), 2, "none")
    scale = {name: model.lr_scale(name, 10.0, 0.5, 7.0) for name, _ in model.named_parameters()}
    assert {s for name, s in scale.items() if name.startswith("pixel_head.")} == {7.0}
    new = ("encoder.cls_token", "encoder.pos_embed_cls", "head.weight")
    assert {scale[name] for name in new} == {10.0}
    assert scale["encoder.norm.weight"] == 1.0
    assert scale["encoder.blocks.1.mlp.fc1.weight"] == 0.5
    assert scale["encoder.blocks.0.norm1.bias"] == 0.25
    assert scale["encoder.patch_embed.proj.weight"] == 0.125
    assert scale["encoder.pos_embed_pat"] == 0.125
    assert {model.lr_scale(name, 1.0, 1.0) for name in scale} == {1.0}
