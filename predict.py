"""Find defects in any images, without labels, with the models of a run.

  python predict.py photos/ --run runs/neu_seg
  python predict.py 'line3/*.jpg' part.png --run runs/neu_seg --to found --format coco

Takes pictures, folders (with all below them) and quoted patterns. The segmentation network of the
run makes the masks and the localiser the scores of the classes. With one of them alone, it does
both: scores are then the highest probability of a pixel, and masks the refined CAMs of the classes
that the localiser sees, cut at the thresholds that make_pseudo_labels.py found for them.

writes TO/masks/<name>.png (mask values, VOC palette), TO/overlays/<name>.jpg, TO/json/<name>.json
(scores, areas, objects with box and contours) and TO/summary.csv; with --format coco also
TO/coco.json (run lengths, exact) and with --format coco-polygons TO/coco_polygons.json (outlines
through the centres of the border pixels, holes filled), as pre-annotations for CVAT or Label
Studio. A picture that cannot be read is named at the end, after all others are done.
"""

import argparse
import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from pycocotools import mask as coco_mask
from tqdm import tqdm

from configs.command_line import run_stage
from datasets.files import list_images, read_image, write_image, write_mask
from datasets.pictures import paint_mask
from datasets.record import BACKGROUND, Record
from datasets.transforms import eval_transform
from localisation import Localised, localise_tiles, localise_whole, native_cam, scale_transforms
from models.crf import refined
from models.device import amp_dtype, select_device
from models.stac import stac_from_checkpoint
from seeds import levelled, seed_mask
from segmentation.networks import network_size
from segmentation.prediction import network_from_checkpoint, predict_tiles, predict_whole, sharpened
from trained import Trained, load_trained, run_thresholds

COCO_FORMATS = {"coco": "coco.json", "coco-polygons": "coco_polygons.json"}


class Found(NamedTuple):
    """What one model says about one image."""

    name: str
    scores: np.ndarray  # (K,) in [0, 1]
    confidence: np.ndarray  # (H, W) in [0, 1], of the class in the mask
    mask: np.ndarray  # (H, W) uint8 mask values


def main(argv: Sequence[str] | None = None) -> None:
    """Predict all images and write what was found."""
    args = _parser().parse_args(argv)
    _check_flags(args)
    run = Path(args.run)
    to = Path(args.to) if args.to else run / "found"
    segmenter, localiser = load_trained(run, args.tile)
    class_names = (segmenter or localiser).checkpoint["class_names"]
    if segmenter and localiser and localiser.checkpoint["class_names"] != class_names:
        raise ValueError(
            f"{run}: expected localiser and segmentation network of the same classes, got "
            f"{localiser.checkpoint['class_names']} and {class_names}. Train one of them again."
        )
    if segmenter and args.threshold is not None:
        raise ValueError(
            f"--threshold: expected a run with a localiser alone, got {run} with a segmentation "
            "network, which needs no threshold. Leave --threshold out, or give a run without "
            "segmentation/."
        )
    records, problems = readable(_without_outputs(find_images(args.images), to))
    device = select_device(args.device)
    scores = {}
    if segmenter:
        if localiser:
            scores = dict(image_scores_of(localiser, records, device))
        found = segment(segmenter, records, device)
    else:
        if args.threshold is None:
            thresholds = run_thresholds(run, localiser)
        else:
            thresholds = [args.threshold] * len(class_names)
        found = localise(localiser, records, device, thresholds)
    summary: list[list] = []
    images: list[dict[str, Any]] = []
    annotations: dict[str, list[dict[str, Any]]] = {form: [] for form in args.format}
    by_name = {record.name: record for record in records}
    progress = tqdm(found, "predict", len(records), unit="image", disable=None)
    for one in progress:
        record = by_name[one.name]
        one = one._replace(scores=scores.get(one.name, one.scores))
        mask, objects = objects_of(one.mask, one.confidence, class_names, args.min_area)
        write_mask(to / f"masks/{one.name}.png", mask)
        overlay = np.round(255 * paint_mask(read_image(record.image), mask)).astype(np.uint8)
        write_image(to / f"overlays/{one.name}.jpg", overlay)
        page = _page(record, mask, one.scores, objects, class_names)
        _write_json(to / f"json/{one.name}.json", page)
        summary.append([one.name, *page["areas_px"].values(), *page["class_scores"].values()])
        size = {"height": mask.shape[0], "width": mask.shape[1]}
        images.append({"id": len(images) + 1, "file_name": str(record.image), **size})
        for form, entries in annotations.items():
            entries += [
                coco_annotation(found_object, images[-1], form, class_names) | {"id": number}
                for number, found_object in enumerate(objects, start=len(entries) + 1)
            ]
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(class_names)]
    for form, entries in annotations.items():
        content = {"images": images, "annotations": entries, "categories": categories}
        _write_json(to / COCO_FORMATS[form], content)
    _write_summary(to / "summary.csv", summary, class_names)
    defective = sum(any(row[1 : 1 + len(class_names)]) for row in summary)
    print(f"wrote masks, overlays, json and summary.csv of {len(summary)} images to {to}/")
    print(f"{defective} of them show defects")
    if problems:
        raise ValueError(
            f"{len(problems)} of {len(records) + len(problems)} pictures could not be read: "
            f"{' | '.join(problems[:5])}"
        )


def find_images(given: Sequence[str]) -> list[Record]:
    """Return a record of every picture, named by its path below the folder that was given.

    Raises:
        FileNotFoundError: a path or pattern leads to no picture.
        ValueError: two pictures would get one name.
    """
    records: dict[str, Record] = {}
    for entry in given:
        for file, relative in list_images(entry):
            name = "_".join(relative.with_suffix("").parts)
            known = records.get(name)
            if known and known.image.resolve() != file.resolve():
                raise ValueError(
                    f"{file}: expected another name than {known.image}, both would be {name}. "
                    "Predict their folders one by one, or give the folder above both."
                )
            records[name] = Record(name, file, ())
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


def readable(records: Sequence[Record]) -> tuple[list[Record], list[str]]:
    """Return the records whose picture can be read, and what is wrong with the others."""
    good, problems = [], []
    for record in records:
        try:
            read_image(record.image)
        except (ValueError, OSError) as error:
            problems.append(str(error))
        else:
            good.append(record)
    return good, problems


def segment(model: Trained, records: Sequence[Record], device: torch.device) -> Iterator[Found]:
    """Give the best class of each pixel, and the highest probability of each class."""
    config, checkpoint = model.config, model.checkpoint
    network = network_from_checkpoint(checkpoint).to(device)
    size = network_size(config.segmentation.image_size, config.segmentation.network)
    transform = eval_transform(size, checkpoint["mean"], checkpoint["std"])
    dtype = amp_dtype(device, config.segmentation.amp)
    images = {record.name: record.image for record in records}
    predict = predict_tiles if config.segmentation.tile else predict_whole
    for name, logits in predict(network, records, transform, config, device, dtype):
        logits = sharpened(logits, read_image(images[name]), config.segmentation.refine_steps)
        shares = logits.softmax(dim=0)
        confidence, mask = shares.max(dim=0)
        scores = shares[1:].amax(dim=(1, 2)).cpu().numpy()
        yield Found(name, scores, confidence.cpu().numpy(), mask.to(torch.uint8).cpu().numpy())


def localise(
    model: Trained,
    records: Sequence[Record],
    device: torch.device,
    thresholds: Sequence[float],
) -> Iterator[Found]:
    """Give the refined CAMs of the classes whose score is high enough, cut at K thresholds."""
    config, (cam_type, *_) = model.config, model.config.cam.types
    images = {record.name: record.image for record in records}
    for one in _localised(model, records, device):
        present = (one.scores >= config.cam.label_threshold).nonzero()[:, 0].tolist()
        maps = native_cam([m[:, present] for m in one.maps[cam_type]], one.tiles, one.size)
        image = torch.from_numpy(read_image(images[one.record.name])).permute(2, 0, 1).float()
        settings = config.pseudo_label
        maps = refined(
            image.to(device),
            torch.from_numpy(maps).to(device),
            settings.refine,
            settings.refine_steps,
        )
        maps = maps.cpu().numpy()
        confidence = maps.max(axis=0) if present else np.zeros(one.size, np.float32)
        mask = seed_mask(levelled(maps, [thresholds[k] for k in present]), present, 0.5)
        yield Found(one.record.name, one.scores.cpu().numpy(), confidence, mask)


def image_scores_of(
    model: Trained, records: Sequence[Record], device: torch.device
) -> Iterator[tuple[str, np.ndarray]]:
    """Give the name of each image and its scores (K,) in [0, 1]."""
    progress = tqdm(
        _localised(model, records, device), "scores", len(records), unit="image", disable=None
    )
    for one in progress:
        yield one.record.name, one.scores.cpu().numpy()


def _localised(
    model: Trained, records: Sequence[Record], device: torch.device
) -> Iterator[Localised]:
    config, checkpoint = model.config, model.checkpoint
    network = stac_from_checkpoint(checkpoint).to(device)
    transforms = scale_transforms(network, checkpoint, config.cam.scales)
    run = localise_tiles if config.cam.tile else localise_whole
    dtype = amp_dtype(device, config.train.amp)
    return run(network, records, transforms, config, device, dtype)


def objects_of(
    mask: np.ndarray, confidence: np.ndarray, class_names: Sequence[str], min_area: int
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Divide a mask into objects: pixels of a class that touch, at a side or a corner.

    Args:
        mask: (H, W) uint8 mask values.
        confidence: (H, W) in [0, 1]; its mean is the score of an object.
        class_names: K names.
        min_area: smaller objects, in pixels, become background.

    Returns:
        The mask without small objects, and the objects class by class, top left first: class,
        area_px, box [x, y, width, height], score, contours [[[x, y], ...], ...] in pixels, and
        pixels, the bool of the object within its box, for the caller only.
    """
    kept, objects = np.full_like(mask, BACKGROUND), []
    for k, name in enumerate(class_names):
        count, parts, stats, _ = cv2.connectedComponentsWithStats(
            (mask == k + 1).astype(np.uint8), connectivity=8
        )
        for part in range(1, count):
            x, y, width, height, area = stats[part].tolist()
            if area < min_area:
                continue
            inside = parts[y : y + height, x : x + width] == part
            kept[y : y + height, x : x + width][inside] = k + 1
            contours, _ = cv2.findContours(
                inside.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE, offset=(x, y)
            )
            box = (slice(y, y + height), slice(x, x + width))
            objects.append(
                {
                    "class": name,
                    "area_px": area,
                    "box": [x, y, width, height],
                    "score": round(float(confidence[box][inside].mean()), 4),
                    "contours": [contour[:, 0].tolist() for contour in contours],
                    "pixels": inside,
                }
            )
    return kept, objects


def coco_annotation(
    found: dict[str, Any], image: dict[str, Any], form: str, class_names: Sequence[str]
) -> dict[str, Any]:
    """Return the COCO entry of an object, but for its id; category k + 1 is class k.

    Args:
        found: of `objects_of`.
        image: its image, with id, height and width.
        form: coco (compressed run lengths) or coco-polygons.
        class_names: K names.
    """
    x, y, width, height = found["box"]
    if form == "coco":
        pixels = np.zeros((image["height"], image["width"]), np.uint8, order="F")
        pixels[y : y + height, x : x + width] = found["pixels"]
        segmentation = coco_mask.encode(pixels)
        segmentation["counts"] = segmentation["counts"].decode()
    else:
        segmentation = [_polygon(contour, found["box"]) for contour in found["contours"]]
    return {
        "image_id": image["id"],
        "category_id": list(class_names).index(found["class"]) + 1,
        "segmentation": segmentation,
        "area": found["area_px"],
        "bbox": found["box"],
        "score": found["score"],
        "iscrowd": 0,
    }


def _polygon(contour: Sequence[Sequence[int]], box: Sequence[int]) -> list[float]:
    """Return x, y, ... through the centres of border pixels; the box of what has no inside."""
    if len(contour) >= 3 and min(box[2:]) >= 3:
        return [coordinate + 0.5 for point in contour for coordinate in point]
    x, y, width, height = box
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def _check_flags(args: argparse.Namespace) -> None:
    if args.threshold is not None and not 0 <= args.threshold <= 1:
        raise ValueError(
            f"--threshold: expected a number in [0, 1], got {args.threshold}. CAMs lie in [0, 1]."
        )
    if args.min_area < 0:
        raise ValueError(
            f"--min-area: expected 0 pixels or more, got {args.min_area}. 0 keeps all objects."
        )


def _page(
    record: Record,
    mask: np.ndarray,
    scores: np.ndarray,
    objects: Sequence[dict[str, Any]],
    class_names: Sequence[str],
) -> dict[str, Any]:
    areas = {name: int((mask == k + 1).sum()) for k, name in enumerate(class_names)}
    named_scores = zip(class_names, scores.tolist(), strict=True)
    return {
        "image": str(record.image),
        "height": mask.shape[0],
        "width": mask.shape[1],
        "class_scores": {name: round(score, 4) for name, score in named_scores},
        "areas_px": areas,
        "objects": [{k: v for k, v in one.items() if k != "pixels"} for one in objects],
    }


def _write_summary(path: Path, rows: Sequence[Sequence], class_names: Sequence[str]) -> None:
    heads = [f"{name}_{what}" for what in ("area_px", "score") for name in class_names]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["name", *heads], *rows])
    temporary.replace(path)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
    temporary.replace(path)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGES", help="pictures, folders or quoted patterns")
    add("--run", required=True, metavar="DIR", help="folder of the run whose models are used")
    add("--to", metavar="DIR", help="where to write (default: found/ in the run's folder); its "
        "masks/ and overlays/ are never read as images")  # fmt: skip
    add("--format", nargs="+", choices=tuple(COCO_FORMATS), default=[], help="further files")
    add("--min-area", type=int, default=0, metavar="PX", help="leave out smaller objects")
    add("--threshold", type=float, help="of CAMs, in [0, 1], only where a localiser alone is there "
        "(default: those of the run's pseudo labels)")  # fmt: skip
    add("--tile", type=int, metavar="PX", help="see larger images in tiles of this side; 0 = whole "
        "(default: as configured in training)")  # fmt: skip
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: auto")
    return parser


if __name__ == "__main__":
    run_stage(main)
