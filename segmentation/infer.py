"""Predict the masks of a split with the trained segmentation network.

Reads segmentation/checkpoint.pt and images; writes predictions/<name>.png (mask values, VOC
palette) at native image size, predictions/scores.csv, how surely each class is in each image, and
predictions/held_out.json, the same of the training images that were held out (`val`), which the
verdicts of predict.py are learnt from. Regions smaller than nearly all of their class in the pseudo
labels are left out. No image label and no mask is used.

Probabilities are averaged with those of the mirror image; segmentation.pamr_steps moves them to the
edges of the image.

With segmentation.tile above 0 the network sees each image as overlapping tiles, whose logits are
blended.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from configs.command_line import run_stage, stage_parser
from datasets.files import write_csv, write_mask
from execution import ranks
from execution.progress import progress
from inference.models import segmenter_of
from models.device import select_device
from pipeline import next_step
from runfolder.checkpoint import check_classes, load_checkpoint
from runfolder.held_out import write_held_out
from runfolder.run import MaskMeta, begin_folder, open_run, write_meta
from runfolder.verdicts import SCORES_NAME


def main(argv: Sequence[str] | None = None) -> None:
    """Write the prediction of every image of a split."""
    parser = stage_parser(__doc__)
    parser.prog = "python -m segmentation.infer"
    parser.add_argument(
        "--split",
        metavar="SPLIT",
        help="train, fit, val or test (default: data.eval_split)",
    )
    args = parser.parse_args(argv)
    run = open_run(args)
    device = ranks.join(select_device(args.device))
    checkpoint = load_checkpoint(run.segmentation_checkpoint(), "python -m segmentation.train")
    class_names = run.data.class_names
    check_classes(checkpoint, class_names)
    segmenter = segmenter_of(run, checkpoint, device)
    records = run.data.split(args.split or run.config.data.eval_split)

    run.begin_stage(run.prediction_dir)
    begin_folder(run.prediction_dir)
    scores: dict[str, list[float]] = {}
    pixels = np.zeros(len(class_names) + 1, np.int64)
    own = ranks.part(records, run.config.segmentation.batch_size)
    segmented = segmenter.over(own, run.config.data.workers)
    for record, _, logits in progress(segmented, "predictions", len(own)):
        prediction = segmenter.mask(logits)
        scores[record.name] = segmenter.scores(logits).tolist()
        write_mask(run.prediction_dir / f"{record.name}.png", prediction)
        pixels += np.bincount(prediction.reshape(-1), minlength=len(pixels))
    names = [record.name for record in records]
    rest = [record for record in run.data.split("val") if record.name not in set(names)]
    rest = ranks.part(rest, run.config.segmentation.batch_size)
    for record, _, logits in progress(
        segmenter.over(rest, run.config.data.workers), "held out", len(rest)
    ):
        scores[record.name] = segmenter.scores(logits).tolist()
    for of_rank in ranks.gathered(scores):
        scores |= of_rank
    pixels = sum(ranks.gathered(pixels))
    if ranks.is_first():
        rows = [[name, *(f"{score:.4f}" for score in scores[name])] for name in names]
        write_csv(run.prediction_dir / SCORES_NAME, [["name", *class_names], *rows])
        write_held_out(run, scores)
    settings = dataclasses.asdict(run.config.segmentation)
    made_from = {"checkpoint": checkpoint.path.name, "progress": checkpoint["progress"]}
    masked = checkpoint.get("masked", [])
    write_meta(run.prediction_dir, MaskMeta(settings, made_from, masked))
    shares = zip(("background", *class_names), 100 * pixels / pixels.sum(), strict=True)
    print(f"wrote {len(records)} masks to {run.prediction_dir}/")
    print("area: " + ", ".join(f"{name} {share:.2f} %" for name, share in shares))
    if args.split != "fit":  # evaluation.py scores train, val and test
        print(next_step("predictions", run) + (f" --split {args.split}" if args.split else ""))


if __name__ == "__main__":
    run_stage(main)
