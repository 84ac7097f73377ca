"""Label Studio's export as ground truth: shapes, brushes, which annotation counts, which image."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from datasets import areas
from datasets.outlines import read_annotated, read_outlines

NAMES = ("crack", "dent")
SIZE = (10, 20)
LENGTHS = (3, 4, 8, 16)  # bits, as Label Studio chooses them
ENCODERS = ["ours", *(n for n in ("label_studio_converter",) if importlib.util.find_spec(n))]


def region(kind: str, name: str, **value: object) -> dict:
    about = {"id": "x", "from_name": "label", "to_name": "image", "type": kind}
    about |= {"original_height": SIZE[0], "original_width": SIZE[1], "image_rotation": 0}
    return about | {"value": {**value, kind: [name]}}


def square(name: str, **more: object) -> dict:
    return region("rectanglelabels", name, x=0, y=0, width=10, height=10, rotation=0) | more


def task(*results: list[dict], image: str = "a.png", **more: object) -> dict:
    return {
        "id": 1,
        "data": {"image": image},
        "annotations": [{"result": r} for r in results],
    } | more


def export(path: Path, *tasks: object) -> Path:
    path.write_text(json.dumps(tasks))
    return path


def drawn(tmp_path: Path, *tasks: object, picture: str = "a.png") -> np.ndarray:
    path = export(tmp_path / "export.json", *tasks)
    return read_outlines(path, tmp_path / picture, SIZE, NAMES)


def rectangle(rows: slice, columns: slice, value: int) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[rows, columns] = value
    return mask


def packed(levels: np.ndarray) -> list[int]:
    """Return runs of bytes: of equal ones, and where all differ of several."""
    bits = f"{levels.size:032b}{7:05b}" + "".join(f"{length - 1:04b}" for length in LENGTHS)
    starts = [0, *(np.flatnonzero(np.diff(levels)) + 1).tolist(), levels.size]
    singles: list[int] = []

    def end_singles() -> str:
        text = ""
        while singles:
            part = [singles.pop(0) for _ in range(min(len(singles), 8))]
            text += f"000{len(part) - 1:03b}" + "".join(f"{value:08b}" for value in part)
        return text

    for start, end in zip(starts[:-1], starts[1:], strict=True):
        if end - start == 1:
            singles.append(int(levels[start]))
            continue
        bits += end_singles()
        while start < end:
            count = min(end - start, 2**16)
            chosen = next(i for i, length in enumerate(LENGTHS) if count <= 2**length)
            bits += f"1{chosen:02b}{count - 1:0{LENGTHS[chosen]}b}{levels[start]:08b}"
            start += count
    bits += end_singles()
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def packed_by(encoder: str) -> Callable[[np.ndarray], list[int]]:
    if encoder == "ours":
        return packed
    from label_studio_converter.brush import encode_rle

    return encode_rle


@pytest.mark.parametrize("encoder", ENCODERS)
def test_brushes_are_unpacked(tmp_path, encoder):
    rng = np.random.default_rng(0)
    masks = [rng.random(SIZE) < share for share in (0, 0.01, 0.3, 0.5, 0.99, 1)]
    masks.append(rectangle(slice(3, 6), slice(4, 17), 1).astype(bool))
    for mask in masks:
        levels = np.repeat(mask.reshape(-1) * np.uint8(255), 4)  # RGBA
        rle = packed_by(encoder)(levels)
        one = region("brushlabels", "dent", format="rle", rle=rle)
        np.testing.assert_array_equal(drawn(tmp_path, task([one])), 2 * mask)


def test_a_large_brush_has_runs_of_every_length():
    mask = np.zeros((60, 50), bool)
    mask[20:59] = True
    mask[10, ::2] = True
    rgba = np.where(mask, 200, 100).astype(np.uint8)[..., None].repeat(4, axis=2)  # half is 128
    rgba[:15, :, :3] = 7  # a colour; alpha alone counts
    found = areas.of_packed_runs(bytes(packed(rgba.reshape(-1))), mask.shape)
    np.testing.assert_array_equal(found, mask)


def test_shapes_are_given_in_percent_and_drawn_in_order(tmp_path):
    corners = [[10, 10], [50, 10], [50, 60], [10, 60]]  # x 2..10 of 20, y 1..6 of 10
    results = [
        region("polygonlabels", "crack", points=corners, closed=True),
        region("rectanglelabels", "dent", x=40, y=50, width=20, height=30, rotation=0),
        {"type": "choices", "value": {"choices": ["blurred"]}},  # says nothing of places
        {"type": "relation", "from_id": "a", "to_id": "b"},
    ]
    expected = rectangle(slice(1, 6), slice(2, 10), 1)
    expected[5:8, 8:12] = 2  # on top
    np.testing.assert_array_equal(drawn(tmp_path, task(results)), expected)


def test_rectangles_turn_around_their_corner_and_ellipses_around_their_centre(tmp_path):
    # 4 x 3 pixels at (10, 2): by a quarter clockwise 3 to the left and 4 down.
    turned = region("rectanglelabels", "dent", x=50, y=20, width=20, height=30, rotation=90)
    expected = rectangle(slice(2, 6), slice(7, 10), 2)
    np.testing.assert_array_equal(drawn(tmp_path, task([turned])), expected)

    oval = region("ellipselabels", "crack", x=50, y=50, radiusX=40, radiusY=20, rotation=0)
    rows, columns = np.indices(SIZE) + 0.5
    far = ((columns - 10) / 8) ** 2 + ((rows - 5) / 2) ** 2
    found = drawn(tmp_path, task([oval]))
    assert (found[far < 0.7] == 1).all() and not found[far > 1.4].any()
    oval["value"]["rotation"] = 90  # from x 8 to 12, and higher than the image
    found = drawn(tmp_path, task([oval]))
    assert found[:, 9:11].all() and not found[:, :8].any() and not found[:, 12:].any()


def test_the_labels_tag_has_one_type_for_all_shapes(tmp_path):
    one = region("labels", "dent", x=0, y=0, width=10, height=10, rotation=0)
    np.testing.assert_array_equal(
        drawn(tmp_path, task([one])), rectangle(slice(0, 1), slice(0, 2), 2)
    )


def test_the_newest_annotation_that_was_not_cancelled_counts(tmp_path):
    def at(day: int, name: str, **more: object) -> dict:
        time = f"2026-01-{day:02}T10:00:00.5Z"
        return {"result": [square(name)], "created_at": "2026-01-01T00:00:00Z"} | {
            "updated_at": time, **more,
        }  # fmt: skip

    annotations = [at(3, "dent"), at(5, "crack", was_cancelled=True), at(4, "crack"), at(2, "dent")]
    assert drawn(tmp_path, task(annotations=annotations))[0, 0] == 1
    assert drawn(tmp_path, task([square("dent")], [square("crack")]))[0, 0] == 1  # no times: last


def test_images_without_an_annotation_that_counts_are_not_listed(tmp_path):
    predictions = [{"result": [square("dent")]}]
    cancelled = [{"result": [square("dent")], "was_cancelled": True}]
    path = export(
        tmp_path / "export.json",
        task(image="predicted.png", predictions=predictions),
        task(image="cancelled.png", annotations=cancelled),
        task([], image="empty.png"),
    )
    annotated = read_annotated(path)
    assert (annotated.kind, annotated.images.paths) == ("Label Studio", ["empty.png"])
    assert not read_outlines(path, tmp_path / "empty.png", SIZE, NAMES).any()
    with pytest.raises(ValueError, match=r"an entry of predicted\.png, got none"):
        read_outlines(path, tmp_path / "predicted.png", SIZE, NAMES)


@pytest.mark.parametrize(
    ("image", "picture"),
    [
        ("/data/local-files/?d=parts/my%20crack/a.png", "parts/my crack/a.png"),
        ("/data/local-files/?d=parts%5Ccrack%5Ca.png", "parts/crack/a.png"),  # of Windows
        ("/data/upload/3/1a2b3c4d-a.png", "parts/crack/a.png"),
        ("s3://bucket/crack/a.png", "parts/crack/a.png"),
        ("https://host/crack/a%2B1.png?token=x", "parts/crack/a+1.png"),
    ],
)
def test_images_are_found_by_their_address(tmp_path, image, picture):
    assert drawn(tmp_path, task([square("dent")], image=image), picture=picture)[0, 0] == 2
    other = {"data": {"photo": image, "number": 3}, "annotations": [{"result": [square("dent")]}]}
    assert drawn(tmp_path, other, picture=picture)[0, 0] == 2


SHORT = packed(np.zeros(4 * SIZE[0] * SIZE[1], np.uint8))


@pytest.mark.parametrize(
    ("one", "got"),
    [
        ({"image": "a.png", "label": [{"x": 3}]}, r"Label Studio's export of type JSON, got at 0"),
        ({"data": {"x": 1}, "annotations": [{"result": []}]}, "an image in the data of each task"),
        ({"data": {"image": "http://[a.png"}, "annotations": [{"result": []}]}, "Invalid IPv6"),
        (task([3]), "regions with a type, got 3"),
        (task([{"type": "polygonlabels"}]), "a region of Label Studio, got at original_width"),
        (task([square("hole")]), "names of crack, dent, got 'hole'"),
        (task([square("dent", original_width=21)]), r"picture, \(10, 20\), got \(10, 21\)"),
        (task([square("dent", image_rotation=90)]), "an image that is not turned, got 90"),
        (task([region("polygonlabels", "dent", points=[[0, 0], [1, 1]])]), "three or more points"),
        (
            task([region("polygonlabels", "dent", points=[[0, 0], [float("nan"), 1], [1, 1]])]),
            r"polygonlabels, got at points\.1\.0",
        ),
        (
            task([square("dent") | {"value": {"x": 0}}]),
            "one rectanglelabels for a region, got None",
        ),
        (task([region("keypointlabels", "dent", x=1, y=1)]), "ellipses and brushes, got a region"),
        (
            task([region("brushlabels", "dent", format="rle", rle=[0, 256])]),
            r"brushlabels, got at rle\.1",
        ),
        (task([region("brushlabels", "dent", format="rle", rle=[])]), "some that are cut off"),
        (task([region("brushlabels", "dent", format="rle", rle=SHORT[:-1])]), "are cut off"),
        (
            task([region("brushlabels", "dent", format="rle", rle=[255] * 40)]),
            "runs of 800 bytes of 8 bits, got 4294967295 of 32",
        ),
    ],
)
def test_a_faulty_export_is_one_line_that_names_the_file(tmp_path, one, got):
    with pytest.raises(ValueError, match=rf"export\.json: expected .*{got}") as raised:
        drawn(tmp_path, one)
    assert "\n" not in str(raised.value)


def test_runs_beyond_the_picture_are_refused():
    bits = f"{800:032b}{7:05b}" + "".join(f"{length - 1:04b}" for length in LENGTHS)
    bits += f"111{999:016b}{255:08b}"
    bits += "0" * (-len(bits) % 8)
    data = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
    with pytest.raises(ValueError, match="runs of 800 bytes, got 1000"):
        areas.of_packed_runs(data, SIZE)
