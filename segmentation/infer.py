"""Predict the masks of a split with the trained segmentation network.

Reads segmentation/best.pt or checkpoint.pt (segmentation.checkpoint) and images; writes
predictions/<name>.png (mask values, VOC palette) and predictions_colour/<name>.png (RGB picture
of the same colours) at native image size, and predictions/scores.csv, the highest probability of
each class in each image. No image label and no mask is used. Probabilities are averaged over mirror
images and segmentation.scales; segmentation.refine_steps moves them to the edges of the image.

With segmentation.tile above 0 the network sees each image as overlapping tiles, whose logits are
blended.
"""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from configs.command_line import load_run, run_stage, save_config, stage_parser
from datasets.files import read_image, voc_palette, write_image, write_mask
from datasets.pictures import paint_mask
from datasets.sources import read_data
from datasets.transforms import eval_transform
from models.checkpoint import check_classes, load_checkpoint
from models.device import amp_dtype, select_device
from segmentation.networks import network_size
from segmentation.prediction import (
    best_class,
    network_from_checkpoint,
    predict_tiles,
    predict_whole,
    sharpened,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the prediction of every image of a split."""
    parser = stage_parser(__doc__)
    parser.prog = "python -m segmentation.infer"
    parser.add_argument(
        "--split",
        metavar="SPLIT",
        help="train, fit, val or test (default: data.eval_split)",
    )
    parser.add_argument(
        "--overlays", action="store_true", help="also write predictions_overlay/, over the images"
    )
    args = parser.parse_args(argv)
    config, out_dir = load_run(args)
    settings = config.segmentation
    device = select_device(args.device)
    name = "checkpoint.pt" if settings.checkpoint == "last" else "best.pt"
    path = out_dir / "segmentation" / name
    checkpoint = load_checkpoint(path, "segmentation/train.py")

    data = read_data(config.data, out_dir / "labels.csv")
    check_classes(checkpoint, data.class_names, path)
    model = network_from_checkpoint(checkpoint).to(device)
    split = args.split or config.data.eval_split
    records = data.split(split)
    save_config(config, out_dir)
    size = network_size(settings.image_size, settings.network)
    transform = eval_transform(size, checkpoint["mean"], checkpoint["std"])
    predict = predict_tiles if settings.tile else predict_whole
    dtype = amp_dtype(device, settings.amp)
    colours = voc_palette()
    images = {record.name: record.image for record in records}
    scores: list[list[str]] = []
    pixels = np.zeros(len(data.class_names) + 1, np.int64)
    for image_name, logits in tqdm(
        predict(model, records, transform, config, device, dtype),
        total=len(records),
        desc="predictions",
        unit="image",
        disable=None,
        dynamic_ncols=True,
    ):
        seen = settings.refine_steps or args.overlays
        image = read_image(images[image_name]) if seen else np.zeros((0, 0, 3), np.uint8)
        logits = sharpened(logits, image, settings.refine_steps)
        prediction = best_class(logits)
        highest = logits.softmax(dim=0)[1:].amax(dim=(1, 2))
        scores.append([image_name, *(f"{score:.4f}" for score in highest.tolist())])
        write_mask(out_dir / f"predictions/{image_name}.png", prediction)
        write_image(out_dir / f"predictions_colour/{image_name}.png", colours[prediction])
        if args.overlays:
            overlay = np.round(255 * paint_mask(image, prediction)).astype(np.uint8)
            write_image(out_dir / f"predictions_overlay/{image_name}.png", overlay)
        pixels += np.bincount(prediction.reshape(-1), minlength=len(pixels))
    _write_scores(out_dir / "predictions/scores.csv", scores, data.class_names)
    shares = zip(("background", *data.class_names), 100 * pixels / pixels.sum(), strict=True)
    print(f"wrote {len(records)} masks to {out_dir}/: predictions, predictions_colour")
    print("area: " + ", ".join(f"{name} {share:.2f} %" for name, share in shares))
    run = f"--config {out_dir / 'config.toml'} --out {out_dir}"
    print(f"next: python evaluation.py {run} --kind segmentation --split {split}")


def _write_scores(path: Path, rows: Sequence[Sequence[str]], class_names: Sequence[str]) -> None:
    """Write the highest probability of each class in each image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["name", *class_names], *rows])
    temporary.replace(path)


if __name__ == "__main__":
    run_stage(main)
