"""The exported second stage, run by ONNX Runtime, against PyTorch."""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.measuring import Row, Step
from configs import SegmentationConfig
from exporting.formats import traced, write_onnx
from exporting.models import Exportable
from segmentation.networks import build_network

ENCODER = SegmentationConfig().encoder
SMALL, FULL = (1, (64, 96)), (8, (224, 224))  # images, size


def step_of(is_ours: bool, small: bool, device: str) -> Step:
    """Return a forward pass; its result is the logits."""
    count, size = SMALL if small else FULL
    torch.manual_seed(0)
    model = build_network("deeplabv3plus", ENCODER, "none", 4).eval()
    images = torch.randn(count, 3, *size, generator=torch.Generator().manual_seed(0))
    if not is_ours:
        return torch.no_grad()(lambda: model(images).numpy())
    one = Exportable("segmentation", model, ("logits",), size, (32, 32), {})
    with TemporaryDirectory() as folder:
        run = write_onnx(one, traced(one), Path(folder) / "model.onnx")
    return lambda: run(images)[0]


ROW = Row(
    "8 images of 224 x 224 through the exported DeepLabV3+, EfficientNet-B0",
    "PyTorch eager",
    partial(step_of, True),
    partial(step_of, False),
    target=2.0,
    tolerance=1e-3,
    devices=("cpu",),
)
