"""A checkpoint by the released code's names becomes one of ours that computes the same."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import import_checkpoint
import make_cams
from configs import load
from models.stac import stac_from_checkpoint
from runfolder.checkpoint import load_checkpoint

OVERRIDES = ["data.sample_train=4", "data.sample_test=2", "train.head_padding=replicate"]
OVERRIDES += ["train.frozen_blocks=1", "train.pixel_block=1", 'cam.types=["pixel","fused"]']
OVERRIDES += ["train.attention_layers=3"]
HEADS = 8


def released_shapes(num_classes: int, width: int, depth: int, side: int) -> dict[str, tuple]:
    """Return names and shapes of a localiser that the released code saved, on side x side patches.

    It keeps DeiT's `pos_embed`, which it does not use, and has no `representation.0.bias`.
    """
    token = (1, num_classes, width)
    shapes = {"cls_token": token, "pos_embed": (1, side**2 + 1, width), "pos_embed_cls": token}
    shapes |= {"pos_embed_pat": (1, side**2, width), "patch_embed.proj.weight": (width, 3, 16, 16)}
    shapes["patch_embed.proj.bias"] = (width,)
    layers = {"norm1": (width,), "attn.qkv": (3 * width, width), "attn.proj": (width, width)}
    layers |= {"norm2": (width,), "mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    layers = {f"blocks.{i}.{name}": size for i in range(depth) for name, size in layers.items()}
    layers |= {"norm": (width,), "head": (num_classes, width, 3, 3)}
    layers |= {"representation.1": (256,), "representation.3": (256, 256, 1, 1)}
    for name, size in layers.items():
        shapes |= {f"{name}.weight": size, f"{name}.bias": size[:1]}
    shapes["representation.0.weight"] = (256, width, 3, 3)
    shapes |= {f"representation.1.running_{name}": (256,) for name in ("mean", "var")}
    return shapes | {"representation.1.num_batches_tracked": ()}


def released_state(
    num_classes: int = 3, width: int = 192, depth: int = 4, side: int = 4
) -> dict[str, Tensor]:
    """Return random weights of such a localiser; DeiT-Ti at 64 x 64 unless said."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in released_shapes(num_classes, width, depth, side).items():
        value = 0.1 * torch.randn(shape, generator=generator)
        is_scale = len(shape) == 1 and name.endswith(("weight", "running_var"))  # about 1
        state[name] = 1 + value.abs() if is_scale else value
    return state | {"representation.1.num_batches_tracked": torch.tensor(9)}


def run(folder: Path, content: dict, *arguments: str) -> Path:
    torch.save(content, folder / "checkpoint.pth")
    flags = ["--config", "configs/sample.toml", "--out", str(folder / "run")]
    flags += ["--file", str(folder / "checkpoint.pth"), *arguments]
    import_checkpoint.main([*flags, "--set", f"data.root={folder}/data", *OVERRIDES])
    return folder / "run/stac/checkpoint.pt"


def run_blocks(weights: dict[str, Tensor], x: Tensor, depth: int) -> tuple[list, list]:
    """Return tokens (B, T, D) and mean attention of the heads (B, T, T) of each block."""

    def linear(name: str, values: Tensor) -> Tensor:
        return F.linear(values, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(name: str, values: Tensor) -> Tensor:
        scale, offset = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return F.layer_norm(values, scale.shape, scale, offset, 1e-6)

    tokens, attentions = [], []
    for name in (f"blocks.{i}." for i in range(depth)):
        qkv = linear(f"{name}attn.qkv", norm(f"{name}norm1", x))
        q, k, v = qkv.unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, T, d)
        attention = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        x = x + linear(f"{name}attn.proj", (attention @ v).transpose(1, 2).flatten(2))
        hidden = F.gelu(linear(f"{name}mlp.fc1", norm(f"{name}norm2", x)))
        x = x + linear(f"{name}mlp.fc2", hidden)
        tokens.append(x)
        attentions.append(attention.mean(1))
    return tokens, attentions


def reference(state: dict[str, Tensor], images: Tensor, depth: int = 4) -> dict[str, Tensor]:
    """Compute what the localiser of the paper does, from the released weights, in float64."""
    weights = {name: value.double() for name, value in state.items()}
    own = weights["cls_token"] + weights["pos_embed_cls"]
    patches = F.conv2d(images, weights["patch_embed.proj.weight"], stride=16)  # (B, D, h, w)
    grid, num_classes = patches.shape[2:], own.shape[1]
    patches = patches.flatten(2).mT + weights["patch_embed.proj.bias"] + weights["pos_embed_pat"]
    x = torch.cat([own.expand(len(images), -1, -1), patches], dim=1)
    tokens, attentions = run_blocks(weights, x, depth)
    attention = torch.stack(attentions[-3:]).mean(0)[:, :num_classes, num_classes:]  # (B, K, N)
    patches = tokens[-1][:, num_classes:].mT.unflatten(2, grid)  # without the last norm
    patch_map = F.conv2d(patches, weights["head.weight"], weights["head.bias"], padding=1)
    ranked = patch_map.flatten(2).sort(dim=2, descending=True).values
    decay = 0.996 ** torch.arange(ranked.shape[2]).double()
    hidden = F.conv2d(patches, weights["representation.0.weight"], padding=1)
    norm = (weights[f"representation.1.{n}"] for n in ("running_mean", "running_var"))
    scale, offset = weights["representation.1.weight"], weights["representation.1.bias"]
    hidden = F.batch_norm(hidden, *norm, scale, offset).relu()
    last = weights["representation.3.weight"], weights["representation.3.bias"]
    return {
        "class_logits": tokens[-1][:, :num_classes].mean(2),
        "patch_logits": (ranked * decay).sum(2) / decay.sum(),
        "class_tokens": torch.stack(tokens[-3:])[:, :, :num_classes],
        "patch_map": patch_map,
        "class_attention": attention.unflatten(2, grid),
        "embedding": F.conv2d(hidden, *last),
    }


def test_an_imported_checkpoint_computes_what_the_released_weights_say(tmp_path, capsys):
    state = released_state()
    path = run(tmp_path, {"model": state, "epoch": 79})

    model = stac_from_checkpoint(load_checkpoint(path, "")).double()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 64, 64, generator=generator, dtype=torch.float64)
    output = model(images)
    expected = reference(state, images)
    torch.testing.assert_close({name: getattr(output, name) for name in expected}, expected)
    assert "warning: read with 8 attention heads" in capsys.readouterr().out


def test_a_localiser_of_deit_small_at_224_px_is_taken_over(tmp_path):
    path = run(tmp_path, {"model": released_state(width=384, depth=12, side=14)})

    checkpoint = load_checkpoint(path, "")
    train = checkpoint.config.train
    assert (train.backbone, train.num_heads) == ("deit_small_patch16_224", 8)
    assert (train.depth, train.image_size) == (12, (224, 224))
    assert not checkpoint["model"]["projection.0.bias"].any()
    assert "encoder.pos_embed" not in checkpoint["model"]
    output = stac_from_checkpoint(checkpoint)(torch.zeros(1, 3, 224, 224))
    assert output.patch_map.shape == output.class_attention.shape == (1, 3, 14, 14)
    assert output.embedding.isfinite().all()


def test_make_cams_goes_on_in_the_run_folder(tmp_path):
    path = run(tmp_path, {"model": released_state()})

    out = path.parent.parent
    config = load(out / "config.toml")
    assert config.cam.types == ("fused",)  # that of the head is not there
    assert config.pseudo_label.cam_type == "fused"
    make_cams.main(["--out", str(out), "--device", "cpu"])
    assert len(list((out / "cams/fused/given").glob("*.npz"))) == 6


def test_heads_of_another_training_can_be_named(tmp_path):
    path = run(tmp_path, {"model": released_state()}, "--heads", "3")

    other = stac_from_checkpoint(load_checkpoint(path, ""))
    assert other.encoder.blocks[0].attn.num_heads == 3


def test_files_that_do_not_fit_are_refused(tmp_path):
    state = released_state(num_classes=2)
    with pytest.raises(ValueError, match=r"expected 3 class tokens, one per class .* got 2"):
        run(tmp_path, {"model": state})
    state = released_state()
    with pytest.raises(ValueError, match=r"have no place \(decoder\.weight\)"):
        run(tmp_path, {"model": {**state, "decoder.weight": torch.zeros(2)}})
    del state["representation.0.weight"]
    with pytest.raises(ValueError, match=r"released code, representation\.0\.weight missing"):
        run(tmp_path, {"model": state})
    state = released_state()
    del state["blocks.1.mlp.fc1.bias"]
    with pytest.raises(ValueError, match=r"expected weights of deit_tiny.*blocks\.1\.mlp\.fc1"):
        run(tmp_path, {"model": state})


def test_an_earlier_checkpoint_is_not_written_over(tmp_path):
    content = {"model": released_state()}
    path = run(tmp_path, content)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"checkpoint\.pt: expected no checkpoint there yet"):
        run(tmp_path, content)
    assert path.read_bytes() == before
