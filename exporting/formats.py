"""Models as files of ONNX, torch.export and OpenVINO, each with the way it is run."""

import importlib
import json
import logging
import unittest.mock
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from packaging.version import Version
from torch import Tensor

from exporting.models import Exportable

CAN_EXPORT = Version(torch.__version__) >= Version("2.6")  # 2.5 was tried
OPSET = 18
ENDINGS = {"onnx": ".onnx", "torch": ".pt2", "openvino": ".xml"}
DEFAULT_FORMATS = ("onnx", "torch")

RunFile = Callable[[Tensor], tuple[np.ndarray, ...]]


def file_name(one: Exportable, form: str) -> str:
    """Return the name of a model's file; the second stage is the `model` of the folder."""
    is_product = one.name == "segmentation" and form != "torch"
    return f"{'model' if is_product else one.name}{ENDINGS[form]}"


def traced(one: Exportable) -> torch.export.ExportedProgram:
    """Trace a model with free batch, height and width."""
    # Of a size that is neither the trained one nor square, so that nothing specialises on it.
    rows, columns = (n // m + k for n, m, k in zip(one.size, one.multiple, (1, 2), strict=True))
    example = torch.zeros(2, 3, rows * one.multiple[0], columns * one.multiple[1])
    free = {
        0: torch.export.Dim("batch", min=1, max=4096),
        2: one.multiple[0] * torch.export.Dim("rows", min=2, max=512),
        3: one.multiple[1] * torch.export.Dim("columns", min=2, max=512),
    }
    # timm rounds up through floats, which torch.export cannot store.
    patched = unittest.mock.patch("timm.layers.padding.get_same_padding", same_padding)
    with warnings.catch_warnings(), patched:
        warnings.simplefilter("ignore")
        return torch.export.export(one.model, (example,), dynamic_shapes=(free,))


def same_padding(size: int, kernel_size: int, stride: int, dilation: int) -> int:
    """Return the padding that makes an axis of `size` one of ceil(size / stride)."""
    outputs = -(-size // stride)
    return torch.sym_max((outputs - 1) * stride + (kernel_size - 1) * dilation + 1 - size, 0)


def write_onnx(one: Exportable, program: torch.export.ExportedProgram, path: Path) -> RunFile:
    """Write an ONNX file and return how it is run."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, verbose=False,
            input_names=["image"], output_names=list(one.outputs),
        )  # fmt: skip
    proto = converted.model_proto
    text = {k: v if isinstance(v, str) else json.dumps(v) for k, v in one.metadata.items()}
    onnx.helper.set_model_props(proto, text)
    onnx.checker.check_model(proto)
    onnx.save(proto, path)
    return run_onnx(path)


def run_onnx(path: Path) -> RunFile:
    """Return how an ONNX file is run, with as many threads as PyTorch has."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda batch: tuple(session.run(None, {"image": batch.numpy()}))


def write_program(one: Exportable, program: torch.export.ExportedProgram, path: Path) -> RunFile:
    """Write a torch.export program and return how it is run."""
    torch.export.save(program, path, extra_files={"metadata.json": json.dumps(one.metadata)})
    module = torch.export.load(path).module()
    return lambda batch: tuple(x.detach().numpy() for x in as_tuple(module(batch)))


def write_openvino(one: Exportable, program: torch.export.ExportedProgram, path: Path) -> RunFile:
    """Write .xml and .bin of OpenVINO, in full precision, and return how they are run.

    They are made from the ONNX file, which lies in the same folder by then.
    """
    openvino = import_openvino()
    model = openvino.convert_model(path.with_name(file_name(one, "onnx")))
    for key, value in one.metadata.items():
        model.set_rt_info(value if isinstance(value, str) else json.dumps(value), ["stac", key])
    openvino.save_model(model, path, compress_to_fp16=False)
    hints = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(path, "CPU", hints)
    return lambda batch: tuple(compiled(batch.numpy()).to_tuple())


def import_openvino():
    """Return the package openvino.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module("openvino")
    except ImportError as error:
        raise ValueError(
            "--format openvino: expected the package openvino, which is optional, got none. "
            "Run pip install -r requirements-extra.txt."
        ) from error


WRITERS = {"onnx": write_onnx, "torch": write_program, "openvino": write_openvino}


def largest_difference(
    run_file: RunFile, batches: Sequence[Tensor], wanted: Sequence[tuple[Tensor, ...]]
) -> float:
    """Return the largest absolute difference of any output value."""
    return max(
        float(np.abs(got - want.numpy()).max())
        for batch, outputs in zip(batches, wanted, strict=True)
        for got, want in zip(run_file(batch), outputs, strict=True)
    )


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Return the outputs of a model as a tuple, of one too."""
    return outputs if isinstance(outputs, tuple) else (outputs,)
