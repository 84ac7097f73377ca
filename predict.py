"""Find defects in any images, without labels, with the models of a run.

  python predict.py photos/ --run runs/neu_seg
  python predict.py 'line3/*.jpg' part.png --run runs/neu_seg --to line3_masks --format coco

Takes pictures, folders (with all below them) and quoted patterns. The segmentation network of the
run makes the masks and the localiser the scores of the classes. With one of them alone, it does
both: scores are then those of the segmentation network, and masks the refined CAMs of the classes
that the localiser sees, cut at the thresholds that make_pseudo_labels.py kept for them.

Each image has a verdict: ok, defective, or unsure. Its score, the highest class of both models'
mean, is compared with limits that are learnt from the training images that were held out
(predictions/held_out.json of the run), for a wanted share of false alarms and of defects that are
found. What is ok has an empty mask, but for --keep-all. Without held-out images an image is
defective if its mask shows anything.

writes TO/masks/<name>.png (mask values, VOC palette), TO/overlays/<name>.jpg, TO/json/<name>.json
(verdict, scores, areas, objects with box and contours) and TO/summary.csv. --format adds files for
annotation tools, which the masks can be corrected with (docs/annotation.md):

  coco            TO/coco.json, run lengths
  coco-polygons   TO/coco_polygons.json, outlines along the edges of pixels; for CVAT
  label-studio    TO/label_studio.json, the same outlines, and the interface, label_studio.xml
  labelme         TO/labelme/<name>.json, the same outlines

A picture that cannot be read is named at the end, after all others are done.

  python predict.py --watch incoming/ --run runs/neu_seg

waits for pictures in a folder and predicts each as soon as it is complete. What earlier calls have
predicted is not predicted again. Stop it with Ctrl-C or SIGTERM.
"""

import argparse
import csv
import signal
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from configs.command_line import run_stage, share
from datasets.files import (
    list_images,
    read_lines,
    write_csv,
    write_image,
    write_json,
    write_mask,
)
from datasets.pictures import paint_mask
from datasets.record import Record
from execution import ranks
from execution.progress import progress
from inference.annotations import FORMATS, Annotated, entry_of, write_annotations
from inference.images import load_pictures
from inference.predictor import Predictor, load_run
from inference.results import Options, Result
from inference.watching import new_pictures
from models.device import select_device
from scoring.limits import DEFECTIVE, OK, UNSURE


def main(argv: Sequence[str] | None = None) -> None:
    """Predict all images and write masks, overlays, JSON and a summary."""
    args = _parser().parse_args(argv)
    if bool(args.images) == bool(args.watch):
        raise ValueError("expected IMAGES, or --watch DIR, and not both. See --help.")
    if args.watch and args.format:
        raise ValueError("--format: expected IMAGES with it, got --watch. Leave one of them out.")
    flags = {name: getattr(args, name) for name in Options.__dataclass_fields__}  # each is a flag
    options = Options(**flags | {"threshold": thresholds_of(args.threshold)})
    to = Path(args.to) if args.to else Path(args.run) / "predicted"
    problems: dict[str, str] = {}
    below = {} if args.watch else _without_outputs(find_images(args.images, problems), to)
    device = ranks.join(select_device(args.device))
    run = load_run(args.run, device, options)
    if args.watch:
        watch(run, Path(args.watch), to)
        return

    # Each image's files.
    records = ranks.part(list(below), run.batch_size)
    results = run.over(load_pictures(records, problems=problems))
    done: list[tuple[list, Annotated]] = []
    for result in progress(results, "predict", len(records)):
        row = write_outputs(result, run, to)
        record, size = result.record, result.mask.shape
        entries = {
            form: [entry_of(one, size, form, run.class_names) for one in result.objects]
            for form in args.format
        }
        done.append((row, Annotated(record.name, record.image, below[record], size, entries)))

    # The files of all images.
    done = sum(ranks.gathered(done), [])
    for of_rank in ranks.gathered(problems):
        problems |= of_rank
    if not ranks.is_first():
        return
    annotated = [image for _, image in done]
    for form in args.format:
        model = f"STAC {Path(args.run).resolve().name}"
        file = write_annotations(form, annotated, run.class_names, to, model)
        print(f"wrote {file} ({form})")
    summary = [row for row, _ in done]
    write_csv(to / "summary.csv", [heads(run), *summary])
    print(f"wrote masks, overlays, json and summary.csv of {len(summary)} images to {to}/")
    counts = Counter(row[1] for row in summary)
    print(", ".join(f"{counts[verdict]} {verdict}" for verdict in (DEFECTIVE, UNSURE, OK)))
    if run.limits:
        print("\n".join(run.limits.lines()))
    if problems:
        raise ValueError(
            f"{len(problems)} of {len(summary) + len(problems)} pictures could not be read: "
            f"{' | '.join(list(problems.values())[:5])}"
        )


def heads(run: Predictor) -> list[str]:
    """Return the columns of summary.csv."""
    kinds = ("area_px", "score", "probability")
    of_classes = [f"{name}_{what}" for what in kinds for name in run.class_names]
    return ["name", "verdict", *of_classes, "reason"]


def write_outputs(result: Result, run: Predictor, to: Path) -> list:
    """Write mask, overlay and, last, the JSON file of an image; return its row of summary.csv."""
    name, mask = result.record.name, result.mask
    write_mask(to / f"masks/{name}.png", mask)
    overlay = np.round(255 * paint_mask(result.pixels, mask)).astype(np.uint8)
    write_image(to / f"overlays/{name}.jpg", overlay)
    page = result.page(run.limits)
    write_json(to / f"json/{name}.json", page)
    probabilities = page["class_probabilities"] or dict.fromkeys(run.class_names, "")
    of_classes = (page["areas_px"], page["class_scores"], probabilities)
    numbers = [number for numbers in of_classes for number in numbers.values()]
    return [name, result.verdict, *numbers, result.reason]


def watch(run: Predictor, folder: Path, to: Path) -> None:
    """Predict each picture that comes into a folder, until the program is stopped.

    A line of summary.csv follows the files of its image; after a stop in between, the image is
    predicted again.
    """
    stopped: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
    outputs = [(to / name).resolve() for name in ("masks", "overlays")]
    summary, seconds = to / "summary.csv", []

    def name_of(path: Path) -> str:
        return "_".join(path.relative_to(folder).with_suffix("").parts)

    def is_done(path: Path) -> bool:
        made = any(path.resolve().is_relative_to(output) for output in outputs)
        return made or name_of(path) in known

    rows = list(csv.reader(read_lines(summary)))[1:]  # a line that was cut off is dropped
    known = {name for name, *_ in rows}
    write_csv(summary, [heads(run), *rows])
    print(f"waiting for pictures in {folder}/, {len(known)} are in {summary}", flush=True)
    try:
        for path in new_pictures(folder, is_done, lambda: not stopped):
            begun = time.perf_counter()
            try:
                result = run.predict(path)
                result = result._replace(record=Record(name_of(path), path, ()))
            except (ValueError, OSError) as error:
                print(f"not predicted: {error}", flush=True)
                continue
            row = write_outputs(result, run, to)
            with summary.open("a", encoding="utf-8", newline="") as file:
                csv.writer(file).writerow(row)
            seconds.append(time.perf_counter() - begun)
            print(f"{path}: {result.verdict}, {1e3 * seconds[-1]:.0f} ms", flush=True)
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
    if seconds:
        middle, high = 1e3 * np.percentile(seconds, (50, 95))
        print(f"{len(seconds)} pictures, {middle:.0f} ms each (median), 95 % within {high:.0f} ms")


def find_images(given: Sequence[str], problems: dict[str, str]) -> dict[Record, PurePosixPath]:
    """Return a record of every picture with its path below the folder that was given, its name too.

    Args:
        given: pictures, folders, patterns.
        problems: takes those whose names no file can have, name -> what is wrong.

    Raises:
        FileNotFoundError: a path or pattern leads to no picture.
        ValueError: two pictures would get one name.
    """
    records: dict[str, Record] = {}
    below: dict[str, PurePosixPath] = {}
    for entry in given:
        for file, relative in list_images(entry):
            name = "_".join(relative.with_suffix("").parts)
            try:
                record = Record(name, file, ())
            except ValueError as error:
                problems[name] = str(error)
                continue
            known = records.get(name)
            if known and known.image.resolve() != file.resolve():
                raise ValueError(
                    f"{file}: expected another name than {known.image}, both would be {name}. "
                    "Predict their folders one by one, or give the folder above both."
                )
            records[name] = record
            below[name] = PurePosixPath(relative.as_posix())
    return {record: below[name] for name, record in records.items()}


def _without_outputs(
    records: Mapping[Record, PurePosixPath], to: Path
) -> dict[Record, PurePosixPath]:
    """Leave out the masks and overlays that earlier calls wrote to this folder."""
    written = [(to / folder).resolve() for folder in ("masks", "overlays")]
    kept = {
        record: below
        for record, below in records.items()
        if not any(record.image.resolve().is_relative_to(folder) for folder in written)
    }
    if not kept:
        raise ValueError(
            f"{to}: expected images from elsewhere, got only masks and overlays of --to. Correct "
            "IMAGES, or give another --to."
        )
    if len(kept) < len(records):
        left_out = len(records) - len(kept)
        print(f"{left_out} masks and overlays in {to}/ are left out, they are no images to predict")
    return kept


def thresholds_of(texts: Sequence[str] | None) -> float | dict[str, float] | None:
    """Read --threshold: one number, or CLASS=NUMBER once or more.

    Raises:
        ValueError: neither.
    """
    if not texts:
        return None
    try:
        if len(texts) == 1 and "=" not in texts[0]:
            return float(texts[0])
        parts = (text.rsplit("=", 1) for text in texts)
        return {name: float(number) for name, number in parts}
    except ValueError as error:
        raise ValueError(
            f"--threshold: expected a number, or CLASS=NUMBER for some classes, got "
            f"{' '.join(texts)}."
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGES", help="pictures, folders or quoted patterns")
    add("--watch", metavar="DIR", help="wait for pictures in this folder instead")
    add("--run", required=True, metavar="DIR", help="folder of the run whose models are used")
    add("--to", metavar="DIR", help="where to write (default: predicted/ in the run's folder); its "
        "masks/ and overlays/ are never read as images")  # fmt: skip
    add("--format", nargs="+", choices=FORMATS, default=[], help="also for annotation tools")
    add("--min-area", type=int, metavar="PX", help="leave out smaller objects; 0 keeps all "
        "(default: learnt from the pseudo labels, for each class)")  # fmt: skip
    add("--max-false-alarm", type=share, default=0.05, metavar="SHARE", help="of good images that "
        "may be called defective, among those held out (default: 0.05)")  # fmt: skip
    add("--min-recall", type=share, default=0.99, metavar="SHARE", help="of defective images that "
        "must not be called ok, among those held out (default: 0.99)")  # fmt: skip
    add("--keep-all", action="store_true", help="write the masks of images that are ok too")
    add("--threshold", nargs="+", metavar="[CLASS=]T", help="from which share, in [0, 1], a pixel "
        "is of a class and not background; of one alone, of the CAMs (default: 0.5; of CAMs those "
        "of thresholds.json of the run)")  # fmt: skip
    add("--roi", default="", metavar="REGION", help="look for defects only where this picture is "
        'bright, or in the polygon with these corners, such as "10,10 200,10 200,150"')  # fmt: skip
    add("--tile", type=int, metavar="PX", help="see larger images in tiles of this side; 0 = whole "
        "(default: as configured in training)")  # fmt: skip
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    return parser


if __name__ == "__main__":
    run_stage(main)
