"""Learned refinement: a small network trained on all images, with noisy maps as its target.

A prior says little about one image, but what is alike in all images of a class, and differs from
the other classes and from the background, a network can learn from many priors; early in its
training it has learnt that and not yet their mistakes. Targets are what is known without masks:

- a pixel whose prior is high belongs to one of those classes of the image whose own prior is high
  there (partial-label likelihood);
- a pixel whose priors are all low is background; between both nothing is known;
- a class that the image does not carry is nowhere in it.

The network is saliency.student. Each image's map comes from one that was trained on the other half
of the images, so no map can repeat its own prior's mistakes by heart. Copies of one picture are in
the same half. An image that is not trained on gets the mean of both.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from configs import Config
from datasets.files import Cam, read_image, read_truth, write_cam
from datasets.image_maps import balance
from datasets.record import IGNORE, Record
from datasets.sources import Data
from datasets.splits import folds
from datasets.transforms import as_image, eval_transform
from execution import ranks
from execution.cores import on_cores
from execution.progress import progress
from models.device import processes_for
from saliency.edges import along_edges
from saliency.generator import Prepared
from saliency.student import StudentInputs, foreground, train_student

NUM_FOLDS = 2
PAMR_STEPS = 20  # on each map
MASKED_SHARE = 0.25  # of the images drawn, where a few have a pixel mask as target


def prepare(
    config: Config, generator: Prepared, data: Data, work_dir: Path, device: torch.device, turn: int
) -> Prepared:
    """Train one round on the maps of a generator and return it as a generator of its own.

    Args:
        config: its sections saliency (backbone, weights) and refinement are used.
        generator: makes the priors.
        data: whose `fit` is trained on.
        work_dir: existing folder for priors and features, the same for all rounds; the caller
            removes it when all maps are made.
        device: where the networks run.
        turn: which round, from 0; other rounds start from other weights.

    Raises:
        ValueError: too few training images for two halves.
    """
    settings = config.refinement
    num_classes = len(data.class_names)
    records = data.split("fit")
    fold_of = folds(records, NUM_FOLDS)
    least = min(list(fold_of.values()).count(fold) for fold in range(NUM_FOLDS))
    if least < 2:
        raise ValueError(
            f"refinement.rounds: expected {2 * NUM_FOLDS} training images or more, in two halves "
            f"that show no picture twice, got {len(records)} with {least} in the smaller half. "
            "Set refinement.rounds=0."
        )
    prior_dir = work_dir / f"priors_{turn}"  # those of the round before are still read
    inputs = StudentInputs(config.saliency, num_classes, work_dir / "features", prior_dir, device)
    write_priors(generator, records, prior_dir, num_classes, device)
    masked = choose_masked(records, settings.masks, num_classes, settings.seed)
    for record in ranks.part(masked):
        write_mask_as_prior(record, prior_dir, num_classes)
    masked_names = {record.name for record in masked}
    inputs.keep_features(records)
    students = []
    for fold in range(NUM_FOLDS):
        others = [r for r in records if fold_of[r.name] != fold and r.name not in masked_names]
        others = balance(others)
        others += masked * masked_repeats(len(masked), len(others))
        seed = (settings.seed * 1000 + turn) * NUM_FOLDS + fold
        students.append(train_student(others, num_classes, settings, inputs, device, seed))
    transform = eval_transform(settings.image_size, inputs.mean, inputs.std)

    def make_map(record: Record, image: np.ndarray) -> np.ndarray:
        if record.name in masked_names:
            return inputs.priors(record)[list(record.classes)].max(axis=0)
        fold = fold_of.get(record.name)
        chosen = students if fold is None else [students[fold]]
        pixels = transform(as_image(image)).to(device)
        features = inputs.features(record, image).to(device)
        salient = foreground(chosen, pixels, features, record.classes, image.shape[:2])
        return along_edges(image, salient[0].cpu().numpy(), PAMR_STEPS, device)

    facts, lines = generator.facts, generator.lines
    if masked:
        facts = facts | {"masked": sorted(masked_names)}
        lines = (*lines, f"made with {len(masked)} pixel masks: no longer image labels alone")
    return Prepared(make_map, facts, lines, generator.problems)


def choose_masked(
    records: Sequence[Record], count: int, num_classes: int, seed: int
) -> list[Record]:
    """Draw images whose pixel masks become targets, as evenly over the classes as they allow.

    Raises:
        ValueError: fewer than `count` defective images have a mask.
    """
    order = torch.randperm(len(records), generator=torch.Generator().manual_seed(seed)).tolist()
    left = [records[i] for i in order if records[i].mask is not None and records[i].classes]
    if len(left) < count:
        raise ValueError(
            f"refinement.masks: expected masks of {count} defective training images, got "
            f"{len(left)}. Lower --masks."
        )
    chosen: list[Record] = []
    seen = [0] * num_classes
    while len(chosen) < count:
        record = min(left, key=lambda r: min(seen[k] for k in r.classes))
        left.remove(record)
        chosen.append(record)
        for k in record.classes:
            seen[k] += 1
    return chosen


def masked_repeats(num_masked: int, num_others: int) -> int:
    """Return how often each masked image is listed to make up `MASKED_SHARE` of all."""
    odds = MASKED_SHARE / (1 - MASKED_SHARE)
    return max(1, round(odds * num_others / max(num_masked, 1)))


def write_priors(
    generator: Prepared,
    records: Sequence[Record],
    folder: Path,
    num_classes: int,
    device: torch.device,
) -> None:
    """Write <name>.npz with the map of each of an image's classes, made for that class alone."""
    own = ranks.part(records)
    nothing = np.zeros(num_classes, np.float32)

    def write(record: Record) -> None:
        image = read_image(record.image)
        alone = [replace(record, classes=(k,)) for k in record.classes]
        maps = [generator.make_map(one, image) for one in alone]
        stack = np.stack(maps) if maps else np.zeros((0, *image.shape[:2]), np.float32)
        classes = np.array(record.classes, np.int64)
        write_cam(folder / f"{record.name}.npz", Cam(stack, classes, nothing))

    for _ in progress(on_cores(write, own, processes_for(device)), "priors", len(own)):
        pass
    ranks.wait()


def write_mask_as_prior(record: Record, folder: Path, num_classes: int) -> None:
    """Write a pixel mask as class maps of 0 and 1, 0.5 where nothing is known."""
    truth = read_truth(record, num_classes)
    classes = np.array(record.classes, np.int64)
    maps = (truth == classes[:, None, None] + 1).astype(np.float32)
    maps[:, truth == IGNORE] = 0.5
    write_cam(folder / f"{record.name}.npz", Cam(maps, classes, np.zeros(num_classes, np.float32)))
