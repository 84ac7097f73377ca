"""Find defects in images with the exported models of this folder, without PyTorch.

  python stac_onnx.py photos/ --to masks_of_photos
  python stac_onnx.py 'line3/*.jpg' part.png --to line3_masks --min-area 20

Needs Python 3.10, onnxruntime, NumPy and Pillow, and the files beside it: model.json, model.onnx,
stac_arrays.py, stac_files.py and, where model.json names it, localiser.onnx. Takes pictures,
folders (with all below them) and quoted patterns. Writes TO/masks/<name>.png (0 background, k class
k of class_names, from 1), TO/json/<name>.json (verdict, scores, areas, objects with box and
contours) and TO/summary.csv, with the fields of predict.py. In Python:

  import stac_onnx
  model = stac_onnx.load("exported")
  result = model.predict("part.png")  # or (H, W, 3) uint8 RGB
  print(result.verdict, result.page["areas_px"], result.mask.shape)
"""

import argparse
import csv
import hashlib
import io
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import stac_arrays as arrays
from stac_files import checked, content_of, list_images, png_of, read_image, write

FORMAT = 1  # of model.json
FACTS = "model.json"
PARTS = ("class_names", "segmentation", "localiser", "tile_overlap", "verdict")  # of it
OK, UNSURE, DEFECTIVE = "ok", "unsure", "defective"


class Result(NamedTuple):
    """What the models say of one image.

    Attributes:
        verdict: ok, unsure or defective.
        mask: (H, W) uint8, 0 background, k + 1 class k.
        page: what the JSON file of the image holds.
    """

    verdict: str
    mask: np.ndarray
    page: dict[str, Any]


class Model:
    """The models of an exported folder, ready for images.

    Attributes:
        facts: model.json; thresholds and limits may be changed here.
    """

    def __init__(self, folder: Path, threads: int = 0):
        """Read the folder; see `load`."""
        self.facts = _read_facts(folder / FACTS)
        self.class_names: list[str] = self.facts["class_names"]
        self.network = _session(folder, self.facts["segmentation"], threads)
        localiser = self.facts["localiser"]
        self.localiser = _session(folder, localiser, threads) if localiser else None

    def predict(
        self,
        picture: str | Path | np.ndarray,
        min_area: int | None = None,
        tile: int | None = None,
        keep_all: bool = False,
    ) -> Result:
        """Return mask, verdict and objects of an image.

        Args:
            picture: a file, or (H, W, 3) uint8 RGB, or (H, W) uint8 grey.
            min_area: smaller objects, in pixels, become background; replaces the least areas of
                model.json.
            tile: see larger images in tiles of this side, 0 = whole; replaces those of model.json.
            keep_all: keep the mask of an image that is ok.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a picture, another array, or a negative number.
        """
        for name, value in (("min_area", min_area), ("tile", tile)):
            if value is not None and value < 0:
                raise ValueError(f"{name}: expected 0 pixels or more, got {value}.")
        of_array = isinstance(picture, np.ndarray)
        pixels = checked(picture) if of_array else read_image(Path(picture))
        least_areas = self.facts["segmentation"]["least_areas"]

        # Models.
        logits = self.logits(pixels, tile)
        shares = arrays.softmax(logits)
        found = arrays.surest(shares[1:], least_areas)
        scores = self.localiser_scores(pixels, tile) if self.localiser else found

        # Mask.
        thresholds = self.facts["segmentation"]["thresholds"]
        mask = arrays.shifted(logits, thresholds).argmax(axis=0).astype(np.uint8)
        if min_area is None:
            mask = arrays.without_specks(mask, least_areas)
        confidence = np.take_along_axis(shares, mask[None].astype(np.int64), axis=0)[0]
        mask, objects = self._objects(mask, confidence, min_area or 0)

        # Verdict.
        page, probabilities = self._judged(mask, found, scores)
        if page["verdict"] == OK and not keep_all:
            mask, objects = np.zeros_like(mask), []
        page |= {
            "image": None if of_array else str(picture),
            "height": mask.shape[0],
            "width": mask.shape[1],
            "class_scores": self._by_class(scores),
            "class_probabilities": None if probabilities is None else self._by_class(probabilities),
            "areas_px": {n: int((mask == k + 1).sum()) for k, n in enumerate(self.class_names)},
            "objects": objects,
        }
        return Result(page["verdict"], mask, page)

    def _judged(
        self, mask: np.ndarray, found: np.ndarray, scores: np.ndarray
    ) -> tuple[dict[str, Any], np.ndarray | None]:
        """Return the verdict as the head of a page, and the probabilities of the classes."""
        limits = self.facts["verdict"]
        if not limits:
            verdict, shown = (DEFECTIVE, "a defect") if mask.any() else (OK, "no defect")
            reason = f"the mask shows {shown}"
            return {"verdict": verdict, "reason": reason, "defect_score": None}, None
        judged = np.mean([found, scores] if limits["with_localiser"] else [found], axis=0)
        score = float(judged.max())
        verdict, reason = _verdict(score, limits)
        page = {"verdict": verdict, "reason": reason, "defect_score": score}
        page |= {key: limits[key] for key in ("ok_below", "defective_from")}
        calibration = limits["calibration"]
        return page, calibration and arrays.probabilities(judged, **calibration)

    def _by_class(self, numbers: np.ndarray) -> dict[str, float]:
        named = zip(self.class_names, numbers.tolist(), strict=True)
        return {name: round(number, 4) for name, number in named}

    def logits(self, pixels: np.ndarray, tile: int | None = None) -> np.ndarray:
        """Return logits (K + 1, H, W) of (H, W, 3) uint8; their softmax are probabilities."""
        facts, size = self.facts["segmentation"], pixels.shape[:2]
        total = np.zeros((len(self.class_names) + 1, *size), np.float32)
        for part in self._tiles(size, facts, tile):
            image = pixels[part.rows, part.columns]
            batch = arrays.network_input(image, facts["image_size"], facts["mean"], facts["std"])
            of_part = self.network.run(["logits"], {"image": batch})[0][0]
            total[:, part.rows, part.columns] += (
                arrays.resized_maps(of_part, image.shape[:2]) * part.weights
            )
        if not facts["pamr"]["steps"]:
            return total
        moved = arrays.refined(pixels, arrays.softmax(total), facts["pamr"])
        return np.log(np.maximum(moved, np.float32(facts["probability_floor"])))

    def localiser_scores(self, pixels: np.ndarray, tile: int | None = None) -> np.ndarray:
        """Return the localiser's scores (K,) in [0, 1]: means of views, the highest of tiles."""
        facts, of_tiles = self.facts["localiser"], []
        for part in self._tiles(pixels.shape[:2], facts, tile):
            image, views = pixels[part.rows, part.columns], []
            for size in facts["image_sizes"]:
                view = arrays.network_input(image, size, facts["mean"], facts["std"])
                views += [view, view[..., ::-1].copy()] if facts["flip"] else [view]
            scores = [self.localiser.run(["scores"], {"image": view})[0][0] for view in views]
            of_tiles.append(np.mean(scores, axis=0))
        return np.max(of_tiles, axis=0)

    def _tiles(self, size: tuple[int, int], facts: dict, tile: int | None) -> list[arrays.Tile]:
        side = facts["tile"] if tile is None else tile
        return arrays.tiles_of(size, side, self.facts["tile_overlap"])

    def _objects(
        self, mask: np.ndarray, confidence: np.ndarray, min_area: int
    ) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Return the mask without small objects, and the objects class by class."""
        kept, objects = np.zeros_like(mask), []
        for k, name in enumerate(self.class_names):
            found = arrays.regions_of(mask == k + 1)
            for region in np.flatnonzero(found.areas >= min_area):
                box, inside = found.inside(region)
                kept[box][inside] = k + 1
                x, y, width, height = found.boxes[region].tolist()
                corners = [[column + x, row + y] for column, row in arrays.outline(inside)]
                objects.append(
                    {
                        "class": name,
                        "area_px": int(found.areas[region]),
                        "box": [x, y, width, height],
                        "score": round(float(confidence[box][inside].mean()), 4),
                        "contours": [corners],
                    }
                )
        return kept, objects


def load(folder: str | Path, threads: int = 0) -> Model:
    """Return the models of an exported folder.

    Args:
        folder: with model.json and what it names.
        threads: of ONNX Runtime; 0 takes a thread for each core.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or another than the one that was exported.
    """
    return Model(Path(folder), threads)


def _verdict(score: float, limits: dict[str, Any]) -> tuple[str, str]:
    """Return the verdict and its reason."""
    ok_below, defective_from = (limits[key] for key in ("ok_below", "defective_from"))
    if score >= defective_from:
        return DEFECTIVE, f"score {score:.3f}, defective from {defective_from:.3f}"
    if score < ok_below:
        return OK, f"score {score:.3f}, ok below {ok_below:.3f}"
    return UNSURE, f"score {score:.3f}, between {ok_below:.3f} and {defective_from:.3f}"


def _read_facts(path: Path) -> dict[str, Any]:
    data = content_of(path, "what export.py says of its models")
    try:
        facts = json.loads(data)
        if facts["format"] != FORMAT:
            raise ValueError(f"format {facts['format']}")
        if missing := [part for part in PARTS if part not in facts]:
            raise ValueError(f"no {', '.join(missing)}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: expected the JSON of export.py, format {FORMAT}, got {error!r:.100}. Copy "
            "the exported folder again."
        ) from error
    return facts


def _session(folder: Path, facts: dict[str, Any], threads: int) -> onnxruntime.InferenceSession:
    """Return a model, after a look at its hash."""
    path = folder / facts["file"]
    content = content_of(path, f"a file that {FACTS} names")
    found = hashlib.sha256(content).hexdigest()
    if found != facts["sha256"]:
        raise ValueError(
            f"{path}: expected the SHA-256 of {FACTS}, {facts['sha256'][:12]}..., got "
            f"{found[:12]}... The file was changed or damaged; copy the exported folder again."
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def main(argv: Sequence[str] | None = None) -> None:
    """Predict all images and write masks, JSON and a summary."""
    args = _parser().parse_args(argv)
    model, to = load(args.model, args.threads), Path(args.to)
    rows, problems = [], []
    for name, file in list_images(args.images, to):
        try:
            result = model.predict(file, args.min_area, args.tile, args.keep_all)
        except (ValueError, OSError) as error:
            problems.append(str(error))
            continue
        write(to / f"masks/{name}.png", png_of(result.mask))
        text = json.dumps(result.page, indent=1, ensure_ascii=False, allow_nan=False)
        write(to / f"json/{name}.json", f"{text}\n".encode())
        page = result.page
        probabilities = page["class_probabilities"] or dict.fromkeys(model.class_names, "")
        of_classes = (page["areas_px"], page["class_scores"], probabilities)
        numbers = [number for numbers in of_classes for number in numbers.values()]
        rows.append([name, result.verdict, *numbers, page["reason"]])
    kinds = ("area_px", "score", "probability")
    heads = [f"{name}_{what}" for what in kinds for name in model.class_names]
    table = io.StringIO()
    csv.writer(table).writerows([["name", "verdict", *heads, "reason"], *rows])
    write(to / "summary.csv", table.getvalue().encode())
    counts = Counter(row[1] for row in rows)
    print(f"wrote masks, json and summary.csv of {len(rows)} images to {to}/")
    print(", ".join(f"{counts[verdict]} {verdict}" for verdict in (DEFECTIVE, UNSURE, OK)))
    if problems:
        raise ValueError(
            f"{len(problems)} of {len(rows) + len(problems)} pictures could not be read: "
            f"{' | '.join(problems[:5])}"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, here = parser.add_argument, Path(__file__).parent
    add("images", nargs="+", metavar="IMAGES", help="pictures, folders or quoted patterns")
    add("--to", default="predicted", metavar="DIR", help="where to write (default: predicted/)")
    add("--model", default=here, metavar="DIR", help="exported folder (default: that of this file)")
    add("--min-area", type=int, metavar="PX", help="leave out smaller objects; 0 keeps all")
    add("--tile", type=int, metavar="PX", help="see larger images in tiles of this side; 0 = whole")
    add("--keep-all", action="store_true", help="write the masks of images that are ok too")
    add("--threads", type=int, default=0, metavar="N", help="default: a thread for each core")
    return parser


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as problem:
        sys.exit(f"error: {problem}")
