"""The encoder equals timm where it must, and differs only by its class tokens."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from models.vit import (
    ClassTokenViT,
    create_vit,
    load_pretrained,
    normalisation,
    whole_patches,
)
from models.backbones import find_weights

TINY = "deit_tiny_patch16_224"
SIZE = (48, 80)  # a 3 x 5 grid


def tiny_vit(**options):
    """Return a two-block ViT of timm with random weights."""
    torch.manual_seed(0)
    vit = timm.create_model(TINY, num_classes=0, depth=2, img_size=SIZE, **options)
    torch.nn.init.normal_(vit.pos_embed, std=0.5)
    torch.nn.init.normal_(vit.cls_token, std=0.5)
    return vit.eval()


@pytest.mark.parametrize("patch_size", [16, 8])
def test_one_class_token_equals_timm(patch_size):
    vit = tiny_vit(patch_size=patch_size)
    images = torch.randn(2, 3, *SIZE)
    expected = vit.forward_features(images)
    encoder = ClassTokenViT(vit, 1, attention_layers=1, final_norm=True).eval()
    tokens = encoder(images)
    torch.testing.assert_close(tokens.class_tokens[-1], expected[:, :1])
    patches = tokens.patch_tokens.flatten(2).transpose(1, 2)
    torch.testing.assert_close(patches, expected[:, 1:])


def test_layer_scale_and_drop_path_off_in_eval_equal_timm():
    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_small_patch14_dinov2", num_classes=0, depth=2, img_size=(42, 56), drop_path_rate=0.3
    ).eval()
    images = torch.randn(1, 3, 42, 56)
    expected = vit.forward_features(images)
    encoder = ClassTokenViT(vit, 1, attention_layers=2, final_norm=True).eval()
    torch.testing.assert_close(encoder(images).class_tokens[-1], expected[:, :1])


@pytest.mark.parametrize(
    ("backbone", "size"),
    [
        ("vit_small_patch14_reg4_dinov2", (42, 56)),
        ("vit_small_patch16_dinov3", (48, 80)),
        ("eva02_tiny_patch14_224", (42, 56)),
    ],
)
def test_registers_and_rotary_positions_equal_timm(backbone, size):
    vit = create_vit(backbone, "none", size, depth=2)
    torch.manual_seed(0)
    for name, parameter in vit.named_parameters():  # a layer scale of 1e-5 would hide a fault
        torch.nn.init.normal_(parameter, std=0.3 if "gamma" in name else 0.1)
    images = torch.randn(2, 3, *size)
    expected = vit.eval().forward_features(images)
    encoder = ClassTokenViT(vit, 1, attention_layers=2, final_norm=True).eval()
    tokens = encoder(images)
    torch.testing.assert_close(tokens.class_tokens[-1], expected[:, :1])
    patches = tokens.patch_tokens.flatten(2).transpose(1, 2)
    torch.testing.assert_close(patches, expected[:, vit.num_prefix_tokens :])
    other_size = encoder(torch.randn(1, 3, size[1], size[0]))
    assert other_size.class_attention.sum() < 1  # the class token and the registers have a share


def test_original_keys_of_dinov3_load(tmp_path):
    vit = timm.create_model("vit_small_patch16_dinov3", num_classes=0, depth=1)
    state = vit.state_dict()
    renamed = {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
    for new, old in renamed.items():
        state = {key.replace(new, old): value for key, value in state.items()}
    state["blocks.0.attn.qkv.bias"] = torch.zeros(3 * 384)
    torch.save({**state, "mask_token": torch.zeros(1, 384)}, tmp_path / "dinov3_vits16.pth")
    again = create_vit(
        "vit_small_patch16_dinov3", str(tmp_path / "dinov3_vits16.pth"), (64, 64), depth=1
    )
    for key, value in vit.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value)


def test_augreg_weights_load_at_another_size(tmp_path):
    source = timm.create_model("vit_tiny_patch16_224", num_classes=21843)
    torch.save(source.state_dict(), tmp_path / "augreg_in21k.pth")
    vit = create_vit("vit_tiny_patch16_224", str(tmp_path / "augreg_in21k.pth"), (64, 96))
    torch.testing.assert_close(vit.blocks[-1].norm2.weight, source.blocks[-1].norm2.weight)
    assert vit.pos_embed.shape == (1, 1 + 4 * 6, 192)


def test_other_head_counts_can_be_asked_for():
    vit = create_vit("deit_small_patch16_224", "none", (32, 32), depth=1)
    assert vit.blocks[0].attn.num_heads == 6
    vit = create_vit("deit_small_patch16_224", "none", (32, 32), depth=1, num_heads=8)
    assert vit.blocks[0].attn.num_heads == 8


def test_frozen_blocks_keep_their_weights_and_pass_the_gradient_on():
    encoder = ClassTokenViT(tiny_vit(), 2, attention_layers=1)
    encoder.freeze(1)
    encoder(torch.randn(1, 3, *SIZE)).patch_tokens.square().sum().backward()
    learning = {name for name, p in encoder.named_parameters() if p.grad is not None}
    assert {"cls_token", "pos_embed_cls"} <= learning
    assert {name.split(".")[1] for name in learning if "." in name} == {"1"}
    with pytest.raises(ValueError, match=r"train\.frozen_blocks: expected 0 to 2 .* got 3"):
        encoder.freeze(3)


def test_class_tokens_part_only_after_the_split():
    """Blocks before it run as timm runs them, with the mean of the class tokens."""
    vit = tiny_vit()
    encoder = ClassTokenViT(vit, 3, attention_layers=1, split_block=1).eval()
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
def test_frozen_blocks_before_the_split_are_left_out_of_the_gradient(backbone):
    torch.manual_seed(0)
    vit = timm.create_model(backbone, num_classes=0, depth=3, img_size=SIZE)
    encoder = ClassTokenViT(vit, 2, attention_layers=1, split_block=2)
    encoder.freeze(2)
    images = torch.randn(2, 3, *SIZE)
    trained = encoder.train()(images)
    torch.testing.assert_close(trained, encoder.eval()(images))
    (trained.patch_tokens.square().sum() + trained.class_tokens[:, :, 0].sum()).backward()
    learning = {name for name, p in encoder.named_parameters() if p.grad is not None}
    assert {"cls_token", "pos_embed_cls"} <= learning
    assert {name.split(".")[1] for name in learning if "." in name} == {"2"}
    # What frozen blocks are given has no gradient, so it is not pulled away from the pretrained.
    together = encoder.cls_token.grad.sum(dim=1)
    torch.testing.assert_close(together, torch.zeros_like(together), atol=1e-4, rtol=0)
    assert encoder.cls_token.grad.abs().max() > 1e-2


def test_tokens_without_final_norm_are_the_last_blocks():
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


@pytest.mark.parametrize("split_block", [0, 1])
def test_tokens_of_a_middle_block_are_those_of_a_shorter_vit(split_block):
    vit = tiny_vit()
    images = torch.randn(2, 3, *SIZE)
    settings = {"attention_layers": 1, "split_block": split_block}
    both = ClassTokenViT(vit, 2, middle_block=2, **settings).eval()(images)
    torch.testing.assert_close(both.middle_tokens, both.patch_tokens)
    first = ClassTokenViT(vit, 2, middle_block=1, **settings).eval()(images).middle_tokens
    vit.blocks = vit.blocks[:1]
    alone = ClassTokenViT(vit, 2 - split_block, attention_layers=1).eval()(images)
    torch.testing.assert_close(first, alone.patch_tokens)
    with pytest.raises(ValueError, match=r"train\.pixel_block: expected 0 to 1 .* got 2"):
        ClassTokenViT(vit, 2, attention_layers=1, middle_block=2)


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
    assert tokens.class_tokens.shape == (2, 1, 3, 192)


def test_size_that_is_not_whole_patches_is_refused():
    encoder = ClassTokenViT(tiny_vit(), 3, attention_layers=1)
    with pytest.raises(ValueError, match=r"multiples of \(16, 16\), got \(50, 80\)"):
        encoder(torch.randn(1, 3, 50, 80))
    assert whole_patches((200, 224), (16, 14)) == (208, 224)


def test_too_many_attention_layers_are_refused():
    with pytest.raises(ValueError, match="train.attention_layers: expected 1 to 2 .* got 3"):
        ClassTokenViT(tiny_vit(), 3, attention_layers=3)
    with pytest.raises(ValueError, match="expected 1 to 1 .* after train.split_block = 1.* got 2"):
        ClassTokenViT(tiny_vit(), 3, attention_layers=2, split_block=1)
    with pytest.raises(ValueError, match="train.split_block: expected 0 to 1 .* got 2"):
        ClassTokenViT(tiny_vit(), 3, attention_layers=1, split_block=2)


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("resnet18", "expected a plain or DINOv3 ViT of timm.*no class token"),
        ("swin_tiny_patch4_window7_224", "expected a plain or DINOv3 ViT of timm"),
        ("vit_small_patch16_rope_mixed_224", "another position embedding or attention"),
        ("vit_relpos_small_patch16_224", "expected a plain or DINOv3 ViT of timm"),
        ("vit_nothing", "expected a timm name such as"),
    ],
)
def test_other_models_are_refused(backbone, message):
    with pytest.raises(ValueError, match=message):
        create_vit(backbone, "none", (64, 64))


@pytest.mark.parametrize("layout", ["timm.pth", "module.pth", "model.pth", "timm.safetensors"])
def test_weights_files_of_every_layout_load(tmp_path, layout):
    source = timm.create_model(TINY, num_classes=10)
    state = {key: value.contiguous() for key, value in source.state_dict().items()}
    path = tmp_path / layout
    if layout == "module.pth":
        torch.save({"state_dict": {f"module.{key}": v for key, v in state.items()}}, path)
    elif layout == "model.pth":  # DeiT: {"model": ...}, half precision here
        torch.save({"model": {key: v.half() for key, v in state.items()}}, path)
    elif layout == "timm.safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    vit = create_vit(TINY, str(path), (224, 224))
    expected = state["blocks.3.mlp.fc1.weight"]
    torch.testing.assert_close(
        vit.blocks[3].mlp.fc1.weight.detach(), expected, rtol=1e-3, atol=1e-4
    )
    torch.testing.assert_close(vit.pos_embed.detach(), state["pos_embed"], rtol=1e-3, atol=1e-4)


def test_dinov2_keys_of_the_original_release_load(tmp_path):
    vit = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=(56, 56), depth=1)
    state = {**vit.state_dict(), "mask_token": torch.zeros(1, 384)}
    path = tmp_path / "dinov2_vits14_pretrain.pth"
    torch.save(state, path)
    other = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=(56, 56), depth=1)
    load_pretrained(other, path)
    torch.testing.assert_close(other.blocks[0].ls1.gamma, vit.blocks[0].ls1.gamma)


def test_weights_that_do_not_fit_are_refused(tmp_path):
    state = timm.create_model(TINY, num_classes=0).state_dict()
    state.pop("blocks.0.norm1.weight")
    state["surplus"] = torch.zeros(1)
    torch.save(state, tmp_path / "holes.pth")
    with pytest.raises(ValueError, match="1 are missing .blocks.0.norm1.weight.*surplus"):
        create_vit(TINY, str(tmp_path / "holes.pth"), (224, 224))
    with pytest.raises(FileNotFoundError, match="expected a weights file"):
        create_vit(TINY, str(tmp_path / "none.pth"), (224, 224))
    (tmp_path / "broken.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="expected a weights file, got"):
        create_vit(TINY, str(tmp_path / "broken.pth"), (224, 224))


def test_weights_of_another_width_are_refused(tmp_path):
    torch.save(timm.create_model(TINY, num_classes=0).state_dict(), tmp_path / "tiny.pth")
    with pytest.raises(ValueError, match="expected weights of this backbone, got"):
        create_vit("deit_small_patch16_224", str(tmp_path / "tiny.pth"), (224, 224))


def test_local_weights_come_before_a_download(tmp_path, monkeypatch):
    path = tmp_path / f"{TINY}.fp16.pth"
    torch.save(timm.create_model(TINY, num_classes=0).state_dict(), path)
    monkeypatch.setenv("STAC_WEIGHTS", str(tmp_path))
    assert find_weights(TINY) == path
    assert create_vit(TINY, "timm", (32, 48)).pos_embed.shape == (1, 1 + 6, 192)
    assert find_weights("no_such_model") is None
    assert find_weights("deit_tiny_patch16") is None  # another model's name begins with it


def test_normalisation_is_that_of_the_backbone():
    assert normalisation(TINY) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert normalisation("vit_tiny_patch16_224") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
