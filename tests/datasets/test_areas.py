"""What outlines and run lengths enclose, also where their numbers are wrong or hostile."""

import base64
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask

from datasets import areas
from datasets.files import write_image
from datasets.outlines import read_outlines

SIZE = (7, 9)
NAMES = ("crack", "dent")


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:pycocotools")


def drawn(polygon, size) -> np.ndarray:
    flat = [[coordinate for corner in polygon for coordinate in corner]]
    return coco_mask.decode(coco_mask.frPyObjects(flat, *size))[..., 0].astype(bool)


coordinates = st.floats(0, 40, allow_nan=False)


@given(st.lists(st.tuples(coordinates, coordinates), min_size=3, max_size=9))
@settings(max_examples=100, deadline=None)
def test_a_polygon_inside_is_drawn_as_pycocotools_draws_it(polygon):
    np.testing.assert_array_equal(areas.of_polygons([polygon], (40, 40)), drawn(polygon, (40, 40)))


@pytest.mark.parametrize("seed", range(20))
def test_a_polygon_is_cut_at_the_edges(seed):
    # Around a point in the image, so that it does not cross itself.
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 7))
    corners = rng.uniform(0, 40, 2) + rng.uniform(10, 60, (7, 1)) * np.stack(
        [np.cos(angles), np.sin(angles)], axis=1
    )
    found = areas.of_polygons([[*map(tuple, corners)]], (40, 40))
    whole = drawn((corners + 70).tolist(), (180, 180))[70:110, 70:110]
    assert (found != whole).sum() <= 16  # of the pixels along its outline, which rounds otherwise
    if whole.sum() > 200:
        assert (found & whole).sum() > 0.9 * (found | whole).sum()


def test_a_polygon_beyond_the_image_is_nothing_and_one_around_it_is_all():
    outside = [(-9.0, -9.0), (-1.0, -9.0), (-1.0, 30.0)]
    with pytest.warns(areas.BeyondImage, match="an outline beyond the image is cut at its edges"):
        assert not areas.of_polygons([outside], SIZE).any()
    around = [(-1e7, -1e7), (1e7, -1e7), (1e7, 1e7), (-1e7, 1e7)]
    assert areas.of_polygons([around], SIZE).all()


@pytest.mark.parametrize("seed", range(10))
def test_run_lengths_are_read_as_pycocotools_writes_them(seed):
    rng = np.random.default_rng(seed)
    mask = np.kron(rng.random(rng.integers(1, 20, 2)) < 0.4, np.ones((3, 2)))
    packed = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    for counts in (packed["counts"], packed["counts"].decode()):
        np.testing.assert_array_equal(areas.of_run_lengths(counts, mask.shape), mask > 0)


@pytest.mark.parametrize(
    ("counts", "got"),
    [
        ([70, -7], "from -7 that add up to 63"),
        ([3, 3], "from 3 that add up to 6"),
        ([0, 10**18], "add up to 1000000000000000000"),
        ("oooooooooooooooooooooooo", "COCO's text"),
        ("o", "cut off"),
        ("\u20ac", "COCO's text"),
        ("", "from 0 that add up to 0"),
    ],
)
def test_run_lengths_that_do_not_fit_are_refused(counts, got):
    with pytest.raises(ValueError, match=got):
        areas.of_run_lengths(counts, SIZE)


def png(pixels: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_a_painted_mask_reaches_over_every_edge():
    text = png(np.full((3, 4), 255, np.uint8))
    for left_top, rows, columns in (
        ((-2, -1), slice(0, 2), slice(0, 2)),
        ((7, 5), slice(5, 7), slice(7, 9)),
        ((-20, 0), slice(0, 0), slice(0, 0)),
        ((20, 20), slice(0, 0), slice(0, 0)),
    ):
        expected = np.zeros(SIZE, bool)
        expected[rows, columns] = True
        np.testing.assert_array_equal(areas.of_picture(text, left_top, SIZE), expected)


@pytest.mark.parametrize(
    ("text", "got"),
    [
        ("nonsense!", "painted masks as base64"),
        (png(np.zeros((8, 9), np.uint8)), "got: 9 x 8 pixels"),
        (png(np.zeros((3, 3, 3), np.uint8)), "of one channel, got 3"),
    ],
)
def test_a_painted_mask_that_is_none_is_refused(text, got):
    with pytest.raises(ValueError, match=got):
        areas.of_picture(text, (0, 0), SIZE)


LABELME = {"imageHeight": 7, "imageWidth": 9, "shapes": []}
TRIANGLE = {"label": "dent", "points": [[0, 0], [3, 0], [3, 3]]}
COCO = {
    "images": [{"id": 1, "file_name": "a.png", "height": 7, "width": 9}],
    "annotations": [{"image_id": 1, "category_id": 1, "segmentation": [[0, 0, 3, 0, 3, 3]]}],
    "categories": [{"id": 1, "name": "dent"}],
}


def of_shape(**changes: object) -> str:
    return json.dumps(LABELME | {"shapes": [TRIANGLE | changes]})


def of_annotation(**changes: object) -> str:
    return json.dumps(COCO | {"annotations": [COCO["annotations"][0] | changes]})


@pytest.mark.parametrize(
    ("text", "got"),
    [
        (of_shape(points=[[0, 0], [float("nan"), 0], [3, 3]]), r"shapes\.0\.points\.1\.0"),
        (of_shape(points=[[0, 0], [None, 0], [3, 3]]), r"shapes\.0\.points\.1\.0"),
        (
            of_shape(points=[[0, 0], [1e300, 0], [3, 3]]),
            r"points\.1\.0: 1e\+300 .*less than or equal",
        ),
        (of_shape(points=[[0, 0], [float("inf"), 0], [3, 3]]), r"points\.1\.0"),
        (of_shape(shape_type="circle", points=[[0, 0]]), "2 points of a circle, got 1"),
        (of_shape(shape_type="mask", mask="", points=[]), "1 points of a mask, got 0"),
        (of_shape(label=3), r"shapes\.0\.label"),
        (json.dumps(LABELME | {"shapes": [1]}), r"shapes\.0: "),
        (
            json.dumps(LABELME | {"imageHeight": 1_000_000}),
            r"picture, \(7, 9\), got \(1000000, 9\)",
        ),
        (json.dumps(LABELME | {"imageWidth": "9x"}), "imageWidth"),
        (of_annotation(segmentation=[[0, 0, float("nan"), 1, 2, 2]]), r"polygons\.0\.2"),
        (of_annotation(segmentation=[[0, 0, 1, 1, 2]]), "pairs of x and y"),
        (of_annotation(segmentation=[]), "three or more points, got none"),
        (of_annotation(segmentation=None), "outlines, got at polygons"),
        (of_annotation(segmentation={"size": [7, 9], "counts": [-1, 64]}), "run lengths from 0 up"),
        (of_annotation(segmentation={"size": [7, 9], "counts": {}}), "run lengths, got at counts"),
        (of_annotation(category_id=7), "a category of id 7, got none"),
        (json.dumps(COCO | {"images": [{"id": 1}]}), r"images\.0\.file_name"),
        (json.dumps(COCO | {"images": [COCO["images"][0] | {"height": 0}]}), r"images\.0\.height"),
        (json.dumps(COCO | {"images": [COCO["images"][0] | {"height": 8}]}), "size of the picture"),
        ('{"shapes": ' + "[" * 100_000, "JSON, got: "),
        ('{"shapes": 1' + "0" * 5000 + "}", "JSON, got: "),
    ],
)
def test_a_faulty_annotation_is_one_line_that_names_the_file(tmp_path, text, got):
    picture = tmp_path / "a.png"
    write_image(picture, np.zeros((*SIZE, 3), np.uint8))
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"a\.json: expected .*{got}") as raised:
        read_outlines(path, picture, SIZE, NAMES)
    assert "\n" not in str(raised.value)
