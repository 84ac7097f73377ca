"""Image labels that the trained localiser doubts: wrong ones are mostly among the first."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from datasets.files import read_cam, write_csv
from datasets.record import label_matrix
from runfolder.run import Run
from scoring.calibration import fit_calibration


class Suspect(NamedTuple):
    """A label that is doubted.

    Attributes:
        image: its file.
        name: of its record.
        label: classes of its label.
        doubted: the class that is there without being seen, or seen without being there.
        kind: missing, of a class that the label should have, or wrong, of one that it should not.
        doubt: in [0, 1], how improbable what the label says of that class is.
    """

    image: Path
    name: str
    label: tuple[str, ...]
    doubted: str
    kind: str
    doubt: float


def suspects_of(run: Run) -> list[Suspect]:
    """Return the training images, the most doubted label first; none before there are CAMs.

    The scores that stand in the CAM files are made probabilities, see `scoring.calibration`, on
    the labels as they are. Of each image the class counts whose label is the least probable.

    Raises:
        ValueError: a CAM file is damaged, or of other classes.
    """
    records, names = run.data.split("train"), run.data.class_names
    folder = run.cam_dir(run.config.pseudo_label.cam_type, "given")
    paths = [folder / f"{record.name}.npz" for record in records]
    if not paths or not all(path.is_file() for path in paths):
        return []
    scores = np.array([read_cam(path).scores for path in paths])
    labels = label_matrix(records, run.num_classes)
    if scores.shape != labels.shape:
        raise ValueError(
            f"{folder}: expected scores of {', '.join(names)}, got other numbers. "
            "Run make_cams.py again."
        )
    probabilities = fit_calibration(scores, labels).probabilities(scores)
    doubts = np.where(labels, 1 - probabilities, probabilities)  # (N, K)
    suspects = [
        Suspect(
            record.image,
            record.name,
            tuple(names[c] for c in record.classes),
            names[k],
            "wrong" if k in record.classes else "missing",
            float(doubts[i, k]),
        )
        for i, (record, k) in enumerate(zip(records, doubts.argmax(axis=1).tolist(), strict=True))
    ]
    return sorted(suspects, key=lambda one: (-one.doubt, one.name))


def write_suspects(run: Run, path: Path) -> int:
    """Write the suspects of a run as a table, and return their number; without any, no file."""
    suspects = suspects_of(run)
    heads = ["image", "label", "doubted class", "it is", "doubt"]
    rows = [
        [str(one.image), " ".join(one.label), one.doubted, one.kind, f"{one.doubt:.3f}"]
        for one in suspects
    ]
    if rows:
        write_csv(path, [heads, *rows])
    return len(rows)
