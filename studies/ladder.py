"""How much a few pixel masks add to the saliency maps: rows of 0, 10 and 50 masks.

    python -m studies.ladder --config configs/neu_seg_cpu.toml --set data.root=DIR

Makes the maps of the config's generator (or takes yours with --from-dir), refines them once for
each number of masks, and scores all rows on the same images: the defective training images that
lend their mask to none of the rows, of the develop part where data.develop_list names it. Prints a
Markdown table and writes OUT/ladder.json.
"""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from configs import changed
from configs.command_line import load_run, run_stage, stage_parser
from configs.schema import Config
from datasets.files import read_image, read_truth, write_json
from datasets.record import Record
from datasets.sources import Data, read_data
from execution.progress import progress
from models.device import select_device
from saliency import learned
from saliency.generator import Prepared
from saliency.table import make_generator
from scoring.confusion import ThresholdSweep
from scoring.saliency import SaliencyHistogram
from scoring.thresholds import MapCounts


def main(argv: Sequence[str] | None = None) -> None:
    """Refine with each number of masks and compare."""
    parser = stage_parser(__doc__)
    parser.add_argument("--masks", nargs="+", type=int, default=[0, 10, 50], metavar="N")
    parser.add_argument("--from-dir", type=Path, metavar="DIR", help="maps to be refined")
    args = parser.parse_args(argv)
    config, out_dir = load_run(args)
    if not args.out:
        out_dir = out_dir.with_name(f"{out_dir.name}_ladder")
    if args.from_dir:
        folder = str(args.from_dir)
        config = changed(config, {"saliency.generator": "external", "saliency.folder": folder})
    out_dir.mkdir(parents=True, exist_ok=True)
    data = read_data(config.data, out_dir / "labels.csv")
    device = select_device(args.device)
    train = data.split("train")
    generator = make_generator(config.saliency, data, train, device)
    settings = config.refinement
    num_classes = len(data.class_names)
    lent = learned.choose_masked(data.split("fit"), max(args.masks), num_classes, settings.seed)
    chosen_on = data.develop or {record.name for record in train}
    scored = [r for r in train if r.mask is not None and r.classes and r not in lent]
    scored = [record for record in scored if record.name in chosen_on]
    rows = [{"maps": "not refined", "masks": 0, **score(generator, scored, num_classes)}]
    print(rows[0], flush=True)
    with TemporaryDirectory(dir=out_dir, prefix=".ladder_") as folder:
        for count in args.masks:
            refined = _refine(config, generator, data, Path(folder), device, count)
            scores = score(refined, scored, num_classes)
            rows.append({"maps": "refined", "masks": count, **scores})
            print(rows[-1], flush=True)
    about = {"images": len(scored), "settings": dataclasses.asdict(settings)}
    write_json(out_dir / "ladder.json", {**about, "rows": rows})
    print(table(rows))


def score(generator: Prepared, records: Sequence[Record], num_classes: int) -> dict[str, Any]:
    """Return foreground IoU and mIoU at the automatic threshold, and the best one, in %.

    mIoU is that of maps painted with the first of the image's classes, as in evaluation.py.
    """
    histogram, counts = SaliencyHistogram(num_classes), MapCounts(num_classes)
    maps = {}
    for record in progress(records, "maps"):
        saliency = generator.make_map(record, read_image(record.image))
        histogram.update(read_truth(record, num_classes), saliency, labelled=True)
        counts.add(saliency[None], record.classes[:1])
        maps[record.name] = saliency.astype(np.float16)
    threshold = counts.auto()
    sweep = ThresholdSweep([threshold], num_classes)
    for record in records:
        truth = read_truth(record, num_classes)
        first = np.array(record.classes[:1])
        sweep.update(truth, maps[record.name][None].astype(np.float32), first)
    scores = sweep.confusion(threshold).scores()
    best = histogram.scores().best_fg_iou
    at_auto = {"fg_iou": scores.fg_iou, "threshold": threshold, "miou": scores.miou}
    return at_auto | {"best_fg_iou": best}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows of `score` as Markdown."""
    heads = ("maps", "masks", "fg IoU, auto", "threshold", "best fg IoU", "painted mIoU, auto")
    lines = [heads, ["---"] * len(heads)]
    for row in rows:
        figures = [f"{row['fg_iou']:.2f}", f"{row['threshold']:.3f}"]
        figures += [f"{row['best_fg_iou']:.2f}", f"{row['miou']:.2f}"]
        lines.append([row["maps"], str(row["masks"]), *figures])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _refine(
    config: Config, generator: Prepared, data: Data, folder: Path, device: torch.device, count: int
) -> Prepared:
    """Refine once with `count` masks; the features in `folder` serve all calls."""
    shutil.rmtree(folder / "priors_0", ignore_errors=True)
    config = changed(config, {"refinement.masks": count})
    return learned.prepare(config, generator, data, folder, device, 0)


if __name__ == "__main__":
    run_stage(main)
