"""Turn CAMs into pseudo labels, the training masks of the second stage.

Reads cams/ of the run; writes pseudo_labels/<name>.png (mask values, VOC palette; 255 where the
CAM is too close to the threshold to tell) and, once all are written, pseudo_labels/meta.json. The
threshold comes from the CAMs of the training split alone, without a mask, or is
pseudo_label.threshold where pseudo_label.threshold_rule is "fixed".
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from configs import PseudoLabelConfig
from configs.command_line import load_run, run_stage, save_config, stage_parser
from datasets.files import Cam, read_cam, read_image, write_mask
from datasets.record import BACKGROUND, IGNORE, Record
from datasets.sources import Data, read_data
from evaluation import auto_threshold, pooled_histogram, seed_mask


@dataclass
class Summary:
    """What the pseudo labels of one split look like."""

    num_images: int = 0
    pixels: np.ndarray = field(default_factory=lambda: np.zeros(IGNORE + 1, np.int64))
    without_foreground: list[str] = field(default_factory=list)  # though labelled

    def add(self, record: Record, mask: np.ndarray) -> None:
        """Count one image."""
        values = np.bincount(mask.reshape(-1), minlength=IGNORE + 1)
        self.num_images += 1
        self.pixels += values
        if record.classes and not values[BACKGROUND + 1 : IGNORE].any():
            self.without_foreground.append(record.name)

    def lines(self, class_names: Sequence[str]) -> list[str]:
        """Return the summary as text, areas in %."""
        shares = 100 * self.pixels / self.pixels.sum()
        areas = [f"{n} {shares[i]:.2f} %" for i, n in enumerate(("background", *class_names))]
        lines = [f"area: {', '.join(areas)}, ignored {shares[IGNORE]:.2f} %"]
        empty = self.without_foreground
        listed = f" ({', '.join(empty[:5])}{', ...' if len(empty) > 5 else ''})" if empty else ""
        lines.append(f"labelled, but without any foreground: {len(empty)} images{listed}")
        return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Write the pseudo labels of the training split and the evaluation split."""
    parser = stage_parser(__doc__)
    parser.add_argument(
        "--split",
        nargs="+",
        metavar="SPLIT",
        help="train, val or test (default: train, and data.eval_split if its CAMs are there); "
        "the threshold always comes from train",
    )
    args = parser.parse_args(argv)
    config, out_dir = load_run(args)
    cam_dir, mask_dir = out_dir / "cams", out_dir / "pseudo_labels"
    data = read_data(config.data, out_dir / "labels.csv")
    num_classes = len(data.class_names)
    splits = args.split or default_splits(data, config.data.eval_split, cam_dir)
    for split in dict.fromkeys(["train", *splits]):
        require_cams(data.split(split), cam_dir)

    save_config(config, out_dir)
    (mask_dir / "meta.json").unlink(missing_ok=True)
    threshold = choose_threshold(config.pseudo_label, data.split("train"), cam_dir, num_classes)
    print(f"threshold {threshold:.3f} ({config.pseudo_label.threshold_rule})")
    for split in splits:
        summary = Summary()
        for record in tqdm(data.split(split), desc=f"pseudo labels, {split}", dynamic_ncols=True):
            cam = read_cam_of(record, cam_dir, num_classes)
            mask = pseudo_label(cam, threshold, config.pseudo_label.band)
            _check_size(record, mask, cam_dir)
            write_mask(mask_dir / f"{record.name}.png", mask)
            summary.add(record, mask)
        print(f"{split}: wrote {summary.num_images} pseudo labels to {mask_dir}/")
        print("\n".join(f"  {line}" for line in summary.lines(data.class_names)))
    rule = config.pseudo_label.threshold_rule
    meta = {"threshold": threshold, "threshold_rule": rule, "band": config.pseudo_label.band}
    _write_json(mask_dir / "meta.json", meta)
    print(f"next: python -m segmentation.train --config {args.config} --out {out_dir}")


def pseudo_label(cam: Cam, threshold: float, band: float) -> np.ndarray:
    """Return the seed mask of one image with an uncertain band around the threshold.

    Args:
        cam: its CAMs; without any the mask is all background.
        threshold: background score in [0, 1].
        band: pixels whose highest CAM is less than this away from the threshold become 255.

    Returns:
        (H, W) uint8 mask values.
    """
    mask = seed_mask(cam.cam, cam.classes, threshold)
    if len(cam.classes):
        mask[np.abs(cam.cam.max(axis=0) - threshold) < band] = IGNORE
    return mask


def choose_threshold(
    settings: PseudoLabelConfig, records: Sequence[Record], cam_dir: Path, num_classes: int
) -> float:
    """Return the fixed threshold, or the one that `auto_threshold` finds in the CAMs.

    Raises:
        ValueError: the rule is auto and the CAMs hold no two different values.
    """
    if settings.threshold_rule == "fixed":
        return settings.threshold
    progress = tqdm(records, desc="threshold", unit="image", dynamic_ncols=True)
    cams = (read_cam_of(record, cam_dir, num_classes).cam for record in progress)
    histogram = pooled_histogram(cams)
    try:
        return auto_threshold(histogram)
    except ValueError as error:
        raise ValueError(f"{cam_dir}: {error}") from error


def read_cam_of(record: Record, cam_dir: Path, num_classes: int) -> Cam:
    """Read the CAMs of a record.

    Raises:
        ValueError: the file has another number of classes, or was made with other labels.
    """
    path = cam_dir / f"{record.name}.npz"
    cam = read_cam(path)
    if len(cam.scores) != num_classes:
        raise ValueError(
            f"{path}: expected scores of {num_classes} classes, got {len(cam.scores)}. "
            "Run make_cams.py on this data set."
        )
    if tuple(cam.classes) != record.classes:
        raise ValueError(
            f"{path}: expected CAMs of the image's classes {list(record.classes)}, got "
            f"{cam.classes.tolist()}. Run make_cams.py with the given labels."
        )
    return cam


def default_splits(data: Data, eval_split: str, cam_dir: Path) -> list[str]:
    """Return train, and the evaluation split if a CAM of it is there."""
    evaluated = data.splits.get(eval_split, ())
    there = any((cam_dir / f"{record.name}.npz").is_file() for record in evaluated)
    # The images of val and fit are among those of train.
    return ["train", eval_split] if there and eval_split == "test" else ["train"]


def require_cams(records: Sequence[Record], cam_dir: Path) -> None:
    """Check that every record has its CAM file.

    Raises:
        FileNotFoundError: some are missing; names the first five and the total.
    """
    missing = [r.name for r in records if not (cam_dir / f"{r.name}.npz").is_file()]
    if missing:
        raise FileNotFoundError(
            f"{cam_dir}: expected the CAMs of {len(records)} images, {len(missing)} are missing: "
            f"{', '.join(missing[:5])}. Run make_cams.py first, with given among cam.labels."
        )


def _check_size(record: Record, mask: np.ndarray, cam_dir: Path) -> None:
    size = read_image(record.image).shape[:2]
    if mask.shape != size:
        raise ValueError(
            f"{cam_dir / record.name}.npz: expected CAMs of the image's size {size}, got "
            f"{mask.shape}. Run make_cams.py again."
        )


def _write_json(path: Path, content: dict[str, float | str]) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


if __name__ == "__main__":
    run_stage(main)
