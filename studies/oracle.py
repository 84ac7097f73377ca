r"""What saliency and resolution cost: CAMs guided by nothing, by maps, and by the true masks.

    python -m studies.oracle --config configs/neu_seg.toml --set data.root=DIR \
        data.eval_split=train --from-dir runs/neu_seg/saliency --sizes 224 336 448

First prints what the grid of patches alone allows: the score of maps that hold the share of each
patch that each defect covers, for every size and every scale of cam.scales. Then trains a localiser
for each kind of guidance and each image size on the training split, writes all CAM types, scores
them with given labels and prints a Markdown table. The rows of true masks are a bound for what
better saliency can bring: their localisers are trained with pixel masks and are no result of the
method. A finished training is not repeated; a stopped one continues when the same command is given
again. --guidance trains some kinds alone, --grids-only none.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from configs.command_line import ROOT, load_run, run_stage, stage_parser
from datasets.files import read_truth, write_saliency
from datasets.record import BACKGROUND, IGNORE, Record
from datasets.sources import read_data
from execution.progress import progress
from inference.localise import scaled_sizes
from models.backbones import create_vit
from models.cam import min_max
from runfolder.run import SaliencyMeta, write_meta
from scoring.confusion import GRID, ThresholdSweep
from studies.ablation import Job, add_part, part_of, scored_settings, table

GUIDANCE = ("none", "saliency", "true_masks")
UNGUIDED = str(ROOT / "configs/variants/base.toml")


def main(argv: Sequence[str] | None = None) -> None:
    """Train, score and compare."""
    parser = stage_parser(__doc__)
    parser.add_argument(
        "--from-dir", type=Path, required=True, metavar="DIR", help="the saliency maps"
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=[224], metavar="PIXELS")
    parser.add_argument(
        "--guidance", nargs="+", choices=GUIDANCE, default=GUIDANCE, help="default: all three"
    )
    parser.add_argument("--grids-only", action="store_true", help="train nothing")
    add_part(parser)
    args = parser.parse_args(argv)
    config, out_dir = load_run(args)
    if not args.out:
        out_dir = out_dir.with_name(f"{out_dir.name}_oracle")
    out_dir.mkdir(parents=True, exist_ok=True)
    data = read_data(config.data, out_dir / "labels.csv")
    splits = dict.fromkeys(["train", config.data.eval_split])
    records = {r.name: r for split in splits for r in data.split(split)}
    num_classes = len(data.class_names)
    patch = create_vit(config.train, "none").patch_embed.patch_size
    sizes = {
        scaled
        for side in args.sizes
        for scaled in scaled_sizes((side, side), config.cam.scales, patch)
    }
    grids = [(height // patch[0], width // patch[1]) for height, width in sorted(sizes)]
    print(grid_table(data.split(config.data.eval_split), grids, data.class_names))
    if args.grids_only:
        return
    true_masks = out_dir.resolve() / "true_masks"
    if "true_masks" in args.guidance:
        write_true_masks(list(records.values()), true_masks, num_classes)
    rows = []
    for size in args.sizes:
        for guidance in args.guidance:
            maps = true_masks if guidance == "true_masks" else args.from_dir.resolve()
            variants = [UNGUIDED] if guidance == "none" else []
            changes = scored_settings(args, variants, [f"train.image_size=[{size},{size}]"])
            job = Job(out_dir / f"{guidance}_{size}", args, variants, changes)
            name = f"{guidance.replace('_', ' ')}, {size} px"
            scored = job.results(maps, bound=guidance == "true_masks")
            rows += [{"variant": name, **row} for row in scored]
    print(table(rows, f"{config.data.eval_split}, {part_of(args, config)}"))


def grid_table(
    records: Sequence[Record], grids: Sequence[tuple[int, int]], class_names: Sequence[str]
) -> str:
    """Return a Markdown table of the mIoU and the IoU of each class that each grid allows.

    Args:
        records: images with masks.
        grids: (h, w), patches.
        class_names: K names.
    """
    lines = [f"| grid, oracle | mIoU | {' | '.join(class_names)} |"]
    lines.append("|---" * (len(class_names) + 2) + "|")
    for height, width in grids:
        sweep = ThresholdSweep(GRID, len(class_names))
        for record in progress(records, f"{height} x {width}"):
            truth = read_truth(record, len(class_names))
            maps = covered_shares(truth, record.classes, (height, width))
            sweep.update(truth, maps, record.classes)
        scores = sweep.confusion(sweep.best()).scores()
        cells = " | ".join(f"{iou:.2f}" for iou in (scores.miou, *scores.iou[1:]))
        lines.append(f"| {height} x {width} | {cells} |")
    return "\n".join(lines)


def covered_shares(truth: np.ndarray, classes: Sequence[int], grid: tuple[int, int]) -> np.ndarray:
    """Return what the best localiser on a grid would say: each patch's share of each class.

    Args:
        truth: (H, W) mask values 0..K; 255 counts as no defect.
        classes: M classes of the image.
        grid: (h, w), patches.

    Returns:
        (M, H, W) in [0, 1], brought to the image's size and normalised as CAMs are.
    """
    if not classes:
        return np.zeros((0, *truth.shape), np.float32)
    masks = torch.from_numpy(np.stack([truth == k + 1 for k in classes])).float()
    shares: Tensor = F.adaptive_avg_pool2d(masks[None], grid)
    shares = F.interpolate(shares, size=truth.shape, mode="bilinear", align_corners=False)
    return min_max(shares[0]).numpy()


def write_true_masks(records: Sequence[Record], folder: Path, num_classes: int) -> None:
    """Write the pixel masks as saliency maps <name>.png: 1 in defects, 0.5 where unknown.

    Raises:
        ValueError: images have no mask; names the first five and the total.
    """
    without = [record.name for record in records if record.mask is None]
    if without:
        raise ValueError(
            f"true masks: expected one for each of {len(records)} images, {len(without)} have "
            f"none: {', '.join(without[:5])}. Score splits whose masks are there."
        )
    for record in progress(records, "true masks"):
        truth = read_truth(record, num_classes)
        saliency = np.where(truth == IGNORE, 0.5, truth != BACKGROUND)
        write_saliency(folder / f"{record.name}.png", saliency.astype(np.float32))
    write_meta(folder, SaliencyMeta({}, {}, [], masked=sorted(r.name for r in records)))


if __name__ == "__main__":
    run_stage(main)
