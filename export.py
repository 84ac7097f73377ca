"""Write the models of a run as a folder that predicts without PyTorch, checked on real images.

  python export.py photos/ --run runs/neu_seg
  python TO/stac_onnx.py photos/ --to masks

The folder TO (default: exported/ in the run's folder) is the product. Its masks, scores and
verdicts are those of predict.py, but for rounding:

  model.onnx      the second stage, averaged with the mirror image
  localiser.onnx  scores of the classes, where the run has a localiser, and CAMs
  model.json      classes, sizes, normalisation, tiles, PAMR, least areas, limits of the verdicts,
                  versions, SHA-256
  stac_onnx.py    the command and the Python module; needs onnxruntime, NumPy and Pillow, and
                  stac_arrays.py and stac_files.py next to it
  README.md       how it is used, and what other languages must know
  *.pt2           the same models for torch.export (segmentation.pt2, localiser.pt2)

`--format onnx openvino` adds model.xml and .bin (package openvino, see requirements-extra.txt).
Batch, height and width are free (multiples of the `multiple_of` in the metadata). Inputs are
`image`, RGB in [0, 1], resized, less mean, by std. Outputs:

  second stage  logits (B, K + 1, H, W), background first
  localiser     cam (B, K, h, w), one value a patch (pixel CAMs: one for 4 x 4 pixels), to be
                scaled to [0, 1] per image and class, and scores (B, K), the probability that the
                image shows the class

Each file is compared with the PyTorch model on the given pictures, at several sizes, alone and in a
batch; a file that differs by more than 1e-3 anywhere is not kept. Then the folder is compared with
predict.py, and both are timed. The files hold their metadata too (metadata_props of the ONNX model,
metadata.json inside the .pt2). Localisers on a DINOv3 backbone cannot be exported yet, as its
position code is bound to the size it is traced with; --no-localiser leaves them out.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from configs.command_line import run_stage, share
from datasets.atomic import temporary_name
from datasets.files import list_images
from exporting.compared import (
    agreement,
    network_latency,
    picture_latency,
    pictures_of,
    reference_of,
)
from exporting.formats import (
    CAN_EXPORT,
    DEFAULT_FORMATS,
    WRITERS,
    RunFile,
    as_tuple,
    file_name,
    import_openvino,
    largest_difference,
    traced,
)
from exporting.models import Exportable, check_batches, exportable_localiser, exportable_segmenter
from exporting.product import FACTS_NAME, Wanted, write_product
from inference.models import load_trained, run_in

TOLERANCE = 1e-3  # largest difference to PyTorch of a file that is kept
MAX_IMAGES = 4  # that are compared
RUNTIMES = {"onnx": "ONNX Runtime", "openvino": "OpenVINO"}


def main(argv: Sequence[str] | None = None) -> None:
    """Export, compare and write."""
    args = _parser().parse_args(argv)
    if not CAN_EXPORT:
        raise ValueError(
            f"export.py: expected PyTorch 2.6 or newer, as older ones cannot export models of free "
            f"size, got {torch.__version__}. Install a newer one to export; all else works."
        )
    formats = [form for form in WRITERS if form in args.format]
    if "openvino" in formats:
        import_openvino()
        formats = ["onnx", *(form for form in formats if form != "onnx")]  # it is made from this
    run = run_in(Path(args.run))
    to = Path(args.to) if args.to else run.exported_dir
    trained = load_trained(run)
    files = [file for entry in args.images for file, _ in list_images(entry)][:MAX_IMAGES]
    to.mkdir(parents=True, exist_ok=True)

    # The models, each with what PyTorch says.
    models = [exportable_segmenter(trained.segmentation)] if trained.segmentation else []
    if trained.localiser and not args.no_localiser:
        models.append(exportable_localiser(run, trained.localiser))
    is_product = bool(trained.segmentation) and "onnx" in formats
    if is_product:
        (to / FACTS_NAME).unlink(missing_ok=True)  # of another model, until all is written
    runtimes: dict[str, RunFile] = {}  # of the second stage
    for one in models:
        batches = check_batches(one, files)
        with torch.no_grad():
            wanted = [as_tuple(one.model(batch)) for batch in batches]
        program = traced(one)
        for form in formats:
            path = to / file_name(one, form)
            run_file, difference = write_checked(one, program, form, path, (batches, wanted))
            if one.name == "segmentation" and form in RUNTIMES:
                runtimes[RUNTIMES[form]] = run_file
            print(
                f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB): differs from PyTorch by at "
                f"most {difference:.1e}, {len(files)} images, {len(batches)} batches"
            )
    if not is_product:
        print("no model.json and stac_onnx.py: they need the second stage as onnx")
        return

    # The folder, against predict.py.
    write_product(run, models, to, Wanted(args.max_false_alarm, args.min_recall))
    reference = reference_of(run, trained, with_localiser=len(models) > 1)
    pictures = pictures_of(files)
    try:
        equal, scores = agreement(to, reference, pictures)
    except ValueError:
        (to / FACTS_NAME).unlink()
        raise
    print(
        f"wrote {to}/: masks equal those of predict.py in {100 * equal:.3f} % of the pixels of "
        f"{len(pictures)} pictures, scores differ by at most {scores:.4f}"
    )
    print("\n".join(network_latency(models[0], runtimes)))
    print("\n".join(picture_latency(to, reference, pictures)))


def write_checked(
    one: Exportable,
    program: torch.export.ExportedProgram,
    form: str,
    path: Path,
    checked: tuple[list[torch.Tensor], list[tuple[torch.Tensor, ...]]],
) -> tuple[RunFile, float]:
    """Write a file that says what PyTorch says, or none.

    Args:
        one: the model.
        program: its trace.
        form: of the file.
        path: of the file.
        checked: batches, and the outputs of each.

    Returns:
        How the file is run, and the largest difference.

    Raises:
        ValueError: the model cannot be written like this, or the file differs.
    """
    temporary = temporary_name(path)
    try:
        try:
            run_file = WRITERS[form](one, program, temporary)
            difference = largest_difference(run_file, *checked)
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
        weights = temporary.with_suffix(".bin")  # of OpenVINO
        if weights.is_file():
            weights.replace(path.with_suffix(".bin"))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        temporary.with_suffix(".bin").unlink(missing_ok=True)
    return run_file, difference


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGES", help="pictures to compare on: files, folders or "
        f"quoted patterns; the first {MAX_IMAGES} are taken")  # fmt: skip
    add("--run", required=True, metavar="DIR", help="folder of the run whose models are exported")
    add("--to", metavar="DIR", help="where to write (default: exported/ in the run's folder)")
    add("--format", nargs="+", choices=tuple(WRITERS), default=list(DEFAULT_FORMATS),
        help=f"default: {' '.join(DEFAULT_FORMATS)}; openvino comes with onnx")  # fmt: skip
    add("--no-localiser", action="store_true", help="leave the localiser out: scores and verdicts "
        "are those of the second stage alone, and several times faster")  # fmt: skip
    add("--max-false-alarm", type=share, default=0.05, metavar="SHARE", help="of good images that "
        "may be called defective, among those held out (default: 0.05)")  # fmt: skip
    add("--min-recall", type=share, default=0.99, metavar="SHARE", help="of defective images that "
        "must not be called ok, among those held out (default: 0.99)")  # fmt: skip
    return parser


if __name__ == "__main__":
    run_stage(main)
