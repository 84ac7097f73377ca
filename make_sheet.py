"""Draw what a run made of some images, one row each, to look at: OUT/sheet_<split>.png.

Columns: image, saliency, CAM (its classes in their colours), pseudo label, prediction, and truth
where there are masks; what has not been made yet stays black. Colours are those of PASCAL VOC
masks, white is 255.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from configs.command_line import load_run, run_stage, stage_parser
from datasets.files import (
    read_cam,
    read_image,
    read_mask,
    read_saliency,
    read_truth,
    voc_palette,
    write_image,
)
from datasets.record import Record
from datasets.sources import read_data

CELL = 160  # pixels, both sides
GAP = 4
MASK_STRENGTH = 0.6  # of the colours over the image


def main(argv: Sequence[str] | None = None) -> None:
    """Write one sheet."""
    parser = stage_parser(__doc__)
    parser.add_argument("--split", help="split to draw (default: data.eval_split)")
    parser.add_argument("--count", type=int, default=10, help="images to draw (default: 10)")
    args = parser.parse_args(argv)
    config, out_dir = load_run(args)
    if args.count < 1:
        raise ValueError(f"--count: expected 1 or more, got {args.count}.")
    split = args.split or config.data.eval_split
    data = read_data(config.data, out_dir / "labels.csv")
    records = data.split(split)
    step = max(1, len(records) // args.count)
    rows = [
        np.concatenate(_cells(record, out_dir, len(data.class_names)), axis=1)
        for record in records[::step][: args.count]
    ]
    path = out_dir / f"sheet_{split}.png"
    write_image(path, np.concatenate(rows))
    legend = ", ".join(
        f"{name} {tuple(voc_palette()[k + 1].tolist())}" for k, name in enumerate(data.class_names)
    )
    print(f"wrote {path}: {len(rows)} images; RGB of the classes: {legend}")


def _cells(record: Record, out_dir: Path, num_classes: int) -> list[np.ndarray]:
    image = read_image(record.image)

    def saliency() -> np.ndarray:
        return np.repeat(read_saliency(out_dir / f"saliency/{record.name}.png")[..., None], 3, 2)

    def cam() -> np.ndarray:
        found = read_cam(out_dir / f"cams/{record.name}.npz")
        colours = voc_palette()[found.classes + 1] / 255  # (M, 3)
        return np.clip(np.einsum("mhw,mc->hwc", found.cam, 2 * colours), 0, 1)

    def mask(folder: str) -> Callable[[], np.ndarray]:
        path = out_dir / folder / f"{record.name}.png"
        return lambda: _coloured(image, read_mask(path, num_classes))

    columns: list[Callable[[], np.ndarray]] = [
        lambda: image / 255,
        saliency,
        cam,
        mask("pseudo_labels"),
        mask("predictions"),
    ]
    if record.mask:
        columns.append(lambda: _coloured(image, read_truth(record, num_classes)))
    return [_cell(column) for column in columns]


def _coloured(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Lay mask colours over the image; background keeps the image."""
    colours = voc_palette()
    colours[255] = 255
    alpha = MASK_STRENGTH * (mask > 0)[..., None]
    return (1 - alpha) * image / 255 + alpha * colours[mask] / 255


def _cell(draw: Callable[[], np.ndarray]) -> np.ndarray:
    """Fit a picture into the cell; black where its file is missing."""
    cell = np.zeros((CELL + GAP, CELL + GAP, 3), np.uint8)
    try:
        picture = draw()
    except FileNotFoundError:
        return cell
    scale = CELL / max(picture.shape[:2])
    size = (round(picture.shape[1] * scale), round(picture.shape[0] * scale))
    fitted = cv2.resize(picture.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    cell[: size[1], : size[0]] = np.round(255 * np.clip(fitted, 0, 1))
    return cell


if __name__ == "__main__":
    run_stage(main)
