"""LabelMe and COCO files as ground truth, drawn pixel by pixel."""

import base64
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from configs import DataConfig
from datasets.files import read_truth, write_image
from datasets.outlines import read_outlines
from datasets.record import Record
from datasets.sources import Data, read_data

NAMES = ("crack", "dent")
SIZE = (7, 9)


def read(source: str, root: Path, **settings: object) -> Data:
    config = DataConfig(source=source, root=str(root), test_share=0.0, **settings)
    return read_data(config, root.parent / "run/labels.csv")


def record_named(data: Data, name: str) -> Record:
    return {record.name: record for record in data.split("train")}[name]


def labelme(path: Path, *shapes: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"shapes": shapes, "imageHeight": SIZE[0], "imageWidth": SIZE[1], "imagePath": "x"}
    path.write_text(json.dumps(content))
    return path


def shape(label: str, kind: str, *points: tuple[float, float], **more: object) -> dict:
    return {"label": label, "shape_type": kind, "points": points, **more}


def picture(path: Path) -> Path:
    write_image(path, np.full((*SIZE, 3), 90, np.uint8))
    return path


def filled(*areas: tuple[slice, slice, int]) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    for rows, columns, value in areas:
        mask[rows, columns] = value
    return mask


def coco(path: Path, files: dict[int, str], annotations: list[dict]) -> Path:
    images = [{"id": i, "file_name": f, "height": 7, "width": 9} for i, f in files.items()]
    categories = [{"id": 5, "name": "dent"}, {"id": 9, "name": "crack"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(content))
    return path


def test_labelme_shapes_are_drawn_in_order(tmp_path):
    path = labelme(
        tmp_path / "a.json",
        shape("crack", "polygon", (2, 1), (6, 1), (6, 4), (2, 4)),
        shape("dent", "rectangle", (4, 3), (8, 6)),
    )
    expected = filled(
        (slice(1, 4), slice(2, 6), 1),
        (slice(3, 6), slice(4, 8), 2),  # on top where both are
    )
    np.testing.assert_array_equal(read_outlines(path, tmp_path / "a.jpg", SIZE, NAMES), expected)


def test_labelme_circles_and_painted_masks_are_drawn(tmp_path):
    part = np.zeros((2, 3), np.uint8)
    part[0, 0] = part[1, 2] = 1
    file = io.BytesIO()
    Image.fromarray(part).save(file, format="PNG")
    text = base64.b64encode(file.getvalue()).decode()
    path = labelme(
        tmp_path / "a.json",
        shape("crack", "circle", (4.5, 3.5), (7.5, 3.5)),
        shape("dent", "mask", (0, 0), (2, 1), mask=text),
        shape("dent", "mask", (8, 5), (10, 6), mask=text),  # reaches beyond the image
    )
    rows, columns = np.indices(SIZE) + 0.5  # centres
    disc = np.hypot(rows - 3.5, columns - 4.5)
    truth = read_outlines(path, tmp_path / "a.jpg", SIZE, NAMES)
    dents = [(0, 0), (1, 2), (5, 8)]
    assert [tuple(p) for p in np.argwhere(truth == 2)] == dents
    away = np.ones(SIZE, bool)
    away[tuple(zip(*dents, strict=True))] = False
    assert (truth[away & (disc < 2.5)] == 1).all()
    assert (truth[away & (disc > 3.5)] == 0).all()


def test_folders_take_labelme_files_next_to_the_images_or_under_masks(tmp_path):
    root = tmp_path / "parts"
    for name in ("crack/1", "dent/2", "dent/3", "good/4"):
        picture(root / f"{name}.jpg")
    labelme(root / "crack/1.json", shape("crack", "rectangle", (0, 0), (2, 1)))
    labelme(root / "masks/dent/2.json", shape("dent", "rectangle", (0, 0), (1, 2)))
    data = read("folder", root)
    np.testing.assert_array_equal(
        read_truth(record_named(data, "crack_1"), 2), filled((slice(0, 1), slice(0, 2), 1))
    )
    np.testing.assert_array_equal(
        read_truth(record_named(data, "dent_2"), 2), filled((slice(0, 2), slice(0, 1), 2))
    )
    assert record_named(data, "dent_3").mask is None
    assert not read_truth(record_named(data, "good_4"), 2).any()


def test_tables_name_labelme_files_of_several_classes(tmp_path):
    root = tmp_path / "parts"
    picture(root / "1.png")
    picture(root / "2.png")
    picture(root / "3.png")
    shapes = [shape(n, "rectangle", (x, 0), (x + 1, 1)) for x, n in enumerate(NAMES)]
    labelme(root / "marked/1.json", *shapes)
    lines = ("image,classes,mask", "1.png,crack|dent,marked/1.json", "2.png,,", "3.png,,")
    (root / "parts.csv").write_text("\n".join(lines))
    record = record_named(read("csv", root, table="parts.csv"), "1")
    assert record.classes == (0, 1)
    assert read_truth(record, 2)[0, :3].tolist() == [1, 2, 0]


def test_coco_polygons_and_run_lengths(tmp_path):
    root = tmp_path / "parts"
    for name in ("crack/1", "dent/1", "dent/2", "good/3", "good/4"):
        picture(root / f"{name}.png")
    square = filled((slice(2, 4), slice(5, 8), 1))
    packed = coco_mask.encode(np.asfortranarray(square))
    packed["counts"] = packed["counts"].decode()
    files = {1: "crack/1.png", 2: "./dent\\1.png", 3: "2.png", 4: "4.png", 8: "elsewhere.png"}
    annotations = [
        {"image_id": 1, "category_id": 9, "segmentation": [[1, 1, 4, 1, 4, 3, 1, 3]]},
        {"image_id": 2, "category_id": 5, "segmentation": packed, "iscrowd": 1},
        # Columns first: 2 pixels of background, 3 of dent, the rest background.
        {"image_id": 3, "category_id": 5, "segmentation": {"size": SIZE, "counts": [2, 3, 58]}},
    ]
    coco(root / "truth.json", files, annotations)
    data = read("folder", root, annotations="truth.json")
    expected = {
        "crack_1": filled((slice(1, 3), slice(1, 4), 1)),
        "dent_1": 2 * square,
        "dent_2": filled((slice(2, 5), slice(0, 1), 2)),
        "good_4": filled(),  # listed, and nothing outlined
    }
    for name, mask in expected.items():
        np.testing.assert_array_equal(read_truth(record_named(data, name), 2), mask, name)
    assert record_named(data, "good_3").mask is None


def test_reading_a_data_set_opens_no_outline(tmp_path):
    root = tmp_path / "parts"
    picture(root / "crack/1.png")
    picture(root / "crack/2.png")
    labelme(root / "crack/1.json").write_text("not JSON")
    assert record_named(read("folder", root), "crack_1").mask == root / "crack/1.json"
    broken = [{"image_id": 1, "category_id": 9, "segmentation": "nonsense"}]
    coco(root / "truth.json", {1: "1.png"}, broken)
    assert record_named(read("folder", root, annotations="truth.json"), "crack_1").mask_names


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([shape("hole", "rectangle", (0, 0), (1, 1))], "names of crack, dent, got 'hole'"),
        (
            [shape("dent", "linestrip", (0, 0), (1, 1))],
            "shapes.0.shape_type: 'linestrip' .*'polygon'",
        ),
        ([shape("dent", "polygon", (0, 0), (1, 1))], "outlines of three or more points"),
        ([{"label": "dent"}], "a LabelMe file, got at shapes.0.points .Field required"),
    ],
)
def test_faulty_shapes_are_named(tmp_path, shapes, message):
    path = labelme(tmp_path / "a.json", *shapes)
    with pytest.raises(ValueError, match=rf"a\.json: expected .*{message}"):
        read_outlines(path, tmp_path / "a.jpg", SIZE, NAMES)


def test_faulty_files_are_named(tmp_path):
    image = picture(tmp_path / "parts/dent/a.png")
    with pytest.raises(FileNotFoundError, match=r"a\.json: expected an annotation file"):
        read_outlines(tmp_path / "a.json", image, SIZE, NAMES)
    for text, message in (("{", "expected JSON"), ("3", "a LabelMe file .* got a int")):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            read_outlines(tmp_path / "a.json", image, SIZE, NAMES)
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ValueError, match="a COCO file .* got at images .Field required"):
        read_outlines(tmp_path / "a.json", image, SIZE, NAMES)
    file = coco(tmp_path / "b.json", {1: "x.png"}, [])
    with pytest.raises(ValueError, match=r"b\.json: expected an entry of a\.png, got none"):
        read_outlines(file, image, SIZE, NAMES)
    with pytest.raises(ValueError, match=r"b\.json: expected file names of the images"):
        read("folder", tmp_path / "parts", annotations=str(file))
    with pytest.raises(FileNotFoundError, match=r"c\.json: expected an annotation file"):
        read("folder", tmp_path / "parts", annotations="c.json")


def test_run_lengths_of_another_size_are_refused(tmp_path):
    image = picture(tmp_path / "a.png")
    wrong = [{"image_id": 1, "category_id": 5, "segmentation": {"size": [3, 3], "counts": [9]}}]
    with pytest.raises(ValueError, match=r"run lengths of size \(7, 9\), got \(3, 3\)"):
        read_outlines(coco(tmp_path / "a.json", {1: "a.png"}, wrong), image, SIZE, NAMES)
