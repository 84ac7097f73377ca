"""What a production line fears: other light, wrong labels, a defect that nobody has shown.

    python -m studies.line light --out runs/sample
    python -m studies.line labels --config configs/sample.toml --out runs/labels
    python -m studies.line unknown --config configs/sample.toml --out runs/unknown

light judges the images of data.eval_split by the models of a finished run: as they are, brighter,
darker, blurred, with noise. labels runs all stages with a share of the training labels wrong: half
of them name another class, half say that there is no defect. It also says how many of these are
among the first fifth of the labels that the run itself doubts (suspicious_labels.csv). unknown
leaves one class after the other out of training and validation, and judges its images.

Each prints a Markdown table. A defective image is missed if its verdict is ok; a good one is a
false alarm if its verdict is defective. What has been trained with the same settings is not trained
again.
"""

import argparse
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from configs import fingerprint, load
from configs.command_line import run_stage, share, stage_parser
from datasets.files import read_truth, write_csv, write_text
from datasets.record import Record
from datasets.sources import Data
from inference.images import Picture, load_pictures
from inference.predictor import Predictor, load_run
from pipeline import STAGES, commands
from runfolder.run import Run, open_run
from runfolder.suspects import suspects_of
from scoring.confusion import ConfusionMatrix
from scoring.limits import DEFECTIVE, OK, UNSURE
from studies.ablation import Job

FIRST = 0.2  # of the doubted labels
BRIGHTNESS = (0.6, 0.8, 1.25, 1.5)  # factors
BLURS = (1.0, 2.0, 3.0)  # standard deviations in pixels
NOISES = (5, 10, 20)  # standard deviations in grey levels
HEAD = ("images", "mIoU", "missed %", "unsure %", "false alarms %", "good, unsure %")


class Judged(NamedTuple):
    """Counts over images.

    Attributes:
        verdicts: numbers of images, by (is defective, verdict).
        matrix: of the masks, of images that have a true one.
    """

    verdicts: Counter[tuple[bool, str]]
    matrix: ConfusionMatrix

    def cells(self) -> list[str]:
        """Return the cells of a line, `HEAD`."""
        miou = self.matrix.scores().miou if self.matrix.counts.sum() else None
        shares = [self._share(True, OK), self._share(True, UNSURE)]
        shares += [self._share(False, DEFECTIVE), self._share(False, UNSURE)]
        values = ["-" if value is None else f"{value:.1f}" for value in (miou, *shares)]
        return [str(self.verdicts.total()), *values]

    def _share(self, is_defective: bool, verdict: str) -> float | None:
        total = sum(self.verdicts[is_defective, one] for one in (OK, UNSURE, DEFECTIVE))
        return 100 * self.verdicts[is_defective, verdict] / total if total else None


def judged(
    models: Predictor,
    records: Sequence[Record],
    change: Callable[[np.ndarray], np.ndarray] = lambda pixels: pixels,
) -> Judged:
    """Judge changed images and compare verdicts and masks with labels and true masks.

    Args:
        models: of a run.
        records: images.
        change: takes and returns (H, W, 3) uint8.
    """
    found = Judged(Counter(), ConfusionMatrix(len(models.class_names)))

    def pictures() -> Iterator[Picture]:
        for picture in load_pictures(records):
            yield picture._replace(pixels=change(picture.pixels))

    for result in models.over(pictures()):
        found.verdicts[bool(result.record.classes), result.verdict] += 1
        if result.record.mask is not None:
            truth = read_truth(result.record, len(models.class_names))
            found.matrix.update(truth, result.mask)
    return found


def disturbances(seed: int) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Return changes of (H, W, 3) uint8 images by their names."""
    rng = np.random.default_rng(seed)

    def to_levels(values: np.ndarray) -> np.ndarray:
        return np.clip(np.round(values), 0, 255).astype(np.uint8)

    changes: dict[str, Callable[[np.ndarray], np.ndarray]] = {"none": lambda pixels: pixels}
    for factor in BRIGHTNESS:
        changes[f"light x {factor:g}"] = lambda pixels, f=factor: to_levels(f * pixels)
    for sigma in BLURS:
        changes[f"blur, {sigma:g} px"] = lambda pixels, s=sigma: cv2.GaussianBlur(pixels, (0, 0), s)
    for sigma in NOISES:
        changes[f"noise, {sigma} levels"] = lambda pixels, s=sigma: to_levels(
            pixels + s * rng.standard_normal((*pixels.shape[:2], 1))
        )
    return changes


def wrong_labels(
    records: Sequence[Record], num_classes: int, part: float, seed: int
) -> dict[str, tuple[int, ...]]:
    """Return wrong labels for a share of the images: half another class, half none at all.

    Args:
        records: images.
        num_classes: K.
        part: share of them.
        seed: of the draws.

    Returns:
        name -> classes. A defect-free image, which can lose none, gets a class.
    """
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(records))[: round(part * len(records))].tolist()
    wrong = {}
    for number, place in enumerate(chosen):
        record = records[place]
        others = [k for k in range(num_classes) if k not in record.classes]
        is_missing = record.classes and (number % 2 or not others)
        wrong[record.name] = () if is_missing else (others[rng.integers(len(others))],)
    return wrong


class Labelled(NamedTuple):
    """An image as a run is to see it."""

    record: Record
    split: str
    classes: tuple[str, ...]


def trained(
    args: argparse.Namespace, folder: Path, images: Sequence[Labelled], names: Sequence[str]
) -> Run:
    """Return a run of all stages on a table of images, without masks; made once.

    Args:
        args: of the command line; its settings are used but for those of the table.
        folder: of the run.
        images: of train and test.
        names: of the classes.
    """
    root = Path(os.path.commonpath([image.record.image.resolve().parent for image in images]))
    rows = [
        [image.record.image.resolve().relative_to(root), "|".join(image.classes), image.split,
         image.record.group]
        for image in images
    ]  # fmt: skip
    table = folder / "table.csv"
    write_csv(table, [["image", "classes", "split", "group"], *rows])
    listed = ", ".join(f'"{name}"' for name in names)
    changes = ["data.source=csv", f"data.root={root}", f"data.table={table}"]
    changes += [f"data.classes=[{listed}]", "data.eval_split=test", 'data.develop_list=""']
    job = Job(folder / "run", args, [], changes)
    config = load(args.config, [*args.set, *changes])
    mark, done = folder / "done", f"{fingerprint(config)}\n{table.read_text(encoding='utf-8')}"
    if not mark.is_file() or mark.read_text(encoding="utf-8") != done:
        for stage in STAGES:
            job.call(next(commands(stage, config)))  # without what scores it
        write_text(mark, done)
    return Run(folder / "run", config)


def study_light(args: argparse.Namespace) -> Iterator[list[str]]:
    """Give the lines of the table for a finished run."""
    run = open_run(args)
    models = load_run(run.folder, args.device)
    yield ["change", *HEAD]
    for name, change in disturbances(args.seed).items():
        yield [name, *judged(models, run.data.split(run.config.data.eval_split), change).cells()]


def study_labels(args: argparse.Namespace) -> Iterator[list[str]]:
    """Give the lines of the table for shares of wrong labels."""
    data, out = _data(args), Path(args.out).resolve()
    names, train, test = list(data.class_names), data.split("train"), data.split("test")
    yield ["wrong labels", "among the first fifth", *HEAD]
    for part in args.shares:
        wrong = wrong_labels(train, len(names), part, args.seed)
        images = [
            Labelled(r, "train", tuple(names[k] for k in wrong.get(r.name, r.classes)))
            for r in train
        ]
        images += [Labelled(r, "test", tuple(names[k] for k in r.classes)) for r in test]
        run = trained(args, out / f"{100 * part:g}", images, names)
        suspects = [one.image.resolve() for one in suspects_of(run)]
        first = set(suspects[: round(FIRST * len(suspects))])
        found = sum(r.image.resolve() in first for r in train if r.name in wrong)
        share_found = f"{100 * found / len(wrong):.0f} %" if wrong else "-"
        cells = judged(load_run(run.folder, args.device), test).cells()
        yield [f"{100 * part:g} %, {len(wrong)} of {len(train)}", share_found, *cells]


def study_unknown(args: argparse.Namespace) -> Iterator[list[str]]:
    """Give the lines of the table for each class that is left out."""
    data, out = _data(args), Path(args.out).resolve()
    yield ["left out", "images", "defective %", "unsure %", "ok %", "others: " + HEAD[2], HEAD[4]]
    for k, name in enumerate(data.class_names):
        names = [other for other in data.class_names if other != name]
        images, unknown, test = [], [], []
        for split in ("train", "test"):
            for record in data.split(split):
                if k in record.classes:
                    unknown.append(record)
                    continue
                shown = tuple(data.class_names[c] for c in record.classes)
                images.append(Labelled(record, split, shown))
                test += [record] if split == "test" else []
        models = load_run(trained(args, out / name, images, names).folder, args.device)
        # Their masks have the numbers of all classes, so none is looked at.
        told = judged(models, [replace(r, mask=None) for r in unknown]).verdicts
        cells = [f"{100 * told[True, one] / len(unknown):.1f}" for one in (DEFECTIVE, UNSURE, OK)]
        others = judged(models, [replace(r, mask=None) for r in test]).cells()
        yield [name, str(len(unknown)), *cells, others[2], others[4]]


STUDIES = {"light": study_light, "labels": study_labels, "unknown": study_unknown}


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table of one study, each line as soon as it is there."""
    parser = stage_parser(__doc__)
    parser.add_argument("study", choices=tuple(STUDIES))
    default = "of wrong labels (default: 0 0.05 0.1)"
    parser.add_argument("--shares", nargs="+", type=share, default=[0, 0.05, 0.1], help=default)
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    args = parser.parse_args(argv)
    for number, cells in enumerate(STUDIES[args.study](args)):
        print(f"| {' | '.join(cells)} |", flush=True)
        if not number:
            print("|---" * len(cells) + "|")


def _data(args: argparse.Namespace) -> Data:
    if not args.config or not args.out:
        raise ValueError("expected --config and --out. See --help.")
    return Run(Path(args.out) / "data", load(args.config, args.set)).data


if __name__ == "__main__":
    run_stage(main)
