"""How long each stage of a run will take on this machine: python -m inference.expected.

Times each unit of work once or twice on this machine (a training step, a pass, a map), counts the
units of the config and its data, and prints the minutes of each stage as JSON. run_STAC.sh calls
this. It is a forecast: other programs, the first images of a disk and evaluations are not in it.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch

from configs import Config
from configs.command_line import run_stage, stage_parser
from datasets.files import read_image
from inference.images import TILE_OVERLAP
from inference.untrained import Untrained, forth_and_back, untrained
from models.device import amp_dtype, autocast, select_device
from models.pamr import pamr
from models.tiles import tiles_of
from runfolder.run import Run, open_run
from saliency.contrast import WINDOWS, Look, contrast_map
from saliency.learned import NUM_FOLDS, PAMR_STEPS
from saliency.patches import load_encoder
from saliency.student import BATCH_SIZE, FEATURE_SIZE, MIRRORS, Student

BATCH = 8  # images that steps are timed on; of two an image takes twice as long
WITH_FEATURES = ("feature", "normal", "variation", "auto")


class Units(NamedTuple):
    """Seconds of the units of work."""

    prior: float  # a map of the generator
    features: float  # of an image, for the refinement
    student_step: float
    student_map: float
    learn: float  # an image in a step of the localiser
    localise: float  # an image of the training size
    tiles: float  # of an image
    refine: float  # a step of PAMR on an image
    learn_segment: float
    segment: float


def minutes(run: Run, units: Units) -> dict[str, float]:
    """Return the minutes of each stage."""
    config, data = run.config, run.data
    num_fit, num_val = (len(data.split(split)) for split in ("fit", "val"))
    num_all = len(data.records(data.default_splits(config.data.eval_split)))
    num_eval = len(data.split(config.data.eval_split))
    train, cam, second = config.train, config.cam, config.segmentation

    def steps(settings: Any) -> int:
        whole = settings.epochs * -(-num_fit // settings.batch_size)
        return min(whole, settings.max_steps or whole)

    def validations(settings: Any) -> float:
        epochs = -(-steps(settings) * settings.batch_size // max(num_fit, 1))
        return num_val * max(1, epochs // settings.eval_every)

    seconds = {"saliency": num_all * units.prior}
    if rounds := config.refinement.rounds:
        per_round = NUM_FOLDS * config.refinement.steps * units.student_step
        per_map = units.student_map + PAMR_STEPS * units.refine
        num_maps = num_all + (rounds - 1) * num_fit  # a round learns from the maps before it
        seconds["saliency"] += num_all * units.features + rounds * per_round + num_maps * per_map
    seconds["train"] = steps(train) * train.batch_size * units.learn
    seconds["train"] += validations(train) * units.localise
    views = sum(scale**2 for scale in cam.scales) * (1 + cam.flip)
    seconds["cams"] = num_all * units.tiles * views * units.localise
    seconds["pseudo_labels"] = num_all * config.pseudo_label.pamr_steps * units.refine
    seconds["segmentation"] = steps(second) * second.batch_size * units.learn_segment
    seconds["segmentation"] += validations(second) * units.segment
    per_image = 2 * units.segment * units.tiles + second.pamr_steps * units.refine
    seconds["predictions"] = num_eval * per_image
    return {stage: value / 60 for stage, value in seconds.items()}


def measured(run: Run, device: torch.device) -> Units:
    """Time the units of a run; networks have random weights, which take as long."""
    config = run.config
    num_classes = run.num_classes
    image = read_image(run.data.split("fit")[0].image)
    maps = torch.rand(1, *image.shape[:2], device=device)
    pixels = torch.from_numpy(image).permute(2, 0, 1).float().to(device)

    times = [_network_times(one, device) for one in untrained(config, num_classes, device)]
    (learn, localise), (learn_segment, segment) = times

    refine = seconds_of(lambda: pamr(pixels, maps, 10), device) / 10
    random = replace(config.saliency, weights="none")
    prior = features = student_step = student_map = 0.0
    if config.saliency.generator in WITH_FEATURES:
        encode = load_encoder(random, config.saliency.image_size, device)
        prior = seconds_of(lambda: encode(image), device)
    elif config.saliency.generator == "contrast":
        look = Look("dark", WINDOWS)
        prior = seconds_of(lambda: contrast_map(image, [look]), device)
    if config.refinement.rounds:
        encode = load_encoder(random, FEATURE_SIZE, device, with_last=True)
        features = seconds_of(lambda: encode(image), device)
        student_step, student_map = _student_times(encode(image), config, num_classes, device)
    return Units(
        prior=prior + config.saliency.pamr_steps * refine,
        features=features,
        student_step=student_step,
        student_map=student_map,
        learn=learn,
        localise=localise,
        tiles=len(tiles_of(image.shape[:2], config.cam.tile, TILE_OVERLAP)),
        refine=refine,
        learn_segment=learn_segment,
        segment=segment,
    )


def seconds_of(work: Callable[[], Any], device: torch.device) -> float:
    """Return the time of a second call."""
    work()
    _finish(device)
    begun = time.perf_counter()
    work()
    _finish(device)
    return time.perf_counter() - begun


def _network_times(one: Untrained, device: torch.device) -> tuple[float, float]:
    """Return the seconds that an image takes in a training step, and in a pass."""
    images = torch.rand(BATCH, 3, *one.size, device=device)

    @torch.no_grad()
    def look() -> None:
        one.network.eval()
        with autocast(device, amp_dtype(device, one.settings.amp)):
            one.network(images)

    learn = seconds_of(lambda: forth_and_back(one, images), device)
    return learn / BATCH, seconds_of(look, device) / BATCH


def _student_times(
    features: np.ndarray, config: Config, num_classes: int, device: torch.device
) -> tuple[float, float]:
    """Return the seconds of a training step of the refinement's network, and of a map."""
    student = Student(features.shape[2], num_classes + 1).to(device)
    dtype = amp_dtype(device, "auto")
    feature_map = torch.from_numpy(features).permute(2, 0, 1).to(device)

    def logits(count: int) -> torch.Tensor:
        images = torch.rand(count, 3, *config.refinement.image_size, device=device)
        with autocast(device, dtype):
            return student(images, feature_map.expand(count, -1, -1, -1))

    per_image = seconds_of(lambda: logits(BATCH).float().mean().backward(), device) / BATCH
    with torch.no_grad():
        return BATCH_SIZE * per_image, seconds_of(lambda: logits(len(MIRRORS)), device)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main(argv: Sequence[str] | None = None) -> None:
    """Print the minutes of each stage."""
    args = stage_parser(__doc__).parse_args(argv)
    run = open_run(args)
    device = select_device(args.device)
    print(json.dumps(minutes(run, measured(run, device))))


if __name__ == "__main__":
    run_stage(main)
