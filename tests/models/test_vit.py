"""The encoder equals timm where it must, and differs only by its class tokens."""

import pytest
import timm
import torch

from configs import TrainConfig
from models.backbones import create_vit
from models.vit import ClassTokenViT

TINY = "deit_tiny_patch16_224"
SIZE = (48, 80)  # a 3 x 5 grid


def tiny_vit(**options):
    """Return a two-block ViT of timm with random weights."""
    torch.manual_seed(0)
    vit = timm.create_model(TINY, num_classes=0, depth=2, img_size=SIZE, **options)
    torch.nn.init.normal_(vit.pos_embed, std=0.5)
    torch.nn.init.normal_(vit.cls_token, std=0.5)
    return vit.eval()


def before_the_norm(vit, images):
    """Return the tokens that timm's last norm is given."""
    vit.norm = torch.nn.Identity()
    return vit.forward_features(images)


@pytest.mark.parametrize("patch_size", [16, 8])
def test_one_class_token_equals_timm(patch_size):
    vit = tiny_vit(patch_size=patch_size)
    images = torch.randn(2, 3, *SIZE)
    encoder = ClassTokenViT(vit, 1, attention_layers=1).eval()
    tokens = encoder(images)
    expected = before_the_norm(vit, images)
    torch.testing.assert_close(tokens.class_tokens[-1], expected[:, :1])
    patches = tokens.patch_tokens.flatten(2).transpose(1, 2)
    torch.testing.assert_close(patches, expected[:, 1:])


def test_layer_scale_and_drop_path_off_in_eval_equal_timm():
    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_small_patch14_dinov2", num_classes=0, depth=2, img_size=(42, 56), drop_path_rate=0.3
    ).eval()
    images = torch.randn(1, 3, 42, 56)
    encoder = ClassTokenViT(vit, 1, attention_layers=2).eval()
    tokens = encoder(images)
    torch.testing.assert_close(tokens.class_tokens[-1], before_the_norm(vit, images)[:, :1])


@pytest.mark.parametrize(
    ("backbone", "size"),
    [
        ("vit_small_patch14_reg4_dinov2", (42, 56)),
        ("vit_small_patch16_dinov3", (48, 80)),
        ("eva02_tiny_patch14_224", (42, 56)),
    ],
)
def test_registers_and_rotary_positions_equal_timm(backbone, size):
    vit = create_vit(TrainConfig(backbone=backbone, image_size=size, depth=2), "none")
    torch.manual_seed(0)
    for name, parameter in vit.named_parameters():  # a layer scale of 1e-5 would hide a fault
        torch.nn.init.normal_(parameter, std=0.3 if "gamma" in name else 0.1)
    images = torch.randn(2, 3, *size)
    encoder = ClassTokenViT(vit, 1, attention_layers=2).eval()
    tokens = encoder(images)
    expected = before_the_norm(vit.eval(), images)
    torch.testing.assert_close(tokens.class_tokens[-1], expected[:, :1])
    patches = tokens.patch_tokens.flatten(2).transpose(1, 2)
    torch.testing.assert_close(patches, expected[:, vit.num_prefix_tokens :])
    other_size = encoder(torch.randn(1, 3, size[1], size[0]))
    assert other_size.class_attention.sum() < 1  # the class token and the registers have a share


def test_class_tokens_part_only_after_the_frozen_blocks():
    """Frozen blocks run as timm runs them, with the mean of the class tokens."""
    vit = tiny_vit()
    encoder = ClassTokenViT(vit, 3, attention_layers=1, frozen_blocks=1).eval()
    images = torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        apart = torch.tensor([1.0, 0.0, -1.0])[None, :, None]
        encoder.cls_token += apart
        x = vit.blocks[0](vit._pos_embed(vit.patch_embed(images)))
        x = vit.blocks[1](torch.cat([x[:, :1] + apart, x[:, 1:]], dim=1))
        tokens = encoder(images)
    torch.testing.assert_close(tokens.class_tokens, x[None, :, :3])
    torch.testing.assert_close(tokens.patch_tokens.flatten(2).transpose(1, 2), x[:, 3:])
    assert tokens.class_attention.shape == (2, 3, 3, 5)


@pytest.mark.parametrize("backbone", [TINY, "vit_small_patch16_dinov3"])
def test_frozen_blocks_are_left_out_of_the_gradient(backbone):
    torch.manual_seed(0)
    vit = timm.create_model(backbone, num_classes=0, depth=3, img_size=SIZE)
    encoder = ClassTokenViT(vit, 2, attention_layers=1, frozen_blocks=2)
    images = torch.randn(2, 3, *SIZE)
    trained = encoder.train()(images)
    torch.testing.assert_close(trained, encoder.eval()(images))
    (trained.patch_tokens.square().sum() + trained.class_tokens[:, :, 0].sum()).backward()
    learning = {name for name, p in encoder.named_parameters() if p.grad is not None}
    assert {"cls_token", "pos_embed_cls"} <= learning
    assert {name.split(".")[1] for name in learning if "." in name} == {"2"}
    frozen = {name for name, p in encoder.named_parameters() if not p.requires_grad}
    assert {name.split(".")[1] for name in frozen if name.startswith("blocks.")} == {"0", "1"}
    assert {"patch_embed.proj.weight", "pos_embed_pat"} & learning == set()
    # What frozen blocks are given has no gradient, so it is not pulled away from the pretrained.
    together = encoder.cls_token.grad.sum(dim=1)
    torch.testing.assert_close(together, torch.zeros_like(together), atol=1e-4, rtol=0)
    assert encoder.cls_token.grad.abs().max() > 1e-2


def test_tokens_are_those_of_the_last_block():
    vit = tiny_vit()
    images = torch.randn(2, 3, *SIZE)
    x = vit._pos_embed(vit.patch_embed(images))
    for block in vit.blocks:
        x = block(x)
    tokens = ClassTokenViT(vit, 1, attention_layers=1).eval()(images)
    torch.testing.assert_close(tokens.class_tokens[-1], x[:, :1])


@pytest.mark.parametrize("num_classes", [1, 3, 6, 20])
def test_attention_rows_and_output_match_a_loop_over_heads(num_classes):
    """A slow float64 reference that holds the whole attention matrix of each head."""
    torch.manual_seed(1)
    vit = tiny_vit().double()
    encoder = ClassTokenViT(vit, num_classes, attention_layers=2).double().eval()
    torch.nn.init.normal_(encoder.cls_token)
    images = torch.randn(2, 3, *SIZE, dtype=torch.float64)
    tokens = encoder(images)

    patches = encoder.patch_embed(images) + encoder.pos_embed_pat
    own = (encoder.cls_token + encoder.pos_embed_cls).repeat(2, 1, 1)
    x = torch.cat([own, patches], dim=1)
    rows, outputs, states = [], [], []
    for block in encoder.blocks:
        attention = block.attn
        heads, depth = attention.num_heads, x.shape[-1] // attention.num_heads
        qkv = attention.qkv(block.norm1(x))
        q, k, v = qkv.split(x.shape[-1], dim=-1)
        mixed, first_rows = [], 0
        for head in range(heads):
            part = slice(head * depth, (head + 1) * depth)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / depth**0.5
            weights = torch.exp(scores) / torch.exp(scores).sum(-1, keepdim=True)
            first_rows = first_rows + weights[:, :num_classes, num_classes:] / heads
            mixed.append(weights @ v[..., part])
        output = attention.proj(torch.cat(mixed, dim=-1))
        x = x + output
        x = x + block.mlp(block.norm2(x))
        rows.append(first_rows)
        outputs.append(output[:, num_classes:])
        states.append(x[:, :num_classes])

    expected_rows = (rows[0] + rows[1]) / 2
    got = tokens.class_attention.flatten(2)
    torch.testing.assert_close(got, expected_rows, rtol=1e-9, atol=1e-15)
    expected_output = (outputs[0] + outputs[1]) / 2
    got = tokens.attention_output.flatten(2).transpose(1, 2)
    torch.testing.assert_close(got, expected_output, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(tokens.class_tokens, torch.stack(states), rtol=1e-9, atol=1e-12)

    single = encoder.float()(images.float())
    for name, value in single._asdict().items():
        if name == "middle_tokens":
            continue
        expected = getattr(tokens, name)
        error = (value.double() - expected).norm() / expected.norm()
        assert error <= 1e-5, name


@pytest.mark.parametrize("frozen_blocks", [0, 1])
def test_tokens_of_a_middle_block_are_those_of_a_shorter_vit(frozen_blocks):
    vit = tiny_vit()
    images = torch.randn(2, 3, *SIZE)
    settings = {"attention_layers": 1, "frozen_blocks": frozen_blocks}
    both = ClassTokenViT(vit, 2, middle_block=2, **settings).eval()(images)
    torch.testing.assert_close(both.middle_tokens, both.patch_tokens)
    first = ClassTokenViT(vit, 2, middle_block=1, **settings).eval()(images).middle_tokens
    vit.blocks = vit.blocks[:1]
    alone = ClassTokenViT(vit, 2 - frozen_blocks, attention_layers=1).eval()(images)
    torch.testing.assert_close(first, alone.patch_tokens)
    with pytest.raises(
        ValueError, match=r"train\.pixel_block: expected 0 to 1 \(.* 1 blocks.* got 2"
    ):
        ClassTokenViT(vit, 2, attention_layers=1, middle_block=2)


def test_class_tokens_are_those_of_the_last_attention_layers():
    vit = tiny_vit()
    images = torch.randn(1, 3, *SIZE)
    last = ClassTokenViT(vit, 2, attention_layers=1).eval()(images).class_tokens
    both = ClassTokenViT(vit, 2, attention_layers=2).eval()(images).class_tokens
    assert last.shape == (1, 1, 2, 192) and both.shape == (2, 1, 2, 192)
    torch.testing.assert_close(last[0], both[1])


def test_attention_averages_only_the_last_blocks():
    vit = tiny_vit()
    images = torch.randn(1, 3, *SIZE)
    last = ClassTokenViT(vit, 2, attention_layers=1).eval()(images).class_attention
    both = ClassTokenViT(vit, 2, attention_layers=2).eval()(images).class_attention
    assert not torch.allclose(last, both)
    assert last.min() >= 0
    assert last.sum((-1, -2)).max() <= 1


def test_maps_keep_rows_and_columns_apart():
    """A bright patch in row 0, column 4 changes exactly that place of the patch embedding."""
    vit = tiny_vit()
    encoder = ClassTokenViT(vit, 1, attention_layers=1).eval()
    images = torch.zeros(2, 3, *SIZE)
    images[1, :, :16, 64:] = 1
    patches, grid = encoder._embed(images)
    changed = (patches[1] - patches[0]).abs().sum(-1).unflatten(0, grid)
    assert grid == (3, 5)
    assert changed.nonzero().tolist() == [[0, 4]]


def test_other_sizes_resample_the_position_embedding():
    encoder = ClassTokenViT(tiny_vit(), 3, attention_layers=1).eval()
    tokens = encoder(torch.randn(1, 3, 112, 32))
    assert tokens.patch_tokens.shape == (1, 192, 7, 2)
    assert tokens.class_tokens.shape == (1, 1, 3, 192)  # of attention_layers blocks


def test_size_that_is_not_whole_patches_is_refused():
    encoder = ClassTokenViT(tiny_vit(), 3, attention_layers=1)
    with pytest.raises(ValueError, match=r"multiples of \(16, 16\), got \(50, 80\)"):
        encoder(torch.randn(1, 3, 50, 80))


def test_too_many_attention_layers_are_refused():
    with pytest.raises(ValueError, match="train.attention_layers: expected 1 to 2 .* got 3"):
        ClassTokenViT(tiny_vit(), 3, attention_layers=3)
    with pytest.raises(ValueError, match="expected 1 to 1 .* train.frozen_blocks is 1.* got 2"):
        ClassTokenViT(tiny_vit(), 3, attention_layers=2, frozen_blocks=1)
    with pytest.raises(ValueError, match="train.frozen_blocks: expected 0 to 1 .* got 2"):
        ClassTokenViT(tiny_vit(), 3, attention_layers=1, frozen_blocks=2)
