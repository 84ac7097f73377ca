"""What the models say of the training images that were held out: verdicts are learnt from it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from datasets.files import read_cam, write_json
from runfolder.run import Run
from scoring.calibration import Calibration, fit_calibration
from scoring.limits import Limits, defect_score, learn_limits

HELD_OUT_NAME = "held_out.json"  # of predictions/
Score = Annotated[float, Field(ge=0, le=1)]


class HeldOut(BaseModel):
    """One image.

    Attributes:
        name: of its record.
        defective: what its label says.
        labels: K, which classes it shows; none in files of 0.3 and before.
        segmenter: K scores of the segmentation network.
        localiser: K scores of the localiser; none where it made no CAMs.
    """

    name: str
    defective: bool
    labels: list[bool] = []
    segmenter: list[Score]
    localiser: list[Score] = []

    def scores(self, with_localiser: bool) -> list[np.ndarray]:
        """Return the (K,) scores of the segmentation network, and of the localiser if wanted."""
        of_models = (self.segmenter, self.localiser) if with_localiser else (self.segmenter,)
        return [np.array(scores) for scores in of_models]


def write_held_out(run: Run, segmenter: dict[str, list[float]]) -> None:
    """Write what the models say of the images of `val`.

    Args:
        run: whose CAMs of pseudo_label.cam_type hold the localiser's scores.
        segmenter: K scores, by name.
    """
    config = run.config
    folder = run.cam_dir(config.pseudo_label.cam_type, config.cam.labels[0])
    records = run.data.split("val")
    paths = [folder / f"{record.name}.npz" for record in records]
    has_cams = all(path.is_file() for path in paths)
    content = [
        HeldOut(
            name=record.name,
            defective=bool(record.classes),
            labels=[k in record.classes for k in range(run.num_classes)],
            segmenter=segmenter[record.name],
            localiser=read_cam(path).scores.tolist() if has_cams else [],
        ).model_dump()
        for record, path in zip(records, paths, strict=True)
    ]
    write_json(run.prediction_dir / HELD_OUT_NAME, content)


def read_held_out(path: Path) -> list[HeldOut]:
    """Read the file; nothing of one that is not there.

    Raises:
        ValueError: not such a file.
    """
    if not path.is_file():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        images = TypeAdapter(list[HeldOut]).validate_python(content)
        if len({tuple(map(len, (i.labels, i.segmenter, i.localiser))) for i in images}) > 1:
            raise ValueError("different numbers of scores")
        if images and len(images[0].labels) not in (0, len(images[0].segmenter)):
            raise ValueError("other numbers of labels than of scores")
    except (ValueError, ValidationError) as error:
        got = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path}: expected scores of held-out images, got {got}. "
            "Run python -m segmentation.infer again."
        ) from error
    return images


def limits_of(
    images: Sequence[HeldOut], with_localiser: bool, max_alarms: float, min_recall: float
) -> Limits | None:
    """Return what the scores of new images mean, None where no image was held out.

    Args:
        images: of `read_held_out`.
        with_localiser: both models judge.
        max_alarms: share of good images that may be called defective.
        min_recall: share of defective images that must not be called ok.
    """
    if not images:
        return None
    scores = [defect_score(image.scores(with_localiser)) for image in images]
    return learn_limits(scores, [image.defective for image in images], max_alarms, min_recall)


def calibration_of(images: Sequence[HeldOut], with_localiser: bool) -> Calibration | None:
    """Return what turns the mean scores of the models into probabilities of the classes.

    None where no image was held out, or by an earlier version, which did not write its classes.
    """
    if not images or not images[0].labels:
        return None
    scores = np.array([np.mean(image.scores(with_localiser), axis=0) for image in images])
    return fit_calibration(scores, np.array([image.labels for image in images]))
