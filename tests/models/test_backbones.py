"""Networks of timm are made as the settings say, and their weights come from files of any kind."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from configs import SaliencyConfig, TrainConfig
from models import backbones
from models.backbones import (
    create_feature_network,
    create_vit,
    find_weights,
    load_pretrained,
    load_weights,
    normalisation,
    read_state_dict,
    whole_patches,
)

TINY = "deit_tiny_patch16_224"


def vit_of(backbone: str, pretrained: object = "none", size=(224, 224), **changes) -> nn.Module:
    settings = TrainConfig(backbone=backbone, image_size=size, **changes)
    return create_vit(settings, str(pretrained))


def test_original_keys_of_dinov3_load(tmp_path):
    vit = timm.create_model("vit_small_patch16_dinov3", num_classes=0, depth=1)
    state = vit.state_dict()
    renamed = {"reg_token": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}
    for new, old in renamed.items():
        state = {key.replace(new, old): value for key, value in state.items()}
    state["blocks.0.attn.qkv.bias"] = torch.zeros(3 * 384)
    torch.save({**state, "mask_token": torch.zeros(1, 384)}, tmp_path / "dinov3_vits16.pth")
    again = vit_of("vit_small_patch16_dinov3", tmp_path / "dinov3_vits16.pth", (64, 64), depth=1)
    for key, value in vit.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value)


def test_augreg_weights_load_at_another_size(tmp_path):
    source = timm.create_model("vit_tiny_patch16_224", num_classes=21843)
    torch.save(source.state_dict(), tmp_path / "augreg_in21k.pth")
    vit = vit_of("vit_tiny_patch16_224", tmp_path / "augreg_in21k.pth", (64, 96))
    torch.testing.assert_close(vit.blocks[-1].norm2.weight, source.blocks[-1].norm2.weight)
    assert vit.pos_embed.shape == (1, 1 + 4 * 6, 192)


def test_other_head_counts_can_be_asked_for():
    vit = vit_of("deit_small_patch16_224", "none", (32, 32), depth=1)
    assert vit.blocks[0].attn.num_heads == 6
    vit = vit_of("deit_small_patch16_224", "none", (32, 32), depth=1, num_heads=8)
    assert vit.blocks[0].attn.num_heads == 8


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
        vit_of(backbone, "none", (64, 64))


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
    vit = vit_of(TINY, path, (224, 224))
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
        vit_of(TINY, tmp_path / "holes.pth", (224, 224))
    with pytest.raises(FileNotFoundError, match="expected a weights file"):
        vit_of(TINY, tmp_path / "none.pth", (224, 224))
    (tmp_path / "broken.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="expected a weights file, got"):
        vit_of(TINY, tmp_path / "broken.pth", (224, 224))


@pytest.mark.parametrize("content", [[1], None, {"model": None}, {"model": [1]}, 3])
def test_a_file_that_holds_no_table_of_weights_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth: expected a weights file, a table of tensors"):
        read_state_dict(tmp_path / "a.pth", "train.pretrained")


def test_weights_of_another_width_are_refused(tmp_path):
    torch.save(timm.create_model(TINY, num_classes=0).state_dict(), tmp_path / "tiny.pth")
    with pytest.raises(ValueError, match="expected weights of this backbone, got"):
        vit_of("deit_small_patch16_224", tmp_path / "tiny.pth", (224, 224))


def test_local_weights_come_before_a_download(tmp_path, monkeypatch):
    path = tmp_path / f"{TINY}.fp16.pth"
    torch.save(timm.create_model(TINY, num_classes=0).state_dict(), path)
    monkeypatch.setenv("STAC_WEIGHTS", str(tmp_path))
    assert find_weights(TINY) == path
    assert vit_of(TINY, "timm", (32, 48)).pos_embed.shape == (1, 1 + 6, 192)
    assert find_weights("no_such_model") is None
    assert find_weights("deit_tiny_patch16") is None  # another model's name begins with it


def test_normalisation_is_that_of_the_backbone():
    assert normalisation(TINY) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert normalisation("vit_tiny_patch16_224") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_image_sizes_are_rounded_up_to_whole_patches():
    assert whole_patches((200, 224), (16, 14)) == (208, 224)
    assert vit_of(TINY, size=(40, 33), depth=1).patch_embed.grid_size == (3, 3)


def test_drop_path_rises_to_its_value_in_the_last_block():
    blocks = vit_of(TINY, size=(32, 32), depth=3, drop_path=0.2).blocks
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


def test_networks_for_features_take_images_of_any_size():
    network = create_feature_network(SaliencyConfig(backbone=TINY, weights="none"))
    (features,) = network.eval().forward_intermediates(
        torch.randn(1, 3, 48, 80), indices=[0], intermediates_only=True
    )
    assert features.shape == (1, 192, 3, 5)


def test_networks_for_features_take_weights_of_a_classifier(tmp_path, capsys):
    source = timm.create_model("resnet10t", num_classes=10)
    torch.save(source.state_dict(), tmp_path / "cnn.pth")
    settings = SaliencyConfig(backbone="resnet10t", weights=str(tmp_path / "cnn.pth"))
    network = create_feature_network(settings)
    torch.testing.assert_close(network.conv1[0].weight, source.conv1[0].weight)
    assert capsys.readouterr().out == f"saliency weights: {tmp_path / 'cnn.pth'}\n"


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        ("vit_nothing", r"saliency\.backbone: expected a timm name such as .*, got 'vit_nothing'"),
        (TINY, r"expected the weights of saliency\.backbone; 1 are missing \(cls_token\)"),
    ],
)
def test_networks_for_features_that_do_not_fit_are_refused(tmp_path, backbone, message):
    state = timm.create_model(TINY, num_classes=0).state_dict()
    state.pop("cls_token")
    torch.save(state, tmp_path / "holes.pth")
    settings = SaliencyConfig(backbone=backbone, weights=str(tmp_path / "holes.pth"))
    with pytest.raises(ValueError, match=message):
        create_feature_network(settings)


@pytest.mark.parametrize("key", ["model", "state_dict", "teacher"])
def test_wrappers_of_training_codes_are_taken_off(tmp_path, key):
    source = timm.create_model(TINY, num_classes=0, depth=1, img_size=(32, 32))
    state = {f"backbone.{name}": value for name, value in source.state_dict().items()}
    torch.save({key: state, "epoch": 3}, tmp_path / "wrapped.pth")
    vit = vit_of(TINY, tmp_path / "wrapped.pth", (32, 32), depth=1)
    torch.testing.assert_close(vit.blocks[0].mlp.fc1.weight, source.blocks[0].mlp.fc1.weight)


@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_by_file_and_name(tmp_path, value):
    state = timm.create_model(TINY, num_classes=0, depth=1, img_size=(32, 32)).state_dict()
    state["blocks.0.attn.qkv.weight"][5, 7] = value
    torch.save({"model": state}, tmp_path / "a.pth")
    save_file(state, tmp_path / "b.safetensors")
    for name in ("a.pth", "b.safetensors"):
        tensor = r"blocks\.0\.attn\.qkv\.weight"
        message = rf"{name}: expected finite weights, got NaN or infinity in {tensor}\."
        with pytest.raises(ValueError, match=rf"{message} Set train\.pretrained to another one\."):
            vit_of(TINY, tmp_path / name, (32, 32), depth=1)
        settings = SaliencyConfig(backbone=TINY, weights=str(tmp_path / name))
        with pytest.raises(ValueError, match=rf"{message} Set saliency\.weights to another one\."):
            create_feature_network(settings)


def test_a_download_that_fails_names_the_setting(tmp_path, monkeypatch):
    monkeypatch.setenv("STAC_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(backbones, "REPOSITORY", tmp_path / "clone")

    def fail(name: str, pretrained: bool = False, **options: object) -> None:
        raise OSError(f"no network; pretrained is {pretrained}")

    monkeypatch.setattr(timm, "create_model", fail)
    message = f"expected the weights of {TINY} from the model hub, which cannot be reached. Set "
    with pytest.raises(ValueError, match=rf"train\.pretrained: {message}train\.pretrained"):
        vit_of(TINY, "timm")
    with pytest.raises(ValueError, match=rf"saliency\.weights: {message}saliency\.weights"):
        create_feature_network(SaliencyConfig(backbone=TINY, weights="timm"))


def test_weights_of_another_network_are_one_line_with_the_file():
    class Held(dict):
        path = "best.pt"

    other = Held(model=torch.nn.Linear(3, 2).state_dict())
    with pytest.raises(
        ValueError, match=r"^best\.pt: expected weights of its own settings"
    ) as error:
        load_weights(torch.nn.Linear(2, 2), other)
    assert "\n" not in str(error.value)
