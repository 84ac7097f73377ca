"""What refines maps how fast, and how much it helps.

    python -m benchmarks.refinement
    python -m benchmarks.refinement --config configs/neu_seg_cpu.toml --run runs/neu_seg_cpu

Times pixel-adaptive refinement (PAMR) and the CRF on made-up images of 200 x 200 pixels, and a CRF
of the same mean field in NumPy beside them, image by image in turn. With a run, scores its CAMs on
training images instead: as they are, refined by PAMR and by the CRF, each at the threshold that is
found without masks and at the best.
"""

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from configs.command_line import load_run, run_stage, stage_parser
from datasets.files import read_cam, read_image, read_truth
from datasets.sources import read_data
from metrics import GRID, ThresholdSweep
from models import crf
from models.refine import pixel_adaptive_refinement
from seeds import MapCounts

Refine = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def numpy_crf(image: np.ndarray, maps: np.ndarray, iterations: int) -> np.ndarray:
    """Do what `models.crf.dense_crf` does, in NumPy, for comparison."""
    shares = np.concatenate([1 - maps.max(axis=0, keepdims=True), maps]).clip(crf.FLOOR)
    evidence = np.log(shares / shares.sum(axis=0))
    belief = _softmax(evidence)
    for _ in range(iterations):
        coloured = _mean_of_neighbours(
            belief, image, crf.REACH, crf.STEP, crf.POSITION_SIGMA, crf.COLOUR_SIGMA
        )
        reach = math.ceil(2 * crf.SMOOTH_SIGMA)
        near = _mean_of_neighbours(belief, None, reach, 1, crf.SMOOTH_SIGMA, 1.0)
        messages = crf.COLOUR_WEIGHT * coloured + crf.SMOOTH_WEIGHT * near
        belief = _softmax(evidence + messages)
    return belief[1:]


def _mean_of_neighbours(
    belief: np.ndarray,
    image: np.ndarray | None,
    reach: int,
    step: int,
    position_sigma: float,
    colour_sigma: float,
) -> np.ndarray:
    height, width = belief.shape[1:]
    total, weights = np.zeros_like(belief), np.zeros_like(belief[:1])
    for dy in range(-reach, reach + 1, step):
        for dx in range(-reach, reach + 1, step):
            if (dy, dx) == (0, 0):
                continue
            here = np.s_[:, max(-dy, 0) : height - max(dy, 0), max(-dx, 0) : width - max(dx, 0)]
            there = np.s_[:, max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)]
            exponent = -(dy * dy + dx * dx) / (2 * position_sigma**2)
            if image is not None:
                distance = ((image[there] - image[here]) ** 2).sum(axis=0, keepdims=True)
                exponent = exponent - distance / (2 * colour_sigma**2)
            weight = np.exp(exponent)
            total[here] += weight * belief[there]
            weights[here] += weight
    return total / np.maximum(weights, 1e-8)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=0))
    return powers / powers.sum(axis=0)


def main(argv: Sequence[str] | None = None) -> None:
    """Time, or score."""
    parser = stage_parser(__doc__)
    parser.add_argument("--run", type=Path, help="run whose CAMs are refined")
    parser.add_argument("--images", type=int, default=100, metavar="N", help="default: 100")
    args = parser.parse_args(argv)
    ways: dict[str, Refine] = {"PAMR": pixel_adaptive_refinement, "CRF": crf.dense_crf}
    print(score(args, ways) if args.run else timings(ways, args.images))


def timings(ways: dict[str, Refine], num_images: int) -> str:
    """Return the seconds of each way over all images, as a Markdown table."""
    generator = torch.Generator().manual_seed(0)
    in_numpy = {"CRF in NumPy": lambda image, maps: numpy_crf(image.numpy(), maps.numpy(), 5)}
    taken = dict.fromkeys([*ways, *in_numpy], 0.0)
    for _ in range(num_images):
        image = 255 * torch.rand(3, 200, 200, generator=generator)
        maps = torch.rand(1, 200, 200, generator=generator)
        for name, refine in (ways | in_numpy).items():
            started = time.perf_counter()
            refine(image, maps)
            taken[name] += time.perf_counter() - started
    lines = [f"| {num_images} images of 200 x 200 | times PAMR |", "|---|---|"]
    lines += [f"| {name} | {seconds / taken['PAMR']:.2f} |" for name, seconds in taken.items()]
    return "\n".join(lines)


def score(args, ways: dict[str, Refine]) -> str:
    """Return the mIoU of the refined CAMs of labelled training images, as a Markdown table."""
    config, _ = load_run(args)
    data = read_data(config.data, args.run / "labels.csv")
    records = [r for r in data.split("train") if r.classes and r.mask is not None]
    records = records[:: max(len(records) // args.images, 1)][: args.images]
    maps = {name: [] for name in ("as they are", *ways)}
    for record in records:
        image = torch.from_numpy(read_image(record.image)).permute(2, 0, 1).float()
        cam = read_cam(args.run / f"cams/{record.name}.npz").cam
        maps["as they are"].append(cam)
        for name, refine in ways.items():
            maps[name].append(refine(image, torch.from_numpy(cam)).numpy())
    lines = [f"| {len(records)} training images | auto | oracle |", "|---|---|---|"]
    for name, of_images in maps.items():
        counts = MapCounts(len(data.class_names))
        for record, cam in zip(records, of_images, strict=True):
            counts.add(cam, record.classes)
        auto = counts.auto()
        sweep = ThresholdSweep((*GRID, auto), len(data.class_names))
        for record, cam in zip(records, of_images, strict=True):
            truth = read_truth(record, len(data.class_names))
            sweep.update(truth, cam, np.array(record.classes))
        found = [f"{sweep.confusion(t).miou():.2f} ({t:.3f})" for t in (auto, sweep.best())]
        lines.append(f"| {name} | {found[0]} | {found[1]} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_stage(main)
