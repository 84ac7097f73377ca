"""What speaks against the masks of a finished run, found without a mask.

Two questions are asked of the training images that were held out (`val`): do scores tell images
with a class from those without it, and do both stages outline the same things there?
"""

import numpy as np

from datasets.record import label_matrix
from runfolder.held_out import HELD_OUT_NAME, read_held_out
from runfolder.run import Run
from runfolder.training_log import LOG_NAME, read_training_log
from scoring.images import Verdicts, auroc_by_class

# Mean IoU in % of the classes between masks and pseudo labels of held-out images. MTD, whose masks
# of new tiles are poor (34 mIoU), has about 23, the sample (77) 67, NEU-Seg (75 of other pictures,
# 68 in the clean protocol) 79 and 81.
LEAST_AGREEMENT = 40.0
CHANCE = 50.0  # AUROC in % of scores that say nothing


def doubts(run: Run) -> list[str]:
    """Return a line for each reason to doubt the masks of a run, with what to try; best none.

    Raises:
        ValueError: a file is damaged.
    """
    return [*_untold(run), *_disagreement(run)]


def _untold(run: Run) -> list[str]:
    """Name the classes whose images the scores do not tell from the others."""
    found = {image.name: image for image in read_held_out(run.prediction_dir / HELD_OUT_NAME)}
    records = [record for record in run.data.split("val") if record.name in found]
    if not records:
        return []
    scores = [
        np.mean([s for s in (found[r.name].segmenter, found[r.name].localiser) if s], axis=0)
        for r in records
    ]
    labels = label_matrix(records, run.num_classes)
    said = Verdicts(labels, labels, np.array(scores), [record.group for record in records])
    lines = []
    for name, shown, figures in zip(
        run.data.class_names, labels.sum(axis=0), auroc_by_class(said), strict=True
    ):
        if figures is not None and figures.interval[0] <= CHANCE:
            low, high = figures.interval
            lines.append(
                f"{name}: scores do not tell its images from others (AUROC {figures.auroc:.0f} %, "
                f"95 % interval {low:.0f} to {high:.0f}, {shown} of {len(records)} held-out images "
                "show it). Check its labels, or add images of it."
            )
    return lines


def _disagreement(run: Run) -> list[str]:
    """Compare the second stage's masks with the pseudo labels of the held-out images."""
    agreement = _last_measure(run, "foreground")
    if agreement is None or agreement >= LEAST_AGREEMENT:
        return []
    return [
        f"the masks of held-out images and their pseudo labels have a foreground IoU of "
        f"{agreement:.0f} %, where {LEAST_AGREEMENT:.0f} or more is usual: what is learnt as a "
        "defect is not alike from image to image. Look at report.html; try larger images (--set "
        "train.image_size=[448,448]) or a few masks (python make_saliency.py --masks 10)."
    ]


def _last_measure(run: Run, name: str) -> float | None:
    """Return a measure of the second stage's last validation, None where there is none."""
    log = read_training_log(run.segmentation_dir / LOG_NAME)
    known = [line["val"][name] for line in log if line["val"].get(name) is not None]
    return known[-1] if known else None
