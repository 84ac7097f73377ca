"""Look before a long run: can every file be used, is there room, does a batch pass the networks?

    python -m inference.preflight --config configs/folder.toml --set data.root=DIR

Opens every image, mask and saliency map of your own, and prints the first five problems of each
kind with their number. Then estimates the disk space of the run, and takes a batch of real images
forth and back through both networks, which shows the memory that they need. Nothing is written; the
exit code is 1 if a stage would fail. run_STAC.sh calls this before the first stage.

--skip-bad goes on without the pictures and folders that have problems and lists them in
OUT/skipped.csv: all stages of the run pass them over. Delete the file to take them again.
"""

import resource
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F

from configs import Config
from configs.command_line import load_run, run_stage, stage_parser
from datasets.checks import check_data, left_out
from datasets.files import read_image, read_truth
from datasets.problems import (
    STOPS_SCORING,
    STOPS_TRAINING,
    Problem,
    Refused,
    problem_list,
    that_stop,
)
from datasets.record import Record
from datasets.record_checks import Facts
from datasets.skipped import SKIPPED_NAME, add_skipped, read_skipped
from datasets.sources import GROUPS_NAME, Data, draw_warnings, read_data
from inference.untrained import forth_and_back, untrained
from models.device import select_device
from saliency.external import prepare
from saliency.student import FEATURE_BYTES
from scoring.confusion import ConfusionMatrix

# Told by datasets.inspect: every draw keeps copies together.
HARMLESS = ("near copies in one split", "identical images in one split")
CAM_BYTES = 2  # a pixel of a map of a class; compression takes a quarter off
MAP_BYTES = 1  # a pixel of a saliency map, a pseudo label and a prediction, together
TRAINING_BYTES = 16  # a weight: itself, two moments of AdamW, and the best one


def main(argv: Sequence[str] | None = None) -> None:
    """Check the data, the disk and a batch of a config."""
    parser = stage_parser(__doc__)
    parser.add_argument(
        "--skip-bad",
        action="store_true",
        help="go on without pictures and folders that have problems, listed in OUT/skipped.csv",
    )
    args = parser.parse_args(argv)
    config, out_dir = load_run(args)
    skipped_path = out_dir / SKIPPED_NAME

    # Files.
    with TemporaryDirectory() as folder:
        for name in ("labels.csv", GROUPS_NAME, SKIPPED_NAME):
            if (out_dir / name).is_file():
                shutil.copy(out_dir / name, folder)
        data, facts, problems = look(config, Path(folder))
        bad = that_stop(problems, STOPS_TRAINING, STOPS_SCORING)
        if args.skip_bad and bad:
            add_skipped(Path(folder, SKIPPED_NAME), bad)
            data, facts, others = look(config, Path(folder))
            problems = bad + others
            bad = that_stop(others, STOPS_TRAINING, STOPS_SCORING)  # those without a path
            if not bad:
                out_dir.mkdir(parents=True, exist_ok=True)
                shutil.copy(Path(folder, SKIPPED_NAME), skipped_path)
    for line in draw_warnings(data):
        print(f"warning: {line}")
    print(problem_list([problem for problem in problems if problem.kind not in HARMLESS]))
    if bad:
        raise ValueError(
            f"{config.data.root}: expected files that can be used, got {len(bad)} problems that "
            "stop a stage. Replace or remove what is named above, or add --skip-bad."
        )
    if count := len(read_skipped(skipped_path)):
        print(f"left out: {count} pictures or folders, see {skipped_path}")

    # Memory and disk.
    device = select_device(args.device)
    num_weights = pass_a_batch(config, data, device)
    print(f"a batch passes both networks; {_peak(device)}")
    needed = disk_bytes(config, facts, num_weights) / 1e9
    free = shutil.disk_usage(_existing(out_dir)).free / 1e9
    print(f"disk: about {needed:.1f} GB for {len(facts)} images, {free:.1f} GB are free")
    if needed > free:
        raise ValueError(
            f"{out_dir}: expected {needed:.1f} GB of free disk space, got {free:.1f}. Give another "
            "--out, or fewer cam.types and cam.labels."
        )


def look(config: Config, folder: Path) -> tuple[Data, list[Facts], list[Problem]]:
    """Read and open all files of a data set.

    Args:
        config: of the run.
        folder: with labels.csv, groups.csv and skipped.csv, as far as they are there; written to.

    Returns:
        The data without what no record can be made of, the facts of each image, and all problems.

    Raises:
        ValueError, FileNotFoundError: as of `read_data`, after a list of the problems.
    """
    problems: list[Problem] = []
    try:
        while True:
            try:
                data = read_data(config.data, folder / "labels.csv")
                break
            except Refused as error:
                problems += error.problems
                add_skipped(folder / SKIPPED_NAME, error.problems)
        data.split(config.data.eval_split)  # refuses one that is not there, as the stages do
    except (ValueError, FileNotFoundError):
        if problems:
            print(problem_list(problems))
        raise
    facts, found = check_data(data)
    problems += found
    if config.data.source == "folder":
        problems += left_out(data)
    if config.saliency.generator == "external":
        problems += check_saliency(config, data, facts)
    return data, facts, problems


def check_saliency(config: Config, data: Data, facts: Sequence[Facts]) -> list[Problem]:
    """Open the user's saliency maps."""
    settings = config.saliency
    records = [one.record for one in facts]
    generator = prepare(settings, data, records, torch.device("cpu"))  # refuses missing maps
    problems = []
    for one in facts:
        needed = one.record.classes or not settings.empty_defect_free
        if needed and one.size:
            try:
                generator.make_map(one.record, np.zeros((*one.size, 3), np.uint8))
            except (ValueError, OSError) as error:
                problems.append(Problem("saliency map", str(error), (one.record.image,)))
    return problems


def pass_a_batch(config: Config, data: Data, device: torch.device) -> int:
    """Take a batch of training images forth and back through both networks, and score an image.

    Returns:
        The number of weights of both.
    """
    num_classes = len(data.class_names)
    networks = untrained(config, num_classes, device)
    for one in networks:
        records = data.split("fit")[: one.settings.batch_size]
        images = [_resized(record, one.size) for record in records]
        forth_and_back(one, torch.stack(images).to(device))
    masked = next((r for r in data.split(config.data.eval_split) if r.mask), None)
    if masked:
        truth = read_truth(masked, num_classes)
        network, size, _ = networks[-1]
        with torch.no_grad():
            logits = network.eval()(_resized(masked, size)[None].to(device))
        prediction = F.interpolate(logits, truth.shape).argmax(1)[0].cpu().numpy()
        ConfusionMatrix(num_classes).update(truth, prediction)
    return sum(weights.numel() for network, *_ in networks for weights in network.parameters())


def disk_bytes(config: Config, facts: Sequence[Facts], num_weights: int) -> int:
    """Return about how many bytes the run folder will take."""
    maps = CAM_BYTES * len(config.cam.types) * len(config.cam.labels)
    of_images = sum(
        one.size[0] * one.size[1] * (MAP_BYTES + maps * max(1, len(one.record.classes)))
        for one in facts
    )
    features = FEATURE_BYTES * len(facts) if config.refinement.rounds else 0
    return of_images + features + TRAINING_BYTES * num_weights


def _resized(record: Record, size: tuple[int, int]) -> torch.Tensor:
    pixels = torch.from_numpy(read_image(record.image)).permute(2, 0, 1)[None].float() / 255
    return F.interpolate(pixels, size)[0]


def _peak(device: torch.device) -> str:
    """Say how much memory this process has taken at most."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated() / 1e9:.1f} GB of GPU memory"
    unit = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9:.1f} GB of memory"


def _existing(path: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())


if __name__ == "__main__":
    run_stage(main)
