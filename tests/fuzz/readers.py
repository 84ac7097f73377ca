"""The readers that are fuzzed: real files of each kind, how they are read, what must hold then."""

import base64
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from safetensors.torch import save_file

from configs import Config, load, to_dict, to_toml
from datasets.files import (
    Cam,
    read_cam,
    read_image,
    read_levels,
    read_mask,
    read_saliency,
    write_cam,
    write_image,
    write_mask,
)
from datasets.layouts.common import read_labels, read_names
from datasets.layouts.table import read_table
from datasets.layouts.voc import read_voc
from datasets.outlines import read_annotated, read_outlines
from datasets.skipped import read_skipped
from models.backbones import read_state_dict
from released.arrays import read_released_cam, read_released_labels, read_released_list
from runfolder.checkpoint import load_checkpoint, save_checkpoint
from runfolder.held_out import read_held_out
from runfolder.results import results_table
from runfolder.run import CamMeta, SaliencyMeta, read_meta
from runfolder.training_log import TrainingLog

SIZE = (37, 51)
NAMES = ("crack", "dent")


class Reader(NamedTuple):
    """A reader.

    Attributes:
        path: of its file, below a folder of its own.
        seeds: contents of real files.
        content: what a real file says, as plain values, and how such values are written; so that
            files are whole and what they say is wrong. None where bytes alone are changed.
        read: reads the file of a folder.
        holds: tells whether what was read makes sense.
    """

    path: str
    seeds: list[bytes]
    read: Callable[[Path], Any]
    holds: Callable[[Any], bool]
    content: tuple[Any, Callable[[Any], bytes]] | None = None


def readers(folder: Path) -> dict[str, Reader]:
    """Return all readers; real files are made in a folder."""
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    pictures = [*_pictures(colour)]
    maps, scores = rng.random((2, *SIZE), np.float32), rng.random(3, np.float32)
    arrays = {k: maps[k] for k in (0, 1)}

    def made(name: str, write: Callable[[Path], Any]) -> bytes:
        path = folder / name
        write(path)
        return path.read_bytes()

    mask = (colour[..., 0] % 3).astype(np.uint8)
    cam = made("a.npz", lambda p: write_cam(p, Cam(maps, np.arange(2), scores)))
    masks = [made("m.png", lambda p: write_mask(p, mask))]
    grey = [made("g.png", lambda p: write_image(p, colour[..., 0]))]
    npy = made("c.npy", lambda p: np.save(p, arrays, allow_pickle=True))
    labels = made("l.npy", lambda p: np.save(p, {"a": scores, "b": scores}, allow_pickle=True))
    facts = {"class_names": list(NAMES), "mean": [0.5] * 3, "std": [0.5] * 3, "progress": {}}
    facts |= {"config": to_dict(Config()), "model": {"w": torch.rand(5, 5), "n": torch.arange(3)}}
    checkpoint = made("c.pt", lambda p: save_checkpoint(p, facts))
    weights = made("w.pth", lambda p: torch.save({"model": {"w": torch.rand(5, 5)}}, p))
    safe = made("w.safetensors", lambda p: save_file({"w": torch.rand(5, 5)}, p))
    toml = to_toml(Config()).encode()
    result = {"kind": "cam", "cam_type": "pixel", "split": "test", "labels": "given"}
    result |= {"threshold_rule": "auto", "threshold": 0.5, "iou": {"crack": 50.0}, "miou": 50.0}
    result |= {"fg_iou": 50.0}
    line = {"epoch": 1, "step": 2, "lr": 0.1, "train": {"total": 1.0}, "seconds": 3.0}
    meta = {"settings": {}, "refinement": {}, "splits": ["train"], "masked": [], "learnt": {}}
    meta |= {"seen_defect_free": []}
    held_out = [{"name": "a", "defective": True, "segmenter": [0.5], "localiser": [0.25]}]
    cam_meta = {"type": "pixel", "labels": "given", "settings": {}, "checkpoint": "c.pt"}
    cam_meta |= {"progress": {}, "masked": []}
    table = b"image,classes,mask,split,group\na.png,crack|dent,a.json,train,g\nb.png,,,test,\n"
    objects = "".join(f"<object><name>{n}</name></object>" for n in ("cat", "dog"))
    xml = f"<annotation>{objects}</annotation>".encode()

    def fits(image: np.ndarray) -> bool:
        return image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3

    def is_map(saliency: np.ndarray) -> bool:
        return saliency.ndim == 2 and bool(((saliency >= 0) & (saliency <= 1)).all())

    def is_mask(found: np.ndarray) -> bool:
        return found.ndim == 2 and found.dtype == np.uint8

    def outlines(path: Path) -> np.ndarray:
        return read_outlines(path, Path("a.png"), SIZE, NAMES)

    def is_cam(found: tuple) -> bool:
        return found[0].ndim == 3 and all(map(is_map, found[0])) and len(found[1]) == len(found[0])

    def finite(state: Any) -> bool:
        tensors = [t for t in state.values() if isinstance(t, torch.Tensor)]
        return all(t.isfinite().all() for t in tensors if t.is_floating_point())

    def voc(path: Path) -> Any:
        return read_voc(path.parents[1], {"train": "", "test": ""})

    def csv_table(path: Path) -> Any:
        return read_table(path.parent, path.name, (), 128)

    def log_of(path: Path) -> Any:
        TrainingLog(path.parent, 10, 2).close({})
        return path.read_text(encoding="utf-8")

    def any_value(_: Any) -> bool:
        return True

    return {
        "image": Reader("a.png", pictures, read_image, fits),
        "saliency map": Reader("a.png", [*grey, *pictures], read_saliency, is_map),
        "mask": Reader("a.png", masks, lambda p: read_mask(p, 2), is_mask),
        "grey mask": Reader("a.png", [*grey, *pictures], read_levels, is_mask),
        "CAM": Reader(
            "a.npz",
            [cam],
            read_cam,
            is_cam,
            ({"cam": maps, "classes": np.arange(2), "scores": scores}, _npz),
        ),
        "LabelMe": Reader("a.json", [_json(_labelme())], outlines, is_mask, (_labelme(), _json)),
        "COCO": Reader("a.json", [_json(_coco(mask))], outlines, is_mask, (_coco(mask), _json)),
        "Label Studio": Reader(
            "a.json", [_json(_label_studio())], outlines, is_mask, (_label_studio(), _json)
        ),
        "LabelMe folder": Reader(
            "folder/a.json",
            [_json(_labelme() | {"imagePath": "../a.png"})],
            lambda p: read_annotated(p.parent).images.number_of(Path("a.png")),
            any_value,
            (_labelme() | {"imagePath": "../a.png"}, _json),
        ),
        "released CAM": Reader("c.npy", [npy], read_released_cam, is_cam, (arrays, _npy)),
        "released labels": Reader(
            "l.npy",
            [labels],
            read_released_labels,
            lambda t: type(t) is dict,
            ({"a": scores, "b": scores}, _npy),
        ),
        "released list": Reader("l.txt", [b"a\nb\n001\n"], read_released_list, bool),
        "checkpoint": Reader(
            "c.pt", [checkpoint], lambda p: load_checkpoint(p, "x"), any_value, (facts, _torch)
        ),
        "weights": Reader(
            "w.pth",
            [weights],
            lambda p: read_state_dict(p, "x"),
            finite,
            ({"model": {"w": torch.rand(5, 5)}}, _torch),
        ),
        "safetensors": Reader("w.safetensors", [safe], lambda p: read_state_dict(p, "x"), finite),
        "config": Reader("c.toml", [toml], load, lambda c: isinstance(c, Config)),
        "results": Reader(
            "results.jsonl",
            [_line(result)],
            results_table,
            lambda t: type(t) is str,
            (result, _line),
        ),
        "training log": Reader(
            "log.jsonl", [_line(line)], log_of, lambda t: type(t) is str, (line, _line)
        ),
        "meta.json": Reader(
            "meta.json",
            [_json(meta)],
            lambda p: read_meta(p.parent, SaliencyMeta),
            any_value,
            (meta, _json),
        ),
        "meta.json of CAMs": Reader(
            "meta.json",
            [_json(cam_meta)],
            lambda p: read_meta(p.parent, CamMeta),
            any_value,
            (cam_meta, _json),
        ),
        "held-out scores": Reader(
            "held_out.json", [_json(held_out)], read_held_out, any_value, (held_out, _json)
        ),
        "table": Reader("t.csv", [table], csv_table, any_value),
        "list": Reader("l.txt", [b"a\nb\n001\n"], lambda p: read_names(p, ""), any_value),
        "labels": Reader(
            "labels.csv",
            [b"name,classes\r\na,crack|dent\r\nb,\r\n"],
            lambda p: read_labels(p, NAMES),
            any_value,
        ),
        "skipped": Reader(
            "skipped.csv", [b"path,problem\r\n/a.png,damaged\r\n"], read_skipped, any_value
        ),
        "VOC annotation": Reader("Annotations/a.xml", [xml], voc, any_value),
    }


def prepare(folder: Path) -> None:
    """Write what readers find beside their file."""
    for name in (
        "JPEGImages",
        "Annotations",
        "SegmentationClass",
        "ImageSets/Segmentation",
        "folder",
    ):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in ("a.png", "b.png", "JPEGImages/a.jpg"):
        write_image(folder / name, np.zeros((*SIZE, 3), np.uint8))
    (folder / "a.json").write_text(json.dumps(_labelme()))
    for split in ("train", "val", "trainval", "train_aug"):
        (folder / f"ImageSets/Segmentation/{split}.txt").write_text("a\n")


def _pictures(colour: np.ndarray) -> Iterator[bytes]:
    deep = (colour.astype(np.uint16) * 257)[..., 0]
    for form, pixels in (
        ("PNG", colour), ("PNG", colour[..., 0]), ("PNG", deep), ("JPEG", colour), ("BMP", colour),
        ("TIFF", colour), ("TIFF", deep), ("WEBP", colour),
    ):  # fmt: skip
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format=form)
        yield file.getvalue()


def _labelme() -> dict[str, Any]:
    file = io.BytesIO()
    Image.fromarray(np.eye(5, dtype=np.uint8)).save(file, format="PNG")
    painted = base64.b64encode(file.getvalue()).decode()
    points = [[1.5, 2.0], [20.0, 2.5], [10.0, 30.0]]
    shapes = [
        {"label": "crack", "shape_type": "polygon", "points": points},
        {"label": "dent", "shape_type": "rectangle", "points": points[:2]},
        {"label": "dent", "shape_type": "circle", "points": points[:2]},
        {"label": "dent", "shape_type": "mask", "points": points[:2], "mask": painted},
    ]
    return {"shapes": shapes, "imageHeight": SIZE[0], "imageWidth": SIZE[1]}


def _coco(mask: np.ndarray) -> dict[str, Any]:
    packed = coco_mask.encode(np.asfortranarray(mask > 0).astype(np.uint8))
    packed["counts"] = packed["counts"].decode()
    areas = [
        [[1, 2, 20, 2, 10, 30]],
        packed,
        {"size": list(SIZE), "counts": [5, 20, SIZE[0] * SIZE[1] - 25]},
    ]
    annotations = [{"image_id": 1, "category_id": 7, "segmentation": area} for area in areas]
    image = {"id": 1, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]}
    categories = [{"id": 7, "name": "dent"}]
    return {"images": [image], "annotations": annotations, "categories": categories}


def _label_studio() -> list[dict[str, Any]]:
    """Return a task with a region of each shape, the last of which covers the image."""
    runs = "".join(f"{length - 1:04b}" for length in (3, 4, 8, 16))
    runs = f"{4 * SIZE[0] * SIZE[1]:032b}{7:05b}{runs}"
    runs += f"111{4 * SIZE[0] * SIZE[1] - 1:016b}{255:08b}"
    brush = [int(f"{runs[i : i + 8]:0<8}", 2) for i in range(0, len(runs), 8)]
    about = {"original_height": SIZE[0], "original_width": SIZE[1], "image_rotation": 0}
    box = {"x": 10, "y": 20.5, "width": 30, "height": 5, "rotation": 12.5}
    oval = {"x": 50, "y": 50, "radiusX": 5, "radiusY": 9.5, "rotation": 0}
    shapes = {
        "polygonlabels": {"points": [[1.5, 2.0], [20.0, 2.5], [10.0, 30.0]], "closed": True},
        "rectanglelabels": box,
        "ellipselabels": oval,
        "brushlabels": {"format": "rle", "rle": brush},
    }
    result = [
        {"type": kind, **about, "value": {**value, kind: ["dent"]}}
        for kind, value in shapes.items()
    ]
    annotation = {"result": result, "was_cancelled": False, "updated_at": "2026-01-02T03:04:05Z"}
    older = {"result": [], "created_at": "2026-01-01T03:04:05.123456Z"}
    return [
        {"data": {"image": "/data/upload/1/1a2b3c4d-a.png"}, "annotations": [older, annotation]}
    ]


def _json(content: Any) -> bytes:
    return json.dumps(content).encode()


def _line(content: Any) -> bytes:
    return _json(content) + b"\n"


def _npz(content: Any) -> bytes:
    file = io.BytesIO()
    arrays = content if isinstance(content, dict) else {"cam": content}
    np.savez_compressed(file, **{str(name): value for name, value in arrays.items()})
    return file.getvalue()


def _npy(content: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, content, allow_pickle=True)
    return file.getvalue()


def _torch(content: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()
