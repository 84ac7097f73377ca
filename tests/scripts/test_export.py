"""Exported files say what PyTorch says, at any size and batch; others are not kept."""

import importlib.util
import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from timm.layers import create_conv2d
from torch import nn

import export
from configs import from_dict, to_dict
from datasets.files import write_image
from exporting import compared, formats
from exporting.models import Exportable, MirrorAveraged
from inference.segment import averaged
from models.stac import build_stac
from runfolder.checkpoint import save_checkpoint
from segmentation.networks import build_network

CLASSES = ["inclusion", "patches"]
ONNX_NAMES = {"segmentation": "model.onnx", "localiser": "localiser.onnx"}

needs_export = pytest.mark.skipif(not export.CAN_EXPORT, reason="PyTorch 2.5 cannot export")


def write_run(out, backbone, encoder, network, cam_type="fused"):
    """Write untrained checkpoints of both stages; of one where the other has no name."""
    train = {"backbone": backbone or "deit_tiny_patch16_224", "pretrained": "none", "depth": 2}
    train |= {"image_size": [32, 32], "projection_width": 8, "attention_layers": 1}
    train |= {"pixel_block": int(cam_type == "pixel")}
    segmentation = {"network": network, "encoder": encoder, "pretrained": "none"}
    segmentation |= {"image_size": [64, 64]}
    sections = {"train": train, "segmentation": segmentation if encoder else {}}
    sections |= {"cam": {"types": [cam_type]}, "pseudo_label": {"cam_type": cam_type}}
    config = from_dict(sections)
    content = {"config": to_dict(config), "class_names": CLASSES, "progress": {}}
    content |= {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    torch.manual_seed(0)
    if backbone:
        stac = build_stac(config.train, len(CLASSES))
        save_checkpoint(out / "stac/checkpoint.pt", content | {"model": stac.state_dict()})
    if encoder:
        model = build_network(network, encoder, "none", len(CLASSES) + 1)
        save_checkpoint(out / "segmentation/best.pt", content | {"model": model.state_dict()})


@pytest.fixture(autouse=True, scope="module")
def short_timing():
    """Time each side once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compared, "BLOCKS", 1)
        patch.setattr(compared, "BLOCK", 1)
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, size in (("a.png", (50, 70)), ("b.png", (64, 64)), ("c.png", (33, 40))):
        write_image(root / name, rng.integers(0, 255, (*size, 3), np.uint8))
    return root


@pytest.fixture(scope="module")
def exported(tmp_path_factory, photos):
    """Export both models of a run in both formats."""
    run = tmp_path_factory.mktemp("run")
    kept = {"raw": {"agreement": [0.1, 0.2]}, "refined": {"agreement": [0.3, 0.4]}}
    (run / "thresholds.json").write_text(json.dumps({"fused": kept}))
    write_run(run, "deit_tiny_patch16_224", "tu-resnet10t", "deeplabv3plus")
    export.main([str(photos), "--run", str(run)])
    return run


@needs_export
def test_all_files_are_written_and_nothing_else(exported):
    names = sorted(path.name for path in (exported / "exported").iterdir())
    models = ["localiser.onnx", "localiser.pt2", "model.onnx", "segmentation.pt2"]
    assert names == sorted(
        [*models, "README.md", "model.json", "stac_arrays.py", "stac_files.py", "stac_onnx.py"]
    )


@needs_export
def test_onnx_takes_any_batch_and_size_and_agrees_with_the_program(exported):
    torch.manual_seed(1)
    for name, sizes in (
        ("segmentation", ((1, 64, 64), (3, 96, 160), (5, 32, 48))),
        ("localiser", ((1, 32, 32), (3, 64, 48), (2, 96, 32))),
    ):
        folder = exported / "exported"
        session = onnxruntime.InferenceSession(folder / ONNX_NAMES[name])
        module = torch.export.load(folder / f"{name}.pt2").module()
        for batch, height, width in sizes:
            images = torch.randn(batch, 3, height, width)
            wanted = formats.as_tuple(module(images))
            for got, want in zip(session.run(None, {"image": images.numpy()}), wanted, strict=True):
                np.testing.assert_allclose(got, want.detach().numpy(), atol=1e-4)
            first = (batch, 3, height, width) if name == "segmentation" else (batch, 2)
            assert wanted[0].shape[: len(first)] == first


def test_the_graph_averages_as_predictions_do():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 3)).eval()
    images = torch.randn(2, 3, 9, 14)
    with torch.no_grad():
        got = MirrorAveraged(network)(images)
    torch.testing.assert_close(got, averaged(network, images))
    assert (got - network(images).log_softmax(1)).abs().max() > 0.01  # it does average


@needs_export
def test_metadata_say_how_the_model_is_used(exported):
    for name in ("segmentation", "localiser"):
        folder = exported / "exported"
        props = onnx.load(folder / ONNX_NAMES[name]).metadata_props
        values = {p.key: p.value for p in props}
        assert json.loads(values["class_names"]) == CLASSES
        assert json.loads(values["mean"]) == [0.4, 0.5, 0.6]
        assert json.loads(values["multiple_of"]) == [16, 16]
        extra = {"metadata.json": ""}
        torch.export.load(folder / f"{name}.pt2", extra_files=extra)
        content = json.loads(extra["metadata.json"])
        assert content["std"] == [0.2, 0.3, 0.4]
        assert content["image_size"] == ([64, 64] if name == "segmentation" else [32, 32])
        assert content.get("thresholds") == ([0.3, 0.4] if name == "localiser" else None)


@needs_export
@pytest.mark.parametrize(
    ("backbone", "encoder", "network", "form", "cam_type"),
    [
        ("vit_small_patch14_dinov2", None, None, "onnx", "pixel"),
        ("vit_tiny_patch16_224", None, None, "torch", "attention"),
        (None, "tu-resnet10t", "unet", "onnx", "fused"),
        (None, "mit_b0", "segformer", "torch", "fused"),
    ],
)
def test_other_models_are_exported(
    tmp_path, photos, backbone, encoder, network, form, cam_type, capsys
):
    write_run(tmp_path, backbone, encoder, network, cam_type)
    export.main([str(photos / "a.png"), "--run", str(tmp_path), "--format", form])
    assert capsys.readouterr().out.count("differs from PyTorch by at most") == 1


@needs_export
def test_padding_by_the_size_of_the_image_is_exported(tmp_path):
    # As encoders that timm took over from TensorFlow pad; a whole one takes minutes to trace.
    torch.manual_seed(0)
    layers = [create_conv2d(3, 4, 3, stride=2, padding="same"), nn.ReLU()]
    model = nn.Sequential(*layers, create_conv2d(4, 2, 5, stride=2, padding="same")).eval()
    one = Exportable("small", model, ("logits",), (32, 32), (4, 4), {})
    program = formats.traced(one)
    run_onnx = formats.write_onnx(one, program, tmp_path / "small.onnx")
    for batch, height, width in ((1, 32, 32), (3, 20, 44)):
        images = torch.randn(batch, 3, height, width)
        wanted = model(images)
        assert wanted.shape == (batch, 2, height // 4, width // 4)
        torch.testing.assert_close(program.module()(images), wanted)
        np.testing.assert_allclose(run_onnx(images)[0], wanted.detach().numpy(), atol=1e-5)


@needs_export
def test_a_file_that_differs_is_not_kept(tmp_path, photos, monkeypatch):
    write_run(tmp_path, "deit_tiny_patch16_224", None, None)

    def differing(one, program, path):
        run_file = formats.write_program(one, program, path)
        return lambda batch: tuple(x + 0.01 for x in run_file(batch))

    monkeypatch.setitem(formats.WRITERS, "torch", differing)
    with pytest.raises(ValueError, match="differ by up to 1.00e-02"):
        export.main([str(photos), "--run", str(tmp_path), "--format", "torch"])
    assert list((tmp_path / "exported").iterdir()) == []


@needs_export
def test_openvino_that_is_not_there_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(
        ValueError, match=r"openvino, which is optional, got none\. Run pip install"
    ):
        export.main([str(tmp_path), "--run", str(tmp_path), "--format", "openvino"])


@needs_export
@pytest.mark.skipif(importlib.util.find_spec("openvino") is None, reason="openvino is optional")
def test_openvino_files_come_with_onnx_and_agree_with_it(tmp_path, photos, capsys):
    import openvino

    write_run(tmp_path, None, "tu-resnet10t", "unet")
    export.main([str(photos), "--run", str(tmp_path), "--format", "openvino"])
    folder = tmp_path / "exported"
    names = {path.name for path in folder.iterdir()}
    assert {"model.onnx", "model.xml", "model.bin", "model.json"} <= names
    assert not {name for name in names if name.startswith(".")}
    assert capsys.readouterr().out.count("OpenVINO      median") == 1
    images = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0)).numpy()
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    hints = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(folder / "model.xml", "CPU", hints)
    wanted = session.run(None, {"image": images})[0]
    np.testing.assert_allclose(compiled(images)[0], wanted, atol=1e-3)


@needs_export
def test_no_pictures_is_a_clear_error(tmp_path):
    write_run(tmp_path, "deit_tiny_patch16_224", None, None)
    with pytest.raises(FileNotFoundError, match="expected a picture"):
        export.main([str(tmp_path / "none"), "--run", str(tmp_path)])


@needs_export
def test_what_cannot_be_exported_is_a_clear_error(tmp_path, photos, monkeypatch):
    write_run(tmp_path, "deit_tiny_patch16_224", None, None)

    def failing(one, program, path):
        raise RuntimeError("no such operator")

    monkeypatch.setitem(formats.WRITERS, "onnx", failing)
    with pytest.raises(ValueError, match="got: no such operator Nothing was written"):
        export.main([str(photos), "--run", str(tmp_path), "--format", "onnx"])


def test_pytorch_2_5_is_refused_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "CAN_EXPORT", False)

    with pytest.raises(ValueError, match=r"^export\.py: expected PyTorch 2\.6 or newer, as older"):
        export.main([str(tmp_path), "--run", str(tmp_path)])
