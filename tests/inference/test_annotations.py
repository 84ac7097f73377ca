"""Predictions as files of annotation tools, and what the importers of these tools read."""

import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from datasets.files import write_image
from datasets.outlines import read_annotated, read_outlines
from inference.annotations import FORMATS, Annotated, entry_of, outline, write_annotations
from inference.objects import objects_of

CLASSES = ("crack", "dent & dirt")
SIZE = (23, 31)
PICTURES = ("a.png", "deep/b c.png")
COCO_FILES = {"coco": "coco.json", "coco-polygons": "coco_polygons.json"}
READERS = ["pycocotools", *(n for n in ("datumaro",) if importlib.util.find_spec(n))]  # CVAT's


def objects_in(mask: np.ndarray) -> list[dict]:
    return objects_of(mask, np.full(mask.shape, 0.75, np.float32), CLASSES, 1)[1]


def hard_masks() -> Iterator[np.ndarray]:
    """Give masks with holes, holes within islands within holes, corners that touch, thin parts."""
    ring = np.zeros(SIZE, np.uint8)
    ring[2:20, 3:28], ring[4:18, 5:26], ring[6:16, 7:24], ring[9:12, 9:20] = 1, 0, 2, 0
    ring[10, 12] = 1
    yield ring
    diagonal = np.zeros(SIZE, np.uint8)
    diagonal[np.arange(20), np.arange(20)], diagonal[22], diagonal[5, 30] = 1, 2, 1
    yield diagonal
    rng = np.random.default_rng(0)
    for share in (0.1, 0.3, 0.5, 0.7, 0.95):
        for _ in range(3):
            yield (rng.random(SIZE) < share).astype(np.uint8) * rng.choice([1, 2], SIZE)


def whole(one: dict) -> np.ndarray:
    x, y, width, height = one["box"]
    pixels = np.zeros(SIZE, bool)
    pixels[y : y + height, x : x + width] = one["pixels"]
    return pixels


def signed_area(corners: np.ndarray) -> float:
    x, y = corners.astype(float).T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2)


def test_outlines_of_a_rectangle_and_a_ring_go_along_the_edges_of_pixels():
    (one,) = objects_in(np.pad(np.ones((3, 4), np.uint8), ((2, 5), (3, 6))))
    assert sorted(map(tuple, outline(one).tolist())) == [(3, 2), (3, 5), (7, 2), (7, 5)]
    mask = np.pad(np.ones((3, 3), np.uint8), 1)
    mask[2, 2] = 0
    corners = {tuple(corner) for corner in outline(objects_in(mask)[0]).tolist()}
    assert corners == {(1, 1), (4, 1), (4, 4), (1, 4), (2, 2), (3, 2), (3, 3), (2, 3)}


def test_the_area_of_every_polygon_is_that_of_its_object():
    seen = 0
    for mask in hard_masks():
        for one in objects_in(mask):
            seen += 1
            corners = outline(one)
            assert abs(signed_area(corners)) == one["area_px"]
            packed = coco_mask.frPyObjects([corners.astype(float).reshape(-1).tolist()], *SIZE)
            np.testing.assert_array_equal(coco_mask.decode(packed)[..., 0], whole(one))
    assert seen > 100


def test_entries_do_not_change_the_object():
    (one,) = objects_in(np.pad(np.ones((3, 4), np.uint8), 2))
    before = one["pixels"].copy(), list(one["box"]), [list(map(list, c)) for c in one["contours"]]
    for form in FORMATS:
        json.dumps(entry_of(one, (7, 8), form, CLASSES))
    np.testing.assert_array_equal(one["pixels"], before[0])
    assert (one["box"], one["contours"]) == before[1:]


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, dict[Path, np.ndarray]]:
    """Return a folder with photos/ and to/, all formats of two masks, and the masks by picture."""
    root = tmp_path_factory.mktemp("written")
    ring, _, *noise = hard_masks()
    masks, images = {}, []
    for number, (below, mask) in enumerate(zip(PICTURES, (ring, noise[6]), strict=True)):
        file = root / "photos" / below
        write_image(file, np.zeros((*SIZE, 3), np.uint8))
        objects = objects_in(mask)
        entries = {f: [entry_of(o, SIZE, f, CLASSES) for o in objects] for f in FORMATS}
        images.append(Annotated(f"image_{number}", file, PurePosixPath(below), SIZE, entries))
        masks[file] = mask
    files = [write_annotations(f, images, CLASSES, root / "to", "STAC r") for f in FORMATS]
    assert files == [
        root / "to" / name
        for name in ("coco.json", "coco_polygons.json", "label_studio.json", "labelme")
    ]
    return root, masks


def objects_by_pycocotools(path: Path, photos: Path) -> dict[Path, list[tuple[str, np.ndarray]]]:
    coco = COCO(path)
    return {
        photos / image["file_name"]: [
            (coco.cats[one["category_id"]]["name"], coco.annToMask(one).astype(bool))
            for one in coco.imgToAnns[image["id"]]
        ]
        for image in coco.imgs.values()
    }


def objects_by_datumaro(path: Path, photos: Path) -> dict[Path, list[tuple[str, np.ndarray]]]:
    """Read as CVAT does, which imports COCO files through this library."""
    from datumaro.components.annotation import AnnotationType
    from datumaro.components.dataset import Dataset

    folder = path.parent / f"of_{path.stem}"
    (folder / "annotations").mkdir(parents=True)
    os.link(path, folder / "annotations/instances_default.json")
    (folder / "images").symlink_to(photos)
    found = {}
    for item in Dataset.import_from(str(folder), "coco_instances"):
        drawn = [one for one in item.annotations if one.type != AnnotationType.bbox]
        names, areas = [CLASSES[one.label] for one in drawn], []
        for one in drawn:
            if one.type == AnnotationType.polygon:
                packed = coco_mask.frPyObjects([one.points], *SIZE)
                areas.append(coco_mask.decode(packed)[..., 0].astype(bool))
            else:
                areas.append(np.asarray(one.image, bool))
        found[photos / f"{item.id}.png"] = list(zip(names, areas, strict=True))
    return found


@pytest.mark.parametrize("form", COCO_FILES)
@pytest.mark.parametrize("reader", READERS)
def test_importers_of_coco_files_read_the_same_masks_back(written, tmp_path, reader, form):
    root, masks = written
    path = tmp_path / COCO_FILES[form]
    path.write_bytes((root / "to" / COCO_FILES[form]).read_bytes())
    read: Callable = {"pycocotools": objects_by_pycocotools, "datumaro": objects_by_datumaro}[
        reader
    ]
    found = read(path, root / "photos")
    assert set(found) == set(masks)
    for picture, mask in masks.items():
        drawn = np.zeros(SIZE, np.uint8)
        for name, area in found[picture]:
            assert area.any() and not drawn[area].any()
            drawn[area] = CLASSES.index(name) + 1
        np.testing.assert_array_equal(drawn, mask)


def test_cvat_finds_what_its_importer_needs(written):
    """Its rules: names below the uploaded folder, ids from 1, polygons as lists of 6 and more."""
    page = json.loads((written[0] / "to/coco_polygons.json").read_text())
    assert [image["file_name"] for image in page["images"]] == list(PICTURES)
    assert [(i["height"], i["width"]) for i in page["images"]] == [SIZE, SIZE]
    assert [c["name"] for c in page["categories"]] == list(CLASSES)
    annotations = page["annotations"]
    assert [a["id"] for a in annotations] == list(range(1, len(annotations) + 1))
    assert {a["category_id"] for a in annotations} == {c["id"] for c in page["categories"]}
    assert {a["image_id"] for a in annotations} == {image["id"] for image in page["images"]}
    for one in annotations:
        assert one["iscrowd"] == 0 and len(one["bbox"]) == 4 and one["area"] > 0
        for polygon in one["segmentation"]:
            assert len(polygon) >= 6 and len(polygon) % 2 == 0
            assert all(isinstance(number, float) for number in polygon)


def test_label_studio_finds_what_its_importer_needs(written):
    """Its rules: names of the interface, types in small letters, percent, images it may serve."""
    root, _ = written
    tasks = json.loads((root / "to/label_studio.json").read_text())
    interface = ElementTree.parse(root / "to/label_studio.xml").getroot()
    (image,) = interface.findall("Image")
    (control,) = interface.findall("PolygonLabels")
    labels = [label.get("value") for label in control]
    assert labels == list(CLASSES)
    # It serves what is below its document root, from folders in it: photos/ here, in root.
    for task, below in zip(tasks, PICTURES, strict=True):
        url = urlsplit(task["data"][image.get("value").removeprefix("$")])
        assert (url.scheme, url.path) == ("", "/data/local-files/")
        assert parse_qs(url.query)["d"] == [f"photos/{below}"]
        (prediction,) = task["predictions"]
        regions = prediction["result"]
        assert prediction["model_version"] == "STAC r" and prediction["score"] == 0.75
        assert len({region["id"] for region in regions}) == len(regions) > 1
        for region in regions:
            assert isinstance(region["id"], str) and region["type"] == "polygonlabels"
            assert region["from_name"] == control.get("name")
            assert region["to_name"] == control.get("toName") == image.get("name")
            assert (region["original_height"], region["original_width"]) == SIZE
            assert set(region["value"]["polygonlabels"]) < set(labels)
            points = np.array(region["value"]["points"])
            assert points.shape[1] == 2 and points.min() >= 0 and points.max() <= 100


def test_labelme_finds_what_it_needs(written):
    """Its rules: imagePath from the file's folder, imageData there, and fields of shapes."""
    root, masks = written
    files = sorted((root / "to/labelme").iterdir())
    assert [file.name for file in files] == ["image_0.json", "image_1.json"]
    for file, picture in zip(files, masks, strict=True):
        page = json.loads(file.read_text())
        assert (file.parent / page["imagePath"]).resolve() == picture.resolve()
        assert page["imageData"] is None and page["flags"] == {}
        assert (page["imageHeight"], page["imageWidth"]) == SIZE
        for shape in page["shapes"]:
            assert shape["label"] in CLASSES and shape["shape_type"] == "polygon"
            assert len(shape["points"]) >= 4 and shape["group_id"] is None


def test_every_format_is_read_back_as_masks_but_predictions_of_label_studio(written):
    root, masks = written
    for name, kind in (
        ("coco.json", "COCO"), ("coco_polygons.json", "COCO"), ("labelme", "LabelMe"),
    ):  # fmt: skip
        annotated = read_annotated(root / "to" / name)
        assert annotated.kind == kind
        for picture, mask in masks.items():
            file = annotated.files[annotated.images.number_of(picture)]
            np.testing.assert_array_equal(read_outlines(file, picture, SIZE, CLASSES), mask)
    path = root / "to/label_studio.json"
    with pytest.raises(ValueError, match=r"label_studio\.json: .* of type JSON, got at 0\.annot"):
        read_annotated(path)  # nobody has looked at them yet
    tasks = json.loads(path.read_text())
    for task in tasks:  # as Label Studio exports what was accepted
        task["annotations"] = [{"result": task["predictions"][0]["result"]}]
    accepted = root / "accepted.json"
    accepted.write_text(json.dumps(tasks))
    for picture, mask in masks.items():
        np.testing.assert_array_equal(read_outlines(accepted, picture, SIZE, CLASSES), mask)


def test_pictures_of_the_working_folder_are_named_by_it(tmp_path, monkeypatch):
    (tmp_path / "line 3").mkdir()
    monkeypatch.chdir(tmp_path / "line 3")
    image = Annotated("a", Path("a.png"), PurePosixPath("a.png"), SIZE, {"label-studio": []})
    path = write_annotations("label-studio", [image], CLASSES, tmp_path, "STAC r")
    (task,) = json.loads(path.read_text())
    assert task["data"]["image"] == "/data/local-files/?d=line%203/a.png"
    assert task["predictions"][0] == {"model_version": "STAC r", "score": 0.0, "result": []}
