r"""Where masks are wrong: confusion, area, borders, faint and small defects, several classes.

    python -m studies.errors --config runs/neu/config.toml --out runs/neu --kind segmentation

Reads the masks of a run (pseudo_labels/ or predictions/) and the true ones of a split, and prints
Markdown tables. A *defect* is a connected region of one class in the true mask. Its contrast is the
difference, in grey levels, between its mean and that of what surrounds it.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from scipy import ndimage

from configs.command_line import run_stage, stage_parser
from datasets.files import read_image, read_mask, read_truth
from datasets.record import BACKGROUND, IGNORE
from execution.progress import progress
from runfolder.run import open_run
from runfolder.scored import Asked, scored_of
from scoring.confusion import ConfusionMatrix

RING = 5  # pixels around a defect that are its surroundings
BORDER = 2  # pixels from a true border within which a mistake is one of the border
PARTS = 5  # of the defects of a class, from the faintest, or smallest, on
EIGHT = np.ones((3, 3), int)  # neighbours


class Defect(NamedTuple):
    """A connected region of the true mask, and what was found of it."""

    k: int  # foreground class
    contrast: float  # grey levels; NaN where nothing free surrounds it
    pixels: int
    hit: int  # pixels that have its class in the prediction


class Errors:
    """Counts over images.

    Attributes:
        matrices: confusion matrices of images with one class, and with several.
        at_border: wrong pixels near a true border, and all wrong pixels.
        defects: of all images.
    """

    def __init__(self, num_classes: int):
        """Count nothing yet."""
        self.matrices = {False: ConfusionMatrix(num_classes), True: ConfusionMatrix(num_classes)}
        self.at_border = np.zeros(2, np.int64)
        self.defects: list[Defect] = []

    def add(self, image: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> None:
        """Count one image.

        Args:
            image: (H, W, 3) uint8 RGB.
            truth: (H, W) mask values; 255 is not counted.
            prediction: (H, W) mask values; 255 counts as background.
        """
        prediction = np.where(prediction == IGNORE, BACKGROUND, prediction)
        present = set(np.unique(truth).tolist()) - {BACKGROUND, IGNORE}
        self.matrices[len(present) > 1].update(truth, prediction)
        wrong = (truth != prediction) & (truth != IGNORE)
        self.at_border += (wrong & near_border(truth)).sum(), wrong.sum()
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
        self.defects += defects_of(grey, truth, prediction)

    def all(self) -> ConfusionMatrix:
        """Return the confusion matrix of all images."""
        matrix = self.matrices[False].fresh()
        for part in self.matrices.values():
            matrix.merge(part)
        return matrix


def near_border(truth: np.ndarray) -> np.ndarray:
    """Return (H, W) bool: pixels at most `BORDER` away from one of another mask value."""
    size = 2 * BORDER + 1
    low, high = ndimage.minimum_filter(truth, size), ndimage.maximum_filter(truth, size)
    return low != high


def defects_of(grey: np.ndarray, truth: np.ndarray, prediction: np.ndarray) -> Iterator[Defect]:
    """Give the defects of an image.

    Args:
        grey: (H, W) grey levels.
        truth: (H, W) mask values.
        prediction: (H, W) mask values.
    """
    free = truth == BACKGROUND
    for value in sorted(set(np.unique(truth).tolist()) - {BACKGROUND, IGNORE}):
        regions, count = ndimage.label(truth == value, EIGHT)
        for number, box in enumerate(ndimage.find_objects(regions), start=1):
            seen = tuple(slice(max(s.start - RING, 0), s.stop + RING) for s in box)
            region = regions[seen] == number
            around = ndimage.binary_dilation(region, EIGHT, iterations=RING) & free[seen]
            levels = grey[seen]
            contrast = (
                abs(levels[region].mean() - levels[around].mean()) if around.any() else np.nan
            )
            hit = int((prediction[seen][region] == value).sum())
            yield Defect(value - 1, float(contrast), int(region.sum()), hit)


def confusion_table(matrix: ConfusionMatrix, names: Sequence[str]) -> list[str]:
    """Return where the pixels of each class go, in % of all pixels, and the area found."""
    counts = matrix.counts
    shares = 100 * counts / max(counts.sum(), 1)
    lines = [f"| truth, % of pixels | {' | '.join(names)} | area found / true | IoU |"]
    lines.append("|---" * (len(names) + 3) + "|")
    iou = matrix.scores().iou
    for i, name in enumerate(names):
        true = counts[i].sum()
        area = f"{counts[:, i].sum() / true:.2f}" if true else "-"
        cells = " | ".join(f"{share:.2f}" for share in shares[i])
        lines.append(f"| {name} | {cells} | {area} | {iou[i]:.1f} |")
    return lines


def recall_table(defects: Sequence[Defect], names: Sequence[str], by: str) -> list[str]:
    """Return the recall of each class' pixels, its defects in `PARTS` parts of equal number.

    Args:
        defects: of all images; those without a value are left out.
        names: K classes.
        by: contrast or pixels, which the parts are ordered by.
    """
    lines = [f"| {by}, from - to: recall in % of pixels (share of the class' pixels) |"]
    lines[0] += " least |" + " |" * (PARTS - 2) + " most |"
    lines.append("|---" * (PARTS + 1) + "|")
    for k, name in enumerate(names):
        own = [d for d in defects if d.k == k and np.isfinite(getattr(d, by))]
        own.sort(key=lambda defect: getattr(defect, by))
        if not own:
            continue
        total, cells = sum(d.pixels for d in own), []
        for part in np.array_split(np.arange(len(own)), min(PARTS, len(own))):
            of_part = [own[i] for i in part]
            pixels = sum(d.pixels for d in of_part)
            recall = 100 * sum(d.hit for d in of_part) / pixels
            low, high = (getattr(d, by) for d in (of_part[0], of_part[-1]))
            cells.append(f"{low:.0f} - {high:.0f}: {recall:.0f} ({100 * pixels / total:.0f} %)")
        cells += ["-"] * (PARTS - len(cells))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Count, and print the tables."""
    parser = stage_parser(__doc__)
    parser.prog = "python -m studies.errors"
    parser.add_argument("--kind", choices=("pseudo_label", "segmentation"), default="segmentation")
    parser.add_argument("--split", help="train, val or test (default: data.eval_split)")
    parser.add_argument("--part", choices=("all", "develop", "report"), default="all")
    args = parser.parse_args(argv)
    run = open_run(args)
    split = args.split or run.config.data.eval_split
    labels = "predicted" if args.kind == "segmentation" else "given"
    scored = scored_of(run, Asked(args.kind, split, args.part, "", labels, False))
    if scored is None:
        raise ValueError(f"{run.config.data.source}, {split}: expected true masks, got none.")
    errors = Errors(run.num_classes)
    pairs = zip(scored.records, scored.paths, strict=True)
    for record, path in progress(pairs, "errors", len(scored.records)):
        truth = read_truth(record, run.num_classes)
        errors.add(read_image(record.image), truth, read_mask(path, run.num_classes))

    class_names = run.data.class_names
    print(f"{args.kind}, {split}, {args.part}: {len(scored.records)} images\n")
    print("\n".join(confusion_table(errors.all(), ("background", *class_names))))
    near, wrong = errors.at_border
    print(f"\n{100 * near / max(wrong, 1):.0f} % of the wrong pixels lie within {BORDER} pixels of")
    print("a true border.")
    for several, matrix in errors.matrices.items():
        if matrix.counts.any():
            scores = matrix.scores()
            listed = ", ".join(
                f"{n} {v:.1f}" for n, v in zip(class_names, scores.iou[1:], strict=True)
            )
            of = "several classes" if several else "one class or none"
            print(f"images of {of}: mIoU {scores.miou:.2f} ({listed})")
    for by in ("contrast", "pixels"):
        print("\n" + "\n".join(recall_table(errors.defects, class_names, by)))


if __name__ == "__main__":
    run_stage(main)
