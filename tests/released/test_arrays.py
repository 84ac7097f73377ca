"""The authors' pickled files are read exactly, and nothing in them can run."""

import io
import os
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from configs.command_line import ROOT
from released.arrays import read_released_cam, read_released_labels, read_released_list

RELEASED = Path(os.environ.get("STAC_SHARED", ROOT.parent / "shared")) / "published_cams"


def write_pickled(path: Path, content: object, protocol: int = 3) -> Path:
    """Write what `np.save` makes of a dictionary: a 0-d object array, pickled."""
    array = np.empty((), object)
    array[()] = content
    return write_stream(path, pickle.dumps(array, protocol=protocol))


def write_stream(path: Path, stream: bytes) -> Path:
    file = io.BytesIO()
    header = {"descr": "|O", "fortran_order": False, "shape": ()}
    np.lib.format.write_array_header_1_0(file, header)
    path.write_bytes(file.getvalue() + stream)
    return path


def ramp(height: int = 5, width: int = 7) -> np.ndarray:
    return np.linspace(0, 1, height * width, dtype=np.float32).reshape(height, width)


@pytest.mark.parametrize("protocol", range(5))
def test_cam_is_read_exactly_from_every_protocol(tmp_path, protocol):
    maps = {2: ramp(), 0: np.asfortranarray(ramp()[::-1])}
    read, classes = read_released_cam(write_pickled(tmp_path / "a.npy", maps, protocol))
    assert classes.tolist() == [0, 2]
    assert classes.dtype == np.int64
    assert read.dtype == np.float32
    assert np.array_equal(read, np.stack([ramp()[::-1], ramp()]))


def test_cam_written_by_numpy_itself_is_read(tmp_path):
    np.save(tmp_path / "a.npy", {1: ramp()}, allow_pickle=True)
    maps, _ = read_released_cam(tmp_path / "a.npy")
    assert np.array_equal(maps, ramp()[None])


def test_cam_named_by_old_numpy_is_read(tmp_path):
    array = np.empty((), object)
    array[()] = {1: ramp()}
    stream = pickle.dumps(array, protocol=2)
    names = stream.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    maps, _ = read_released_cam(write_stream(tmp_path / "a.npy", names))
    assert np.array_equal(maps, ramp()[None])


def test_big_endian_double_cam_becomes_float32(tmp_path):
    path = write_pickled(tmp_path / "a.npy", {0: ramp().astype(">f8")})
    maps, _ = read_released_cam(path)
    assert maps.dtype == np.float32
    assert np.array_equal(maps, ramp()[None])


def test_cam_without_classes_is_empty(tmp_path):
    maps, classes = read_released_cam(write_pickled(tmp_path / "a.npy", {}))
    assert maps.shape == (0, 0, 0)
    assert classes.shape == (0,)


def test_rounding_beyond_one_is_clipped(tmp_path):
    path = write_pickled(tmp_path / "a.npy", {0: ramp() * np.float32(1.00001)})
    maps, _ = read_released_cam(path)
    assert maps.max() == 1


def test_labels_are_read_with_their_names(tmp_path):
    table = {"000012": np.array([1, 0, 0.01], np.float32), "b.jpg": np.ones(3)}
    labels = read_released_labels(write_pickled(tmp_path / "cls_labels.npy", table))
    assert list(labels) == ["000012", "b.jpg"]
    assert np.array_equal(labels["000012"], table["000012"])
    assert labels["b.jpg"].dtype == np.float32


class Calls:
    """Pickles as a call of any function."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize(
    ("function", "name"),
    [(os.system, rf"{os.name}\.system"), (eval, r"(builtins|__builtin__)\.eval")],
)
def test_crafted_pickle_is_refused_and_does_not_run(tmp_path, function, name, protocol):
    proof = tmp_path / "it_ran"
    command = f"touch {proof}" if function is os.system else f"open({str(proof)!r}, 'w')"
    path = write_pickled(tmp_path / "a.npy", {0: Calls(function, command)}, protocol)
    for read in (read_released_cam, read_released_labels):
        with pytest.raises(
            ValueError, match=rf"a\.npy: expected arrays only, got the global '{name}'"
        ):
            read(path)
    assert not proof.exists()
    np.load(path, allow_pickle=True)  # the file is a working attack: NumPy's own reader runs it
    assert proof.exists()


@pytest.mark.parametrize(
    "stream",
    [
        b"\x80\x03cnumpy\nload\n.",
        b"\x80\x03cnumpy\nndarray.tofile\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x06f2py.x\x93.",
        b"\x80\x03cnumpy.core.multiarray\nscalar\n.",
    ],
)
def test_other_names_of_numpy_are_refused(tmp_path, stream):
    with pytest.raises(ValueError, match="got the global 'numpy"):
        read_released_cam(write_stream(tmp_path / "a.npy", stream))


@pytest.mark.parametrize(
    "stream",
    [
        b"\x80\x03]r" + struct.pack("<I", 2**31) + b".",  # a memo of 2 ** 31 places
        b"\x80\x03B" + struct.pack("<I", 2**32 - 1) + b"abc.",  # 4 GiB of bytes that are not there
        b"\x80\x03cnumpy\ndtype\nX\x03\x00\x00\x00f4,O\x85R.",  # a type with pointers in it
        b"\x80\x03cnumpy\ndtype\nX\x02\x00\x00\x00f4\x85R(K\x03X\x02\x00\x00\x00O,tb.",
        b"\x80\x03cnumpy\nndarray\nK\x05\x85R.",  # calls ndarray itself
        b"\x80\x03cnumpy\nndarray\n)\x81.",  # NEWOBJ
        b"\x80\x02\x82\x01.",  # extension registry
        b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",  # a bytearray of 1 TiB
        b"",
        b"\x80\x03}",
        b"hello",
    ],
)
def test_foreign_and_truncated_pickles_are_one_clear_line(tmp_path, stream):
    with pytest.raises(
        ValueError, match=r"a\.npy: expected a whole pickle of protocol 0 to 4"
    ) as e:
        read_released_cam(write_stream(tmp_path / "a.npy", stream))
    assert "\n" not in str(e.value)


def test_every_truncation_is_an_error(tmp_path):
    whole = write_pickled(tmp_path / "a.npy", {0: ramp()}).read_bytes()
    for length in range(len(whole)):
        (tmp_path / "b.npy").write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"b\.npy: expected "):
            read_released_cam(tmp_path / "b.npy")


@pytest.mark.parametrize("content", [b"", b"not numpy", b"\x93NUMPY\x01\x00\x05\x00{'a'\n"])
def test_files_that_are_no_npy_are_refused(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.npy: expected a \.npy file, got"):
        read_released_cam(tmp_path / "a.npy")


def test_plain_arrays_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", ramp())
    with pytest.raises(ValueError, match=r"expected a pickled dictionary, got: an array \(5, 7\)"):
        read_released_cam(tmp_path / "a.npy")


def test_missing_files_are_named(tmp_path):
    for read in (read_released_cam, read_released_labels, read_released_list):
        with pytest.raises(FileNotFoundError, match="none.npy: expected a .* file"):
            read(tmp_path / "none.npy")


def boxed(value: object) -> np.ndarray:
    array = np.empty((), object)
    array[()] = value
    return array


NAN = np.full((2, 3), np.nan, np.float32)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([ramp()], r"expected \{class index: \(H, W\) map\}, got: list"),
        ({"a": ramp()}, r"map\}, got: 'a': ndarray \(5, 7\)"),
        ({True: ramp()}, r"map\}, got: True: ndarray"),
        ({0: ramp()[0]}, r"map\}, got: 0: ndarray \(7,\)"),
        ({0: 0.5}, r"expected a whole pickle .* instruction BINFLOAT"),
        ({0: None}, r"map\}, got: 0: NoneType"),
        ({0: boxed([ramp()])}, r"map\}, got: 0: list"),
        ({0: np.array([ramp(), None], object)}, r"whole pickle .* an object array of shape \(2,\)"),
        ({0: np.zeros((2, 3), complex)}, r"whole pickle .* arrays of type 'c16'"),
        ({0: NAN}, "expected finite numbers for 0, got: NaN or infinity"),
        ({0: ramp(), 1: ramp(5, 6)}, r"expected maps of one size, got: \[\(5, 6\), \(5, 7\)\]"),
        ({0: ramp() * 2}, r"expected CAM values in \[0, 1\], got: 0\.\.2"),
        ({0: ramp() - 1}, r"expected CAM values in \[0, 1\], got: -1\.\.0"),
        ({0: np.zeros((0, 3), np.float32)}, r"expected CAM values in \[0, 1\], got: shape"),
        ({-1: ramp()}, "expected class indices from 0 to 253, got: class -1"),
        ({10**30: ramp()}, r"expected class indices from 0 to 253, got: class 1e\+30"),
    ],
)
def test_foreign_contents_are_refused(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_released_cam(write_pickled(tmp_path / "a.npy", content))


def test_labels_of_differing_lengths_are_refused(tmp_path):
    path = write_pickled(tmp_path / "a.npy", {"a": np.ones(3), "b": np.ones(4)})
    with pytest.raises(ValueError, match=r"expected labels of one length, got: lengths \[3, 4\]"):
        read_released_labels(path)


def test_list_keeps_leading_zeros_and_needs_no_last_newline(tmp_path):
    (tmp_path / "l.txt").write_text("000058t\r\n\n000062t")
    assert read_released_list(tmp_path / "l.txt") == ["000058t", "000062t"]


@pytest.mark.parametrize(("text", "got"), [("\n", "0 names"), ("a\na\n", "2 names, 1 of them")])
def test_empty_lists_and_repeated_names_are_refused(tmp_path, text, got):
    (tmp_path / "l.txt").write_text(text)
    with pytest.raises(ValueError, match=f"expected one name a line, each once, got {got}"):
        read_released_list(tmp_path / "l.txt")


@pytest.mark.skipif(
    not RELEASED.is_dir(), reason="no released CAMs; STAC_SHARED names their folder"
)
@pytest.mark.parametrize("kind", ["patchcam", "fused"])
def test_released_cams_equal_what_numpy_reads(kind):
    paths = sorted((RELEASED / kind).glob("*.npy"))
    assert len(paths) == 24
    for path in paths:
        expected = np.load(path, allow_pickle=True).item()
        maps, classes = read_released_cam(path)
        assert classes.tolist() == sorted(expected)
        for k, of_class in zip(classes, maps, strict=True):
            assert np.array_equal(of_class, expected[k])
