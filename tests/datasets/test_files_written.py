import json
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.files import (
    Cam,
    read_cam,
    read_image,
    read_mask,
    read_saliency,
    voc_palette,
    write_cam,
    write_csv,
    write_image,
    write_json,
    write_mask,
    write_saliency,
    write_text,
)

SMOOTH = np.stack(np.broadcast_arrays(*np.ogrid[60:180:5, 60:200:5], 128), -1).astype(np.uint8)


def make_cam(num_present: int = 2) -> Cam:
    maps = np.random.default_rng(0).random((num_present, 5, 7), dtype=np.float32)
    return Cam(maps, np.array([0, 2])[:num_present], np.array([0.9, 0.1, 0.7], np.float32))


def save_arrays(path: Path, **arrays: np.ndarray) -> Path:
    parts = make_cam()._asdict() | arrays
    np.savez(path, **{name: array for name, array in parts.items() if array is not None})
    return path


WRITES = [
    (write_image, SMOOTH),
    (write_mask, SMOOTH[..., 0]),
    (write_cam, make_cam()),
    (write_json, {"a": 1}),
    (write_text, "new"),
    (write_csv, [["a", "b"]]),
]


def test_saliency_round_trip_is_exact_to_half_a_level_and_clips(tmp_path):
    saliency = np.random.default_rng(0).random((6, 9), dtype=np.float32)
    write_saliency(tmp_path / "new" / "a.png", saliency)
    assert np.abs(read_saliency(tmp_path / "new" / "a.png") - saliency).max() <= 0.5 / 255 + 1e-6
    write_saliency(tmp_path / "a.png", np.array([[-0.5, 1.5]]))
    assert read_saliency(tmp_path / "a.png").tolist() == [[0, 1]]


def test_image_is_written_in_the_format_of_its_ending(tmp_path):
    for name, kind in (("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.JPEG", "JPEG")):
        write_image(tmp_path / name, SMOOTH)
        assert Image.open(tmp_path / name).format == kind
        assert np.abs(read_image(tmp_path / name).astype(int) - SMOOTH).max() <= 8
    assert np.array_equal(read_image(tmp_path / "a.png"), SMOOTH)


def test_masks_are_written_in_voc_colours(tmp_path):
    values = np.array([[0, 1, 2], [15, 255, 0]], np.uint8)
    write_mask(tmp_path / "a.png", values)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.mode == "P"
        assert np.array_equal(np.array(picture), values)
        colours = np.array(picture.convert("RGB")).tolist()
    # Bits of the value from the lowest: red, green, blue at weight 128, then again at 64, 32.
    # 15 = 0b1111: red 128 + 64, green 128, blue 128; 255: red 128+64+32, green the same, blue 192.
    assert colours == [
        [[0, 0, 0], [128, 0, 0], [0, 128, 0]],
        [[192, 128, 128], [224, 224, 192], [0, 0, 0]],
    ]
    assert np.unique(voc_palette(), axis=0).shape == (256, 3)
    assert np.array_equal(read_mask(tmp_path / "a.png", 15), values)


@pytest.mark.parametrize("num_present", [0, 1, 2])
def test_cam_round_trip(tmp_path, num_present):
    cam = make_cam(num_present)
    write_cam(tmp_path / "new" / "a.npz", cam)
    found = read_cam(tmp_path / "new" / "a.npz")
    assert [array.dtype for array in found] == [np.float32, np.int64, np.float32]
    assert found.cam.shape == (num_present, 5, 7)
    # float16 has 11 significant bits: rounding in [0.5, 1] errs by at most 2 ** -12.
    assert np.abs(found.cam - cam.cam).max(initial=0) <= 2**-12
    assert np.array_equal(found.classes, cam.classes)
    assert np.array_equal(found.scores, cam.scores)


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.25, 1.5])
@pytest.mark.parametrize("name", ["cam", "scores"])
def test_cam_numbers_outside_the_unit_range_are_refused(tmp_path, name, value):
    values = getattr(make_cam(), name).copy()
    values.flat[1] = value
    path = save_arrays(tmp_path / "a.npz", **{name: values})
    with pytest.raises(ValueError, match=rf"a\.npz: expected {name} in \[0, 1\], got: .*\. Replac"):
        read_cam(path)


class CreatesFile:
    """Unpickling it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["cam", "classes", "scores"])
def test_pickle_inside_a_cam_file_is_refused_without_running(tmp_path, name):
    trap = np.empty((), object)
    trap[()] = CreatesFile(tmp_path / "ran")
    path = save_arrays(tmp_path / "a.npz", **{name: trap})
    with pytest.raises(ValueError, match=r"a\.npz: expected npz with cam, classes and scores, got"):
        read_cam(path)
    assert not (tmp_path / "ran").exists()


def test_bare_pickle_named_npz_is_refused_without_running(tmp_path):
    (tmp_path / "a.npz").write_bytes(pickle.dumps(CreatesFile(tmp_path / "ran")))
    with pytest.raises(ValueError, match=r"a\.npz: expected npz with cam, classes and scores, got"):
        read_cam(tmp_path / "a.npz")
    assert not (tmp_path / "ran").exists()


def test_npy_named_npz_is_refused(tmp_path):
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, make_cam().cam)
    with pytest.raises(ValueError, match=r"a\.npz: expected npz with cam, classes and scores, got"):
        read_cam(tmp_path / "a.npz")


@pytest.mark.parametrize("name", ["cam", "classes", "scores"])
def test_missing_array_is_named(tmp_path, name):
    path = save_arrays(tmp_path / "a.npz", **{name: None})
    with pytest.raises(ValueError, match=rf"a\.npz: expected npz with .*, got: .*{name}"):
        read_cam(path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"cam": np.zeros((5, 7))},
        {"cam": np.zeros((3, 5, 7))},
        {"classes": np.zeros((2, 1), int)},
        {"classes": np.array([2, 0])},
        {"classes": np.array([0, 3])},
        {"classes": np.array([-1, 0])},
        {"scores": np.zeros((3, 1))},
    ],
    ids=[
        "2-d cam",
        "M differs",
        "2-d classes",
        "not ascending",
        "above K",
        "below 0",
        "2-d scores",
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(tmp_path, wrong):
    path = save_arrays(tmp_path / "a.npz", **wrong)
    with pytest.raises(ValueError, match=r"a\.npz: expected cam \(M, H, W\).*, got"):
        read_cam(path)


def test_truncated_cam_file_is_refused(tmp_path):
    write_cam(tmp_path / "a.npz", make_cam())
    whole = (tmp_path / "a.npz").read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        (tmp_path / "a.npz").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"a\.npz: expected npz with .*, got.*Replace"):
            read_cam(tmp_path / "a.npz")


def test_damaged_compressed_data_is_refused(tmp_path):
    write_cam(tmp_path / "a.npz", make_cam())
    whole = bytearray((tmp_path / "a.npz").read_bytes())
    with zipfile.ZipFile(tmp_path / "a.npz") as archive:
        entry = archive.getinfo("cam.npy")
    # A zip entry: 30 bytes, the last 4 of them the lengths of name and extra field; these; data.
    name_and_extra = struct.unpack_from("<HH", whole, entry.header_offset + 26)
    start = entry.header_offset + 30 + sum(name_and_extra)
    for place in range(start, start + entry.compress_size):
        damaged = whole.copy()
        damaged[place] ^= 0xFF
        (tmp_path / "a.npz").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.npz: expected .*, got.*Replace"):
            read_cam(tmp_path / "a.npz")


def test_picture_that_cannot_be_written_leaves_nothing_and_keeps_the_old_file(tmp_path):
    unwritable = np.zeros((5, 7, 3))  # Pillow has no float64 colour
    with pytest.raises(TypeError, match="Cannot handle this data type"):
        write_image(tmp_path / "a.png", unwritable)
    assert not list(tmp_path.iterdir())
    write_image(tmp_path / "a.png", SMOOTH)
    with pytest.raises(TypeError, match="Cannot handle this data type"):
        write_image(tmp_path / "a.png", unwritable)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert np.array_equal(read_image(tmp_path / "a.png"), SMOOTH)


@pytest.mark.parametrize(("write", "content"), WRITES)
def test_write_stopped_half_way_leaves_nothing_and_keeps_the_old_file(
    tmp_path, monkeypatch, write, content
):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def stop(first: Path | Image.Image, *args: object, **options: object) -> None:
        file = first if isinstance(first, Path) else args[0]
        with file.open("wb") as opened:
            opened.write(b"half")
        assert path.read_bytes() == b"old"  # nobody sees the half
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", stop)
    monkeypatch.setattr(Path, "write_bytes", stop)
    monkeypatch.setattr(Path, "write_text", stop)
    with pytest.raises(KeyboardInterrupt):
        write(path, content)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(("write", "content"), WRITES)
def test_write_replaces_the_old_file_and_never_writes_into_it(tmp_path, write, content):
    path, link = tmp_path / "a.png", tmp_path / "link"
    path.write_bytes(b"old")
    link.hardlink_to(path)
    write(path, content)
    assert link.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "link"]


def test_json_csv_and_text_are_written_in_utf_8_and_folders_are_made(tmp_path):
    write_json(tmp_path / "new/a.json", {"class": "Kratzer ü", "iou": None})
    text = (tmp_path / "new/a.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"class": "Kratzer ü", "iou": None}
    assert "ü" in text and text.endswith("}\n")
    write_csv(tmp_path / "new/a.csv", [["name", "class"], ["1", 'a "big", ü']])
    assert (tmp_path / "new/a.csv").read_bytes().decode() == 'name,class\r\n1,"a ""big"", ü"\r\n'
    write_text(tmp_path / "new/a.txt", "ü\n")
    assert (tmp_path / "new/a.txt").read_bytes() == "ü\n".encode()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_never_holds_numbers_that_json_does_not_know(tmp_path, value):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"iou": value})
    assert not list(tmp_path.iterdir())
