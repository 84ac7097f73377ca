"""Write the models of a run as ONNX files and torch.export programs, checked on real images.

  python export.py photos/ --run runs/neu_seg

Writes TO/segmentation.onnx and .pt2, and TO/localiser.onnx and .pt2, of the models that the run
has. Batch, height and width are free (multiples of the `multiple_of` in the metadata). Inputs are
`image`, RGB in [0, 1], resized, less mean, by std. Outputs:

  segmentation  logits (B, K + 1, H, W), background first
  localiser     cam (B, K, h, w), one value a patch (pixel CAMs: one for 4 x 4 pixels), to be
                scaled to [0, 1] per image and class, and scores (B, K), the probability that the
                image shows the class

Each file is compared with the PyTorch model on the given pictures, at two sizes, alone and in a
batch; a file that differs by more than 1e-3 anywhere is not kept. The metadata (metadata_props of
the ONNX model, metadata.json inside the .pt2) hold all that is needed to use the model: sizes,
mean, std, class names, thresholds and what to do with the outputs. Localisers on a DINOv3 backbone
cannot be exported yet, as its position code is bound to the size it is traced with.
"""

import argparse
import json
import logging
import unittest.mock
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from packaging.version import Version
from torch import Tensor, nn

from configs.command_line import run_stage
from datasets.atomic import temporary_name
from datasets.files import list_images, read_image
from datasets.transforms import as_image, eval_transform
from inference.localise import label_thresholds
from inference.models import load_trained, run_in
from inference.segment import network_from_checkpoint
from models.cam import raw_cam
from models.stac import Stac, image_scores, stac_from_checkpoint
from runfolder.checkpoint import Checkpoint
from runfolder.run import Run
from runfolder.thresholds import thresholds_for_new_images
from segmentation.networks import STRIDES, network_size

CAN_EXPORT = Version(torch.__version__) >= Version("2.6")  # 2.5 was tried
TOLERANCE = 1e-3  # largest difference to PyTorch of a file that is kept
MAX_IMAGES = 4  # that are compared
OPSET = 18
FORMATS = {"onnx": ".onnx", "torch": ".pt2"}


class Exportable(NamedTuple):
    """A model and all that its user must know."""

    name: str
    model: nn.Module
    outputs: tuple[str, ...]
    size: tuple[int, int]  # (H, W) it was trained with
    multiple: tuple[int, int]  # H and W are whole multiples
    metadata: dict[str, Any]


class LocaliserOutputs(nn.Module):
    """Gives the two things that a user of the localiser wants."""

    def __init__(self, stac: Stac, cam_type: str):
        super().__init__()
        self.stac = stac
        self.cam_type = cam_type

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return cam (B, K, h, w) and scores (B, K) of images (B, 3, H, W)."""
        output = self.stac(image)
        return raw_cam(output, self.cam_type), image_scores(output)


def main(argv: Sequence[str] | None = None) -> None:
    """Export, compare and write."""
    args = _parser().parse_args(argv)
    if not CAN_EXPORT:
        raise ValueError(
            f"export.py: expected PyTorch 2.6 or newer, as older ones cannot export models of free "
            f"size, got {torch.__version__}. Install a newer one to export; all else works."
        )
    run = run_in(Path(args.run))
    to = Path(args.to) if args.to else run.exported_dir
    trained = load_trained(run)
    files = [file for entry in args.images for file, _ in list_images(entry)][:MAX_IMAGES]
    to.mkdir(parents=True, exist_ok=True)
    models = [exportable_segmenter(trained.segmentation)] if trained.segmentation else []
    models += [exportable_localiser(run, trained.localiser)] if trained.localiser else []
    for one in models:
        batches = check_batches(one, files)
        with torch.no_grad():
            wanted = [_as_tuple(one.model(batch)) for batch in batches]
        program = traced(one)
        for form in args.format:
            path = to / f"{one.name}{FORMATS[form]}"
            temporary = temporary_name(path)
            try:
                try:
                    run_file = WRITERS[form](one, program, temporary)
                    difference = largest_difference(run_file, batches, wanted)
                except Exception as error:  # libraries raise kinds of their own
                    reason = " ".join(str(error).split())[:300]
                    raise ValueError(
                        f"{path}: expected that this model can be exported as {form}, got: "
                        f"{reason} Nothing was written; leave this format out (--format)."
                    ) from error
                if not difference <= TOLERANCE:  # also where it is no number
                    raise ValueError(
                        f"{path}: expected what PyTorch computes, got values that differ by up to "
                        f"{difference:.2e} (allowed: {TOLERANCE:g}). Nothing was written; please "
                        "report the model and the versions of torch and onnxruntime."
                    )
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            print(
                f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB): differs from PyTorch by at "
                f"most {difference:.1e}, {len(files)} images, {len(batches)} batches"
            )


def exportable_segmenter(checkpoint: Checkpoint) -> Exportable:
    """Return the segmentation network of a run, to give logits."""
    settings = checkpoint.config.segmentation
    size = network_size(settings.image_size, settings.network)
    steps = ["softmax over axis 1 gives probabilities", "resize bilinearly to the image's size"]
    steps.append("argmax over axis 1: 0 is background, k is class k of class_names, from 1")
    steps.append(
        "a region of class k, joined at sides and corners, that covers less of the image than "
        "least_areas[k - 1] becomes what most of its border touches"
    )
    unit = STRIDES[settings.network]
    metadata = _metadata(checkpoint, size, (unit, unit), steps)
    metadata["least_areas"] = list(checkpoint.get("least_areas", ()))
    model = network_from_checkpoint(checkpoint)
    return Exportable("segmentation", model, ("logits",), size, (unit, unit), metadata)


def exportable_localiser(run: Run, checkpoint: Checkpoint) -> Exportable:
    """Return the localiser of a run, to give CAMs and image scores."""
    config = run.config
    cam_type = config.pseudo_label.cam_type
    stac = stac_from_checkpoint(checkpoint)
    unit = stac.encoder.patch_size
    size = tuple(n * patch for n, patch in zip(stac.encoder.grid_size, unit, strict=True))
    steps = [
        "a class is present where its score is at least its label threshold",
        "resize cam bilinearly to the image's size, scale each present class to [0, 1]",
        "rescale each present class, linearly below and above its threshold, so that this is 0.5",
        "a pixel is of the present class with the highest value if that is above 0.5, "
        "else background",
    ]
    metadata = _metadata(checkpoint, size, unit, steps) | {
        "cam_type": cam_type,
        "scales": list(config.cam.scales),
        "label_thresholds": label_thresholds(config.cam, checkpoint),
        "thresholds": thresholds_for_new_images(run, checkpoint["class_names"]),
    }
    model = LocaliserOutputs(stac, cam_type).eval()
    return Exportable("localiser", model, ("cam", "scores"), size, unit, metadata)


def _metadata(
    checkpoint: Checkpoint, size: tuple[int, int], multiple: tuple[int, int], steps: Sequence[str]
) -> dict[str, Any]:
    return {
        "class_names": list(checkpoint["class_names"]),
        "image_size": list(size),
        "multiple_of": list(multiple),
        "colour": "RGB",
        "range": "[0, 1] before mean and std",
        "mean": list(checkpoint["mean"]),
        "std": list(checkpoint["std"]),
        "resize": "bilinear with antialiasing",
        "postprocessing": list(steps),
    }


def check_batches(one: Exportable, files: Sequence[Path]) -> list[Tensor]:
    """Return the pictures as batches: all at the trained size, and the first at another."""
    other = (one.size[0] + one.multiple[0], one.size[1] + 2 * one.multiple[1])
    batches = []
    for size, chosen in ((one.size, files), (one.size, files[:1]), (other, files[:1])):
        transform = eval_transform(size, one.metadata["mean"], one.metadata["std"])
        batches.append(torch.stack([transform(as_image(read_image(file))) for file in chosen]))
    return batches


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


def write_onnx(
    one: Exportable, program: torch.export.ExportedProgram, path: Path
) -> Callable[[Tensor], tuple[np.ndarray, ...]]:
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
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda batch: tuple(session.run(None, {"image": batch.numpy()}))


def write_program(
    one: Exportable, program: torch.export.ExportedProgram, path: Path
) -> Callable[[Tensor], tuple[np.ndarray, ...]]:
    """Write a torch.export program and return how it is run."""
    torch.export.save(program, path, extra_files={"metadata.json": json.dumps(one.metadata)})
    module = torch.export.load(path).module()
    return lambda batch: tuple(x.detach().numpy() for x in _as_tuple(module(batch)))


WRITERS = {"onnx": write_onnx, "torch": write_program}


def largest_difference(
    run_file: Callable[[Tensor], tuple[np.ndarray, ...]],
    batches: Sequence[Tensor],
    wanted: Sequence[tuple[Tensor, ...]],
) -> float:
    """Return the largest absolute difference of any output value."""
    return max(
        float(np.abs(got - want.numpy()).max())
        for batch, outputs in zip(batches, wanted, strict=True)
        for got, want in zip(run_file(batch), outputs, strict=True)
    )


def _as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGES", help="pictures to compare on: files, folders or "
        f"quoted patterns; the first {MAX_IMAGES} are taken")  # fmt: skip
    add("--run", required=True, metavar="DIR", help="folder of the run whose models are exported")
    add("--to", metavar="DIR", help="where to write (default: exported/ in the run's folder)")
    add("--format", nargs="+", choices=tuple(FORMATS), default=list(FORMATS), help="default: both")
    return parser


if __name__ == "__main__":
    run_stage(main)
