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
(verdict, scores, areas, objects with box and contours) and TO/summary.csv; with --format coco also
TO/coco.json (run lengths, exact) and with --format coco-polygons TO/coco_polygons.json (outlines
through the centres of the border pixels, holes filled), as pre-annotations for CVAT or Label
Studio. A picture that cannot be read is named at the end, after all others are done.
"""

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from configs.command_line import run_stage, share
from datasets.files import list_images, write_csv, write_image, write_json, write_mask
from datasets.pictures import paint_mask
from datasets.record import Record
from execution import ranks
from execution.progress import progress
from inference.images import Picture, load_pictures
from inference.localise import Localiser
from inference.models import load_trained, localiser_of, run_in, segmenter_of, with_tile
from inference.objects import COCO_FORMATS, coco_annotation, objects_of
from inference.refined import refined
from inference.segment import Segmenter
from models.device import select_device
from runfolder.held_out import HELD_OUT_NAME, limits_of, read_held_out
from runfolder.run import Run
from runfolder.thresholds import thresholds_for_new_images
from scoring.limits import DEFECTIVE, OK, UNSURE, defect_score
from scoring.thresholds import levelled, seed_mask


class Prediction(NamedTuple):
    """What the models say about one image."""

    record: Record
    pixels: np.ndarray  # (H, W, 3) uint8 RGB
    scores: np.ndarray  # (K,) in [0, 1]
    confidence: np.ndarray  # (H, W) in [0, 1], of the class in the mask
    mask: np.ndarray  # (H, W) uint8 mask values
    found: np.ndarray  # (K,) in [0, 1], the scores of the model that made the mask


def main(argv: Sequence[str] | None = None) -> None:
    """Predict all images and write masks, overlays, JSON and a summary."""
    args = _parser().parse_args(argv)
    _check_flags(args)
    run = with_tile(run_in(Path(args.run)), args.tile)
    to = Path(args.to) if args.to else run.predicted_dir

    # The models, and the images.
    trained = load_trained(run)
    class_names = trained.class_names
    if trained.segmentation and args.threshold is not None:
        raise ValueError(
            f"--threshold: expected a run with a localiser alone, got {run.folder} with a "
            "segmentation network, which needs no threshold. Leave --threshold out, or give a run "
            "without segmentation/."
        )
    problems: dict[str, str] = {}
    records = _without_outputs(find_images(args.images, problems), to)
    device = ranks.join(select_device(args.device))
    records = ranks.part(records, run.config.segmentation.batch_size)
    localiser = localiser_of(run, trained.localiser, device) if trained.localiser else None
    if trained.segmentation:
        segmenter = segmenter_of(run, trained.segmentation, device)
        segmenter.keeps_specks = args.min_area is not None
        predictions = segment(segmenter, localiser, records, problems)
    else:
        thresholds = thresholds_for_new_images(run, class_names)
        if args.threshold is not None:
            thresholds = [args.threshold] * len(class_names)
        predictions = localise(run, localiser, records, thresholds, problems)

    held_out = read_held_out(run.prediction_dir / HELD_OUT_NAME) if trained.segmentation else []
    both_models = bool(localiser and held_out and held_out[0].localiser)
    limits = limits_of(held_out, both_models, args.max_false_alarm, args.min_recall)

    # Each image's files.
    done: list[tuple[list, dict[str, Any], dict[str, list]]] = []
    for one in progress(predictions, "predict", len(records)):
        name = one.record.name
        mask, objects = objects_of(one.mask, one.confidence, class_names, args.min_area or 0)
        verdict, score = DEFECTIVE if mask.any() else OK, None
        if limits:
            score = defect_score([one.found, one.scores] if both_models else [one.found])
            verdict = limits.verdict(score)
        if verdict == OK and not args.keep_all:
            mask, objects = np.zeros_like(mask), []
        write_mask(to / f"masks/{name}.png", mask)
        overlay = np.round(255 * paint_mask(one.pixels, mask)).astype(np.uint8)
        write_image(to / f"overlays/{name}.jpg", overlay)
        page = {"verdict": verdict, "defect_score": score}
        if limits:
            page |= {"ok_below": limits.ok_below, "defective_from": limits.defective_from}
        page |= _page(one._replace(mask=mask), objects, class_names)
        write_json(to / f"json/{name}.json", page)
        row = [name, verdict, *page["areas_px"].values(), *page["class_scores"].values()]
        height, width = mask.shape
        image = {"file_name": str(one.record.image), "height": height, "width": width}
        annotated = {
            form: [coco_annotation(found, mask.shape, form, class_names) for found in objects]
            for form in args.format
        }
        done.append((row, image, annotated))

    # The files of all images.
    done = sum(ranks.gathered(done), [])
    for of_rank in ranks.gathered(problems):
        problems |= of_rank
    if not ranks.is_first():
        return
    images = [{"id": number, **image} for number, (_, image, _) in enumerate(done, start=1)]
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(class_names)]
    for form in args.format:
        entries = [
            {"image_id": image["id"], **entry}
            for image, (_, _, annotated) in zip(images, done, strict=True)
            for entry in annotated[form]
        ]
        annotations = [{"id": number, **entry} for number, entry in enumerate(entries, start=1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_json(to / COCO_FORMATS[form], content)
    summary = [row for row, _, _ in done]
    heads = [f"{name}_{what}" for what in ("area_px", "score") for name in class_names]
    write_csv(to / "summary.csv", [["name", "verdict", *heads], *summary])
    print(f"wrote masks, overlays, json and summary.csv of {len(summary)} images to {to}/")
    counts = Counter(row[1] for row in summary)
    print(", ".join(f"{counts[verdict]} {verdict}" for verdict in (DEFECTIVE, UNSURE, OK)))
    if limits:
        print("\n".join(limits.lines()))
    if problems:
        raise ValueError(
            f"{len(problems)} of {len(summary) + len(problems)} pictures could not be read: "
            f"{' | '.join(list(problems.values())[:5])}"
        )


def find_images(given: Sequence[str], problems: dict[str, str]) -> list[Record]:
    """Return a record of every picture, named by its path below the folder that was given.

    Args:
        given: pictures, folders, patterns.
        problems: takes those whose names no file can have, name -> what is wrong.

    Raises:
        FileNotFoundError: a path or pattern leads to no picture.
        ValueError: two pictures would get one name.
    """
    records: dict[str, Record] = {}
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
    return list(records.values())


def _without_outputs(records: Sequence[Record], to: Path) -> list[Record]:
    """Leave out the masks and overlays that earlier calls wrote to this folder."""
    written = [(to / folder).resolve() for folder in ("masks", "overlays")]
    kept = [
        record
        for record in records
        if not any(record.image.resolve().is_relative_to(folder) for folder in written)
    ]
    if not kept:
        raise ValueError(
            f"{to}: expected images from elsewhere, got only masks and overlays of --to. Correct "
            "IMAGES, or give another --to."
        )
    if len(kept) < len(records):
        left_out = len(records) - len(kept)
        print(f"{left_out} masks and overlays in {to}/ are left out, they are no images to predict")
    return kept


def segment(
    segmenter: Segmenter,
    localiser: Localiser | None,
    records: Sequence[Record],
    problems: dict[str, str],
) -> Iterator[Prediction]:
    """Give the best class of each pixel; scores are the localiser's where there is one.

    Args:
        segmenter: makes the masks.
        localiser: makes the scores; without it they are the segmenter's.
        records: images.
        problems: takes the images that cannot be read, name -> what is wrong.
    """
    scores: dict[str, np.ndarray] = {}

    def pictures() -> Iterator[Picture]:  # decoded once, for both networks
        if localiser is None:
            yield from load_pictures(records, problems=problems)
            return
        for record, pixels, output in localiser.over(records, 0, problems):
            scores[record.name] = output.scores
            yield Picture(record, pixels)

    for record, pixels, logits in segmenter.over_pictures(pictures()):
        shares = logits.softmax(dim=0)
        mask = segmenter.mask(logits)
        confidence = shares.gather(0, torch.from_numpy(mask).to(shares.device).long()[None])[0]
        found = segmenter.scores(logits)
        yield Prediction(
            record,
            pixels,
            scores.pop(record.name, found),
            confidence.cpu().numpy(),
            mask,
            found,
        )


def localise(
    run: Run,
    localiser: Localiser,
    records: Sequence[Record],
    thresholds: Sequence[float],
    problems: dict[str, str],
) -> Iterator[Prediction]:
    """Give the refined CAMs of the classes whose score is high enough, cut at K thresholds.

    Args:
        run: its settings of CAMs and pseudo labels are used.
        localiser: makes maps and scores.
        records: images.
        thresholds: of the K classes.
        problems: takes the images that cannot be read, name -> what is wrong.
    """
    settings = run.config.pseudo_label
    for record, pixels, output in localiser.over(records, 0, problems):
        present = localiser.predicted(output.scores)
        maps = output.cam(settings.cam_type, present)
        maps = refined(pixels, maps, settings, localiser.device)
        confidence = maps.max(axis=0) if present else np.zeros(output.size, np.float32)
        mask = seed_mask(levelled(maps, [thresholds[k] for k in present]), present, 0.5)
        yield Prediction(record, pixels, output.scores, confidence, mask, output.scores)


def _check_flags(args: argparse.Namespace) -> None:
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        raise ValueError(
            f"--threshold: expected a number in [0, 1], got {args.threshold}. CAMs lie in [0, 1]."
        )
    if args.min_area is not None and args.min_area < 0:
        raise ValueError(
            f"--min-area: expected 0 pixels or more, got {args.min_area}. 0 keeps all objects."
        )


def _page(
    one: Prediction, objects: Sequence[dict[str, Any]], class_names: Sequence[str]
) -> dict[str, Any]:
    """Return what the JSON file of an image holds."""
    areas = {name: int((one.mask == k + 1).sum()) for k, name in enumerate(class_names)}
    named_scores = zip(class_names, one.scores.tolist(), strict=True)
    return {
        "image": str(one.record.image),
        "height": one.mask.shape[0],
        "width": one.mask.shape[1],
        "class_scores": {name: round(score, 4) for name, score in named_scores},
        "areas_px": areas,
        "objects": [{k: v for k, v in entry.items() if k != "pixels"} for entry in objects],
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGES", help="pictures, folders or quoted patterns")
    add("--run", required=True, metavar="DIR", help="folder of the run whose models are used")
    add("--to", metavar="DIR", help="where to write (default: predicted/ in the run's folder); its "
        "masks/ and overlays/ are never read as images")  # fmt: skip
    add("--format", nargs="+", choices=tuple(COCO_FORMATS), default=[], help="further files")
    add("--min-area", type=int, metavar="PX", help="leave out smaller objects; 0 keeps all "
        "(default: learnt from the pseudo labels, for each class)")  # fmt: skip
    add("--max-false-alarm", type=share, default=0.05, metavar="SHARE", help="of good images that "
        "may be called defective, among those held out (default: 0.05)")  # fmt: skip
    add("--min-recall", type=share, default=0.99, metavar="SHARE", help="of defective images that "
        "must not be called ok, among those held out (default: 0.99)")  # fmt: skip
    add("--keep-all", action="store_true", help="write the masks of images that are ok too")
    add("--threshold", type=float, help="of CAMs, in [0, 1], only where a localiser alone is there "
        "(default: those of thresholds.json of the run)")  # fmt: skip
    add("--tile", type=int, metavar="PX", help="see larger images in tiles of this side; 0 = whole "
        "(default: as configured in training)")  # fmt: skip
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    return parser


if __name__ == "__main__":
    run_stage(main)
