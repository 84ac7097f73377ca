"""What the cells of a sheet show, and where its letters stand."""

from itertools import combinations

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb

from datasets.files import Cam, write_image
from datasets.record import Record
from reporting.columns import Column, read_row
from reporting.lettering import cut, text_width, wrap
from reporting.pictures import COLOURS
from reporting.sheets import STYLE, draw_sheet

LONG = "a very long class name of a defect that nobody will ever want to type in full, with commas"
NAMES = (LONG, "$x$_^{2}", "<b>crack</b>", *(f"class number {i}" for i in range(12)))


def constant(kind, value):
    return Column(kind, kind, lambda record, image: value, "")


def nothing(record, image):
    raise FileNotFoundError(record.name)


@pytest.fixture
def record(tmp_path):
    write_image(tmp_path / "a.png", np.full((4, 6, 3), 51, np.uint8))
    return Record("a", tmp_path / "a.png", (0,))


def test_cells_show_what_was_read(record):
    blue, orange = np.array(to_rgb(COLOURS[1])), np.array(to_rgb(COLOURS[0]))
    mask = np.array([[0, 1, 2, 255, 0, 0]] * 4, np.uint8)
    cams = Cam(np.stack([np.full((4, 6), 0.25), np.full((4, 6), 0.5)]), np.array([0, 1]), None)
    columns = [
        constant("image", None)._replace(read=lambda record, image: image),
        constant("map", np.full((4, 6), 0.4, np.float32)),
        constant("cam", cams),
        constant("cam", Cam(np.zeros((0, 4, 6)), np.zeros(0, int), None)),
        constant("mask", mask),
        constant("mask", None)._replace(read=nothing),
    ]
    row = read_row(record, columns, ("crack", "dent", "rust"), 100)
    image, saliency, cam, no_cam, painted, none = row.pictures
    np.testing.assert_allclose(image, np.full((4, 6, 3), 0.2))
    np.testing.assert_allclose(saliency, np.full((4, 6, 3), 0.4), atol=1e-6)
    # The highest class over 0.6 of the image.
    np.testing.assert_allclose(cam[0, 0], 0.5 * 0.6 * 0.2 + 0.5 * blue, atol=1e-6)
    np.testing.assert_allclose(no_cam, np.full((4, 6, 3), 0.6 * 0.2))
    expected = [[0.2] * 3, 0.08 + 0.6 * orange, 0.08 + 0.6 * blue, [0.68] * 3]
    np.testing.assert_allclose(painted[0, :4], expected, atol=1e-6)
    assert none is None
    assert row.values == {1, 2, 255}


def test_pictures_have_no_more_pixels_than_asked_for(record):
    write_image(record.image, np.zeros((40, 60, 3), np.uint8))
    mask = np.ones((40, 60), np.uint8)
    row = read_row(record, [constant("mask", mask)], ("crack",), 30)
    assert row.pictures[0].shape == (20, 30, 3)
    assert row.size == (40, 60)


def odd_sheet(tmp_path):
    """Return a figure with flat, high and large images, long names and many classes."""
    rows, columns = (
        [],
        [
            constant("image", None)._replace(read=lambda record, image: image),
            constant("map", None)._replace(caption="saliency, a_folder_with_a_rather_long_name_v2"),
            constant("mask", None)._replace(caption="ground truth"),
        ],
    )
    shapes = {(40, 900): (0,), (300, 40): (1, 2), (64, 64): (), (120, 160): tuple(range(15))}
    for number, (shape, classes) in enumerate(shapes.items()):
        path = tmp_path / f"{number}.png"
        write_image(path, np.full((*shape, 3), 90, np.uint8))
        record = Record(f"part_2024-11-03_station_7_camera_left_exposure_{number}", path, classes)
        of_row = [
            columns[0],
            columns[1]._replace(read=lambda r, i: np.zeros(i.shape[:2], np.float32)),
            columns[2]._replace(read=nothing),
        ]
        rows.append(read_row(record, of_row, NAMES, 200))
    return draw_sheet(rows, columns, NAMES)


def test_no_text_lies_over_another_or_leaves_the_sheet(tmp_path):
    with matplotlib.rc_context(STYLE):
        figure = odd_sheet(tmp_path)
        figure.set_dpi(150)
        renderer = FigureCanvasAgg(figure).get_renderer()
        texts = [text for axes in figure.axes for text in axes.texts]
        boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in texts]
    assert len(boxes) == 3 + 1 + 2 * 4 + 4 + 15 + 1 + 4  # captions in 4 lines, bars, legend, "–"
    for text, box in boxes:
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1, text
        assert box.y0 >= 0 and box.y1 <= figure.bbox.y1, text
    for (first, one), (second, other) in combinations(boxes, 2):
        width = min(one.x1, other.x1) - max(one.x0, other.x0)
        height = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert width <= 1 or height <= 1, (first, second)


def test_the_legend_names_the_classes_that_are_shown(record):
    mask = constant("mask", np.full((4, 6), 2, np.uint8))
    with matplotlib.rc_context(STYLE):
        row = read_row(record, [mask], ("crack", "dent", "rust"), 50)
        figure = draw_sheet([row], [mask], ("crack", "dent", "rust"))
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["mask", "a", "crack", "crack", "dent"]  # caption, name, label, legend
    faces = [patch.get_facecolor()[:3] for patch in figure.axes[0].patches]
    assert faces == [to_rgb(COLOURS[0]), to_rgb(COLOURS[1])]


@pytest.mark.parametrize(("width", "length"), [(4000, 1000), (900, 200), (64, 10), (3, 1)])
def test_the_scale_is_a_round_number_of_pixels(record, width, length):
    write_image(record.image, np.zeros((width, width, 3), np.uint8))
    column = constant("image", None)._replace(read=lambda record, image: image)
    row = read_row(record, [column], ("crack",), 50)
    axes = draw_sheet([row], [column], ("crack",)).axes[1]
    assert [text.get_text() for text in axes.texts] == [f"{length} px"]
    (bar,) = axes.patches
    assert bar.get_width() == length and axes.get_xlim() == (0, width)  # both in pixels


def test_text_is_cut_in_its_middle_and_wrapped_at_words():
    assert cut("short", 8, 1.0) == "short"
    shorter = cut("begin_" + "x" * 100 + "_end", 8, 1.0)
    assert shorter.startswith("begin_") and shorter.endswith("_end") and "…" in shorter
    assert 0.9 < text_width(shorter, 8) <= 1.0
    assert cut("abc", 8, 0.0) == "…"
    assert wrap("ground truth", 8, 2.0) == ["ground truth"]
    assert wrap("ground truth", 8, 0.5) == ["ground", "truth"]
