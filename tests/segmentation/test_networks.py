import os
from pathlib import Path
from typing import get_args, get_type_hints

import huggingface_hub.constants
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from configs import SegmentationConfig
from configs.command_line import ROOT
from segmentation.networks import OUTPUT_STRIDE, STRIDES, build_network, network_size, normalisation

LITE0 = "tf_efficientnet_lite0"
SHARED = Path(os.environ.get("STAC_SHARED", ROOT.parent / "shared"))


@pytest.mark.parametrize(
    ("network", "encoder"),
    [
        ("deeplabv3plus", "resnet18"),
        ("deeplabv3", "resnet50"),
        ("segformer", "mit_b0"),
        ("unet", "tu-resnet10t"),
    ],
)
def test_every_network_gives_logits_of_every_mask_class_at_input_size(network, encoder):
    model = build_network(network, encoder, "none", 4).eval()

    height, width = network_size((33, 50), network)
    assert (height % STRIDES[network], width % STRIDES[network]) == (0, 0)
    with torch.no_grad():
        assert model(torch.zeros(1, 3, height, width)).shape == (1, 4, height, width)


def test_sizes_are_rounded_up_to_what_a_network_takes():
    assert network_size((37, 50), "deeplabv3plus") == (48, 64)
    assert network_size((32, 48), "deeplabv3plus") == (32, 48)
    assert network_size((37, 50), "segformer") == (64, 64)
    assert set(STRIDES) == set(get_args(get_type_hints(SegmentationConfig)["network"]))


def test_deeplabv3_takes_the_encoder_weights_of_a_file(tmp_path):
    weights = torchvision.models.resnet50(weights=None).state_dict()
    torch.save(weights, tmp_path / "resnet50.pth")
    model = build_network("deeplabv3", "resnet50", str(tmp_path / "resnet50.pth"), 2)
    assert torch.equal(model.model.backbone.conv1.weight, weights["conv1.weight"])


def test_deeplabv3_refuses_other_encoders():
    with pytest.raises(ValueError, match="expected resnet50 or resnet101 with deeplabv3"):
        build_network("deeplabv3", "mit_b0", "none", 2)


def test_timm_encoder_is_dilated_to_the_stride():
    network = build_network("deeplabv3plus", f"tu-{LITE0}", "none", 4)
    features = network.encoder(torch.zeros(1, 3, 64, 96))

    assert features[-1].shape[-2:] == (64 // OUTPUT_STRIDE, 96 // OUTPUT_STRIDE)


@pytest.mark.parametrize(
    ("encoder", "expected"),
    [
        ("resnet17", r"segmentation\.encoder: expected .* got 'resnet17'\. Did you mean resnet18"),
        ("tu-resnet17", r"got 'tu-resnet17'\. Did you mean tu-resnet"),
        ("tu-pvt_v2_b0", r"that deeplabv3plus can take .*output_stride"),
    ],
)
def test_unfit_encoders_are_refused(encoder, expected):
    with pytest.raises(ValueError, match=expected):
        build_network("deeplabv3plus", encoder, "none", 4)


def test_failed_download_names_the_remedies(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))

    expected = r"weights of resnet18, got: .* Set segmentation\.pretrained=none or to a local"
    with pytest.raises(ValueError, match=expected):
        build_network("deeplabv3plus", "resnet18", "imagenet", 4)


def test_imagenet_weights_of_timm_are_looked_for_locally_first(monkeypatch, tmp_path):
    state = build_network("deeplabv3plus", "tu-resnet18", "none", 4).encoder.model.state_dict()
    torch.save(state, tmp_path / "resnet18.pth")
    monkeypatch.setenv("STAC_WEIGHTS", str(tmp_path))

    encoder = build_network("deeplabv3plus", "tu-resnet18", "imagenet", 4).encoder.model

    assert torch.equal(encoder.conv1.weight, state["conv1.weight"])


def test_normalisation_is_that_of_the_encoder():
    assert normalisation(f"tu-{LITE0}", "none") == ((0.5,) * 3, (0.5,) * 3)
    imagenet = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert normalisation("resnet18", "none") == imagenet
    assert normalisation("tu-resnet18", "none") == imagenet


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    """An encoder's state in half precision, with the classifier that published files have."""
    torch.manual_seed(1)
    state = build_network("deeplabv3plus", "resnet18", "none", 4).encoder.state_dict()
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    return half | {"fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}


def test_weights_file_is_loaded_into_the_encoder(weights, tmp_path):
    torch.save({"state_dict": {f"module.{k}": v for k, v in weights.items()}}, tmp_path / "w.pth")
    save_file(weights, tmp_path / "w.safetensors")

    for name in ("w.pth", "w.safetensors"):
        for encoder in ("resnet18", "tu-resnet18"):
            network = build_network("deeplabv3plus", encoder, str(tmp_path / name), 4)
            loaded = network.encoder.model if encoder.startswith("tu-") else network.encoder
            for key, value in loaded.state_dict().items():
                assert torch.equal(value, weights[key].to(value.dtype)), key
            assert loaded.conv1.weight.dtype == torch.float32


def test_stages_that_timm_renames_find_their_weights(tmp_path):
    state = build_network("deeplabv3plus", "tu-convnext_atto", "none", 4).encoder.model.state_dict()
    published = {k.replace("_", ".", 1) if k.startswith("st") else k: v for k, v in state.items()}
    assert "stages.0.blocks.0.norm.weight" in published
    torch.save(published, tmp_path / "w.pth")

    network = build_network("deeplabv3plus", "tu-convnext_atto", str(tmp_path / "w.pth"), 4)

    for key, value in network.encoder.model.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_weights_of_another_encoder_are_refused(weights, tmp_path):
    def refused(state: dict[str, torch.Tensor], expected: str) -> None:
        torch.save(state, tmp_path / "w.pth")
        with pytest.raises(ValueError, match=rf"w\.pth: expected the weights of .*{expected}"):
            build_network("deeplabv3plus", "resnet18", str(tmp_path / "w.pth"), 4)

    without = {k: v for k, v in weights.items() if k != "layer3.0.conv1.weight"}
    refused(without, r"1 are missing \(layer3\.0\.conv1\.weight\), 0 have no place")
    refused(weights | {"layer9.weight": torch.zeros(1)}, r"0 are .*, 1 have no place \(layer9\.wei")
    refused(weights | {"conv1.weight": torch.zeros(64, 1, 7, 7)}, r"1 have another shape \(conv1\.")


def test_unreadable_weights_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a weights file\. Set segmentation\.pre"):
        build_network("deeplabv3plus", "resnet18", str(tmp_path / "none.pth"), 4)
    (tmp_path / "w.pth").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"w\.pth: expected a weights file, got a damaged file"):
        build_network("deeplabv3plus", "resnet18", str(tmp_path / "w.pth"), 4)


@pytest.mark.skipif(
    not (SHARED / f"weights/{LITE0}.fp16.pth").is_file(),
    reason="the shared weights are not here; STAC_SHARED names their folder",
)
def test_published_half_precision_weights_fit_their_encoder():
    path = SHARED / f"weights/{LITE0}.fp16.pth"

    encoder = build_network("deeplabv3plus", f"tu-{LITE0}", str(path), 4).encoder.model

    published = torch.load(path, weights_only=True)
    assert torch.equal(encoder.conv_stem.weight, published["conv_stem.weight"].float())
    assert encoder.conv_stem.weight.dtype == torch.float32
