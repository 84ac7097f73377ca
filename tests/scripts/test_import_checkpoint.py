"""A checkpoint by the released code's names becomes one of ours that computes the same."""

from pathlib import Path

import pytest
import torch

import import_checkpoint
import make_cams
from configs import changed, load
from models.stac import Stac, build_stac, stac_from_checkpoint
from runfolder.checkpoint import load_checkpoint

OVERRIDES = ["data.sample_train=4", "data.sample_test=2", "train.head_padding=replicate"]
OVERRIDES += ["train.frozen_blocks=1", "train.pixel_block=1", 'cam.types=["pixel","fused"]']


def released_model(num_classes: int = 3) -> Stac:
    """Return DeiT-Ti as the released code would train it: 8 heads on a width of 192, 64 x 64."""
    values = {"num_heads": 8, "image_size": [64, 64], "patch_size": 16, "depth": 2}
    values |= {"scale_pooling": False, "head_padding": "zeros", "pixel_block": 0}
    types = {"cam.types": ["fused"], "pseudo_label.cam_type": "fused"}
    values = {f"train.{key}": value for key, value in values.items()} | types
    torch.manual_seed(0)
    model = build_stac(changed(load("configs/sample.toml"), values).train, num_classes).eval()
    torch.nn.init.normal_(model.encoder.cls_token)
    return model


def released_state(model: Stac) -> dict[str, torch.Tensor]:
    state = {
        key.removeprefix("encoder.").replace("projection.", "representation."): value
        for key, value in model.state_dict().items()
    }
    return state | {"norm.weight": torch.ones(192), "norm.bias": torch.zeros(192)}


def run(folder: Path, content: dict, *arguments: str) -> Path:
    torch.save(content, folder / "checkpoint.pth")
    flags = ["--config", "configs/sample.toml", "--out", str(folder / "run")]
    flags += ["--file", str(folder / "checkpoint.pth"), *arguments]
    import_checkpoint.main([*flags, "--set", f"data.root={folder}/data", *OVERRIDES])
    return folder / "run/stac/checkpoint.pt"


def test_an_imported_checkpoint_computes_what_it_did(tmp_path, capsys):
    model = released_model()
    path = run(tmp_path, {"model": released_state(model), "epoch": 79})

    again = stac_from_checkpoint(load_checkpoint(path, ""))
    images = torch.randn(2, 3, 64, 64)
    for expected, got in zip(model(images), again(images), strict=True):
        torch.testing.assert_close(got, expected)
    assert "warning: read with 8 attention heads" in capsys.readouterr().out


def test_make_cams_goes_on_in_the_run_folder(tmp_path):
    path = run(tmp_path, {"model": released_state(released_model())})

    out = path.parent.parent
    config = load(out / "config.toml")
    assert config.cam.types == ("fused",)  # that of the head is not there
    assert config.pseudo_label.cam_type == "fused"
    make_cams.main(["--out", str(out), "--device", "cpu"])
    assert len(list((out / "cams/fused/given").glob("*.npz"))) == 6


def test_heads_of_another_training_can_be_named(tmp_path):
    path = run(tmp_path, {"model": released_state(released_model())}, "--heads", "3")

    other = stac_from_checkpoint(load_checkpoint(path, ""))
    assert other.encoder.blocks[0].attn.num_heads == 3


def test_files_that_do_not_fit_are_refused(tmp_path):
    state = released_state(released_model(num_classes=2))
    with pytest.raises(ValueError, match=r"expected 3 class tokens, one per class .* got 2"):
        run(tmp_path, {"model": state})
    state = released_state(released_model())
    with pytest.raises(ValueError, match=r"have no place \(decoder\.weight\)"):
        run(tmp_path, {"model": {**state, "decoder.weight": torch.zeros(2)}})
    del state["representation.0.weight"]
    with pytest.raises(ValueError, match=r"released code, representation\.0\.weight missing"):
        run(tmp_path, {"model": state})
    state = released_state(released_model())
    del state["blocks.1.mlp.fc1.bias"]
    with pytest.raises(ValueError, match=r"expected weights of deit_tiny.*blocks\.1\.mlp\.fc1"):
        run(tmp_path, {"model": state})


def test_an_earlier_checkpoint_is_not_written_over(tmp_path):
    content = {"model": released_state(released_model())}
    path = run(tmp_path, content)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"checkpoint\.pt: expected no checkpoint there yet"):
        run(tmp_path, content)
    assert path.read_bytes() == before
