"""What a run says of whole images, beside their labels: no mask is needed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from datasets.files import read_cam, read_csv, read_mask
from datasets.record import Record, label_matrix
from runfolder.held_out import HELD_OUT_NAME, calibration_of, read_held_out
from runfolder.run import Run
from runfolder.scored import Asked, in_part, maps_of
from scoring.images import Verdicts

SCORES_NAME = "scores.csv"  # of predictions/


def verdicts_of(run: Run, asked: Asked) -> Verdicts | None:
    """Return what was said of the images that are asked for, None where their labels were given.

    A localiser says that a class is there where it has written its CAM; the second stage, where its
    mask shows it. CAMs of every type have the same scores; those of pseudo_label.cam_type are read.
    The scores of the second stage are probabilities where images were held out, see
    `scoring.calibration`. Masks that were brought without scores have those of 0 and 1.

    Raises:
        FileNotFoundError: CAMs or masks are missing.
        ValueError: they are damaged, or of other images or classes.
    """
    of_localiser = asked.kind == "cam" and asked.cam_type == run.config.pseudo_label.cam_type
    if asked.labels != "predicted" or not (of_localiser or asked.kind == "segmentation"):
        return None
    records = in_part(run, asked)
    folder = run.maps_dir(asked.kind, asked.cam_type, asked.labels)
    paths = maps_of(folder, asked.kind, records)
    if of_localiser:
        cams = [read_cam(path) for path in paths]
        scores = np.array([cam.scores for cam in cams])
        present = np.array([np.isin(range(run.num_classes), cam.classes) for cam in cams])
    else:
        values = [np.unique(read_mask(path, run.num_classes)) for path in paths]
        present = np.array([np.isin(range(1, run.num_classes + 1), v) for v in values])
        path = folder / SCORES_NAME
        scores = _scores_of(path, records, run.data.class_names) if path.is_file() else present
        calibration = calibration_of(read_held_out(run.prediction_dir / HELD_OUT_NAME), False)
        if path.is_file() and calibration:
            scores = calibration.probabilities(scores)
    labels = label_matrix(records, run.num_classes)
    return Verdicts(labels, present, scores, [record.group for record in records])


def _scores_of(path: Path, records: Sequence[Record], class_names: Sequence[str]) -> np.ndarray:
    """Return the (N, K) scores that segmentation.infer has written."""
    rows = read_csv(path)
    try:
        if rows[0] != ["name", *class_names]:
            raise ValueError(f"columns {', '.join(rows[0])}")
        by_name = {name: [float(score) for score in scores] for name, *scores in rows[1:]}
        found = np.array([by_name[record.name] for record in records])
        if not ((found >= 0) & (found <= 1)).all():
            raise ValueError("scores outside [0, 1]")
    except (ValueError, KeyError, IndexError) as error:
        raise ValueError(
            f"{path}: expected name and scores of {', '.join(class_names)} for all "
            f"{len(records)} images, got: {error}. Run python -m segmentation.infer again."
        ) from error
    return found
