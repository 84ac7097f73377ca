import os
import re
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from datasets import files
from datasets.files import (
    Cam,
    append_lines,
    image_size,
    list_images,
    read_cam,
    read_csv,
    read_image,
    read_lines,
    read_mask,
    read_saliency,
    read_text,
    read_truth,
    write_cam,
)
from datasets.record import NO_DEFECT, Record

COLOUR = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = COLOUR[..., 0]
LEVELS_16 = np.random.default_rng(1).integers(0, 65536, (5, 7), dtype=np.uint16)
SMOOTH = np.stack(np.broadcast_arrays(*np.ogrid[60:180:5, 60:200:5], 128), -1).astype(np.uint8)


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def save_palette(path: Path, indices: np.ndarray, colours: np.ndarray) -> Path:
    picture = Image.fromarray(indices)
    picture.putpalette(colours.astype(np.uint8).reshape(-1).tolist())
    picture.save(path)
    return path


def record(mask: Path | None, *classes: int, mask_level: int | None = None) -> Record:
    return Record("a", Path("a.png"), classes, mask=mask, mask_level=mask_level)


def as_rgb(grey: np.ndarray) -> np.ndarray:
    return np.stack([grey] * 3, axis=-1)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "tiff", "TIF"])
def test_lossless_8_bit_pictures_are_read_exactly(tmp_path, suffix):
    assert np.array_equal(read_image(save(tmp_path / f"c.{suffix}", COLOUR)), COLOUR)
    assert np.array_equal(read_image(save(tmp_path / f"g.{suffix}", GREY)), as_rgb(GREY))


def test_jpeg_is_read_in_rgb_order(tmp_path):
    for shape in (SMOOTH, SMOOTH[..., 0]):
        image = read_image(save(tmp_path / "a.jpg", shape, quality=98, subsampling=0))
        expected = shape if shape.ndim == 3 else as_rgb(shape)
        assert image.shape == expected.shape and image.dtype == np.uint8
        assert np.abs(image.astype(int) - expected).max() <= 4


def test_palette_colours_are_looked_up(tmp_path):
    colours = np.arange(256)[:, None] * [1, 0, 0] + [0, 7, 9]
    path = save_palette(tmp_path / "a.png", GREY, colours)
    assert np.array_equal(read_image(path), colours.astype(np.uint8)[GREY])


def test_transparency_is_dropped_and_colour_kept(tmp_path):
    alpha = np.full((5, 7, 1), 3, np.uint8)
    path = save(tmp_path / "a.png", np.concatenate([COLOUR, alpha], axis=2))
    assert np.array_equal(read_image(path), COLOUR)


def test_1_bit_pictures_become_black_and_white(tmp_path):
    bits = GREY > 100
    path = save(tmp_path / "a.png", bits)
    assert Image.open(path).mode == "1"
    assert np.array_equal(read_image(path), as_rgb(np.where(bits, 255, 0)))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_by_its_full_range(tmp_path, suffix):
    # 65535 = 257 * 255, so level v becomes v / 257: 0, 1, 128 (128.5 and ties to even), 255
    levels = np.array([[0, 257, 32896 + 128, 65535]], np.uint16)
    path = tmp_path / f"a.{suffix}"
    cv2.imwrite(str(path), levels)
    assert read_image(path)[0, :, 0].tolist() == [0, 1, 128, 255]
    cv2.imwrite(str(path), LEVELS_16)
    assert np.array_equal(read_image(path), as_rgb(np.round(LEVELS_16 / 257)))


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_colour_keeps_order_and_range(tmp_path, suffix, channels):
    levels = np.random.default_rng(2).integers(0, 65536, (5, 7, channels), dtype=np.uint16)
    levels[0, 0, :3], levels[0, 1, :3] = 0, 65535
    path = tmp_path / f"a.{suffix}"
    cv2.imwrite(str(path), levels)  # OpenCV takes blue first
    image = read_image(path)
    assert image[0, 0].tolist() == [0, 0, 0] and image[0, 1].tolist() == [255, 255, 255]
    assert np.abs(image - levels[..., 2::-1] / 257).max() <= 1


@pytest.mark.parametrize("pillow_can", [True, False])
def test_16_bit_colour_tiff_is_read_as_rgb_by_any_release(tmp_path, monkeypatch, pillow_can):
    blue_first = np.array([[[0, 32896, 65535], [65535, 0, 0]]], np.uint16)  # orange, blue
    cv2.imwrite(str(tmp_path / "a.tif"), blue_first)
    if not pillow_can:  # as older releases; OpenCV reads it, whose older releases lack the flag

        def refuse(file: object, **how: object) -> None:
            raise UnidentifiedImageError("cannot identify image file")

        monkeypatch.setattr(Image, "open", refuse)
        monkeypatch.delattr(cv2, "IMREAD_COLOR_RGB", raising=False)
    assert read_image(tmp_path / "a.tif").tolist() == [[[255, 128, 0], [0, 0, 255]]]


def test_exif_orientation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show the picture turned clockwise
    path = save(tmp_path / "a.png", COLOUR, exif=exif)
    assert np.array_equal(read_image(path), np.rot90(COLOUR, -1))


def test_image_can_be_written_to(tmp_path):
    path = save(tmp_path / "a.png", GREY)
    for pixels in (read_image(path), read_saliency(path), read_mask(path, 254)):
        pixels[0, 0] = 0  # torch.from_numpy warns about arrays that cannot


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "bmp"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_pictures_give_one_error_that_names_the_file(tmp_path, suffix, share):
    whole = save(tmp_path / f"whole.{suffix}", np.tile(SMOOTH, (4, 4, 1))).read_bytes()
    path = tmp_path / f"half.{suffix}"
    path.write_bytes(whole[: int(share * len(whole))])
    for read in (read_image, read_saliency, lambda p: read_mask(p, 3)):
        with pytest.raises(ValueError, match=r"half\.\w+: expected .*, got.*Replace or remove"):
            read(path)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
def test_damaged_bytes_never_give_another_kind_of_error(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)  # no gigabytes for a damaged header
    rng = np.random.default_rng(0)
    for suffix in ("jpg", "png", "tif", "bmp"):
        whole = save(tmp_path / f"a.{suffix}", SMOOTH).read_bytes()
        for _ in range(40):
            data = np.frombuffer(whole, np.uint8).copy()
            data[rng.integers(0, min(120, data.size), 4)] = rng.integers(0, 256, 4)
            (tmp_path / "b.png").write_bytes(data.tobytes())
            for read in (read_image, read_saliency, lambda p: read_mask(p, 3)):
                try:
                    read(tmp_path / "b.png")
                except ValueError as error:
                    assert str(error).startswith(str(tmp_path / "b.png"))
                    assert "\n" not in str(error)


def test_empty_file_is_refused(tmp_path):
    (tmp_path / "a.png").touch()
    for read in (read_image, read_saliency, lambda p: read_mask(p, 3)):
        with pytest.raises(ValueError, match=r"a\.png: expected .*, got"):
            read(tmp_path / "a.png")


def test_text_named_png_is_refused(tmp_path):
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"a\.png: expected PNG, JPEG, BMP, TIFF or WebP, got"):
        read_image(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: expected a grey picture, got"):
        read_saliency(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a\.png: expected a grey or palette picture, got"):
        read_mask(tmp_path / "a.png", 3)


def test_too_large_picture_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # COLOUR has 35, more than twice as many
    path = save(tmp_path / "a.png", COLOUR)
    with pytest.raises(ValueError, match=r"a\.png: expected .*35 pixels"):
        read_image(path)


@pytest.mark.parametrize("read", [read_image, read_saliency])
def test_float_pictures_are_refused_in_one_sentence(tmp_path, read):
    path = save(tmp_path / "a.tif", np.full((5, 7), 0.5, np.float32))
    with pytest.raises(ValueError, match="expected 8 or 16 bit levels, got float32") as error:
        read(path)
    assert str(error.value).count("expected") == 1


def test_missing_file_names_folder_and_count(tmp_path):
    for name in ("b.png", "c.png"):
        save(tmp_path / name, GREY)
    expected = re.escape(f"{tmp_path / 'a.png'}: expected an image; its folder holds 2 other files")
    with pytest.raises(FileNotFoundError, match=expected):
        read_image(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError, match=r"a\.npz: expected a CAM file; .*does not exist"):
        read_cam(tmp_path / "none" / "a.npz")


def test_folder_as_path_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected an image, got a folder"):
        read_image(tmp_path)


def test_saliency_is_read_in_unit_range_from_8_and_16_bit(tmp_path):
    saliency = read_saliency(save(tmp_path / "a.png", np.array([[0, 51, 255]], np.uint8)))
    assert saliency.dtype == np.float32
    assert saliency[0] == pytest.approx([0, 0.2, 1])  # 51 / 255
    cv2.imwrite(str(tmp_path / "b.png"), np.array([[0, 51 * 257, 65535]], np.uint16))
    assert read_saliency(tmp_path / "b.png")[0] == pytest.approx([0, 0.2, 1])
    assert read_saliency(save(tmp_path / "c.png", GREY > 100)).tolist() == (GREY > 100).tolist()
    assert np.array_equal(read_saliency(save(tmp_path / "d.png", as_rgb(GREY))) * 255, GREY)


def test_mask_is_read_from_grey_palette_and_grey_saved_as_colour(tmp_path):
    values = np.array([[0, 1, 2], [3, 255, 0]], np.uint8)
    grey = save(tmp_path / "grey.png", values)
    palette = save_palette(tmp_path / "palette.png", values, 255 - as_rgb(np.arange(256)))
    colour = save(tmp_path / "colour.png", as_rgb(values))
    for path in (grey, palette, colour):
        mask = read_mask(path, 3)
        assert mask.dtype == np.uint8
        assert np.array_equal(mask, values)


def test_mask_values_above_the_number_of_classes_are_refused(tmp_path):
    path = save(tmp_path / "a.png", np.array([[0, 3, 7, 255]], np.uint8))
    expected = r"a\.png: expected mask values 0\.\.2 and 255, got 3, 7\. Check the number"
    with pytest.raises(ValueError, match=expected):
        read_mask(path, 2)


def test_masks_of_more_than_254_classes_are_refused(tmp_path):
    mask = np.array([[0, 254, 255]], np.uint8)
    path = save(tmp_path / "a.png", mask)
    assert np.array_equal(read_mask(path, 254), mask)
    expected = r"a\.png: expected at most 254 classes, as a mask .* 255 is ignored, got 255\. Merge"
    with pytest.raises(ValueError, match=expected):
        read_mask(path, 255)
    for level in (None, 128):
        with pytest.raises(ValueError, match=expected):
            read_truth(record(path, 254, mask_level=level), 255)


def test_masks_that_hold_no_class_indices_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.png: expected one channel, got: mode RGB\."):
        read_mask(save(tmp_path / "a.png", COLOUR), 3)
    with pytest.raises(ValueError, match=r"b\.png: expected values 0\.\.255, got: .*0\.\.400\."):
        read_mask(save(tmp_path / "b.png", np.array([[0, 400]], np.uint16)), 3)
    with pytest.raises(ValueError, match=r"c\.tif: expected .*, got.*0\.5"):
        read_mask(save(tmp_path / "c.tif", np.array([[0.0, 0.5]], np.float32)), 3)


def test_webp_is_a_picture(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "a.webp", lossless=True)
    assert [path for path, _ in list_images(str(tmp_path))] == [tmp_path / "a.webp"]
    assert (read_image(tmp_path / "a.webp") == COLOUR).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])  # 8-bit levels in a 16-bit file
def test_grey_truth_belongs_to_the_only_class_from_the_mask_level_on(tmp_path, dtype):
    path = save(tmp_path / "a.png", np.array([[0, 127, 128, 255]], dtype))
    truth = read_truth(record(path, 2, mask_level=128), 5)
    assert truth.dtype == np.uint8
    assert truth.tolist() == [[0, 0, 3, 3]]  # class 2 has mask value 3
    assert read_truth(record(path, mask_level=128), 5).tolist() == [[0, 0, 0, 0]]  # defect-free


def test_16_bit_truth_of_full_range_is_scaled(tmp_path):
    path = save(tmp_path / "a.png", np.array([[0, 127 * 257, 128 * 257, 65535]], np.uint16))
    assert read_truth(record(path, 2, mask_level=128), 5).tolist() == [[0, 0, 3, 3]]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_truth_of_a_class_that_never_reaches_the_mask_level_is_refused(tmp_path, dtype):
    path = save(tmp_path / "a.png", np.array([[0, 1, 1, 0]], dtype))
    message = r"a\.png: expected .* with defects from 128 on, got 0\.\.1\. Set data\.mask_level=1 "
    with pytest.raises(ValueError, match=message):
        read_truth(record(path, 2, mask_level=128), 5)
    assert read_truth(record(path, 2, mask_level=1), 5).tolist() == [[0, 3, 3, 0]]
    assert not read_truth(record(path, mask_level=128), 5).any()  # defect-free
    Image.fromarray(np.array([[0, 100, 90, 0]], np.uint8)).save(path)
    assert not read_truth(record(path, 2, mask_level=128), 5).any()  # grey, and fainter than that
    empty = save(tmp_path / "b.png", np.zeros((1, 4), np.uint8))
    assert not read_truth(record(empty, 2, mask_level=128), 5).any()


def test_white_of_a_1_bit_truth_is_defect(tmp_path):
    path = save(tmp_path / "a.png", np.array([[False, True]]))
    assert read_truth(record(path, 2, mask_level=128), 5).tolist() == [[0, 3]]


def test_index_truth_is_the_mask(tmp_path):
    path = save(tmp_path / "a.png", np.array([[0, 2, 255]], np.uint8))
    assert read_truth(record(path, 1), 2).tolist() == [[0, 2, 255]]


def test_record_without_mask_has_no_truth():
    with pytest.raises(ValueError, match="a: expected a ground-truth mask, got none"):
        read_truth(record(None, 1), 2)


def test_records_refuse_unordered_classes_and_ambiguous_grey_masks():
    with pytest.raises(ValueError, match=r"a: expected ascending classes, got \(2, 1\)"):
        record(None, 2, 1)
    with pytest.raises(ValueError, match="a: a grey mask cannot tell 2 classes apart"):
        record(None, 1, 2, mask_level=128)


def test_truth_without_a_defect_is_background_of_the_size_of_the_image(tmp_path):
    Image.fromarray(np.full((5, 7, 3), 255, np.uint8)).save(tmp_path / "a.png")
    record = Record("a", tmp_path / "a.png", (), mask=tmp_path / "a.png", mask_level=NO_DEFECT)
    truth = read_truth(record, 3)
    assert (truth.dtype, truth.shape) == (np.uint8, (5, 7))
    assert not truth.any()


def test_an_image_with_a_class_has_a_defect():
    with pytest.raises(ValueError, match="a: expected no classes without a defect"):
        Record("a", Path("a.png"), (1,), mask=Path("a.png"), mask_level=NO_DEFECT)


def test_a_pipe_and_a_device_are_not_waited_for(tmp_path):
    pipe = tmp_path / "p.png"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        for read in (read_image, read_saliency, lambda p: read_mask(p, 2), read_cam, image_size):
            with pytest.raises(ValueError, match="got a pipe or a device"):
                read(path)


def test_pictures_of_other_kinds_are_refused_whatever_their_name(tmp_path):
    path = tmp_path / "a.png"
    frames = [Image.new("L", (9, 7), value) for value in (0, 200)]
    frames[0].save(path, format="GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(ValueError, match="expected PNG, JPEG, BMP, TIFF or WebP"):
        read_image(path)
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 7\n%%EndComments\n")
    with pytest.raises(ValueError, match="an unknown format"):
        read_image(path)


def png_of_a_wrong_checksum(width: int, height: int) -> bytes:
    """Return a PNG that Pillow does not know and OpenCV decodes all the same."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(b""))


def tiff_head(width: int, height: int, sample: int = 32) -> bytes:
    """Return a TIFF of three channels that says its size and holds nothing.

    Pillow knows none of 32 bits a sample: OpenCV is asked.
    """
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, sample), (259, 3, 1, 1)]
    tags += [(262, 3, 1, 2), (273, 4, 1, 8), (277, 3, 1, 3), (278, 4, 1, height), (279, 4, 1, 9)]
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + b"\0" * 4


def test_a_head_that_names_a_huge_size_takes_no_memory(tmp_path, monkeypatch):
    decoded = []
    monkeypatch.setattr(cv2, "imdecode", lambda data, flags: decoded.append(len(data)))
    path = tmp_path / "a.tif"
    for content in (tiff_head(100_000, 100_000), png_of_a_wrong_checksum(30_000, 30_000)):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.tif: expected PNG, JPEG, BMP, TIFF or WebP"):
            read_image(path)
    assert decoded == []
    path.write_bytes(tiff_head(10, 10))
    with pytest.raises(ValueError, match=r"a\.tif: expected PNG, JPEG, BMP, TIFF or WebP"):
        read_image(path)
    assert len(decoded) == 1


def test_the_size_of_a_picture_is_that_of_its_pixels(tmp_path):
    for orientation in (1, 3, 6, 8):
        path = tmp_path / f"{orientation}.jpg"
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.new("RGB", (9, 7)).save(path, exif=exif)
        assert image_size(path) == read_image(path).shape[:2]
    with pytest.raises(ValueError, match="expected PNG"):
        image_size(Path(__file__))


def test_a_cam_file_that_unpacks_to_gigabytes_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    write_cam(path, Cam(np.zeros((1, 300, 300)), np.array([0]), np.zeros(2)))
    read_cam(path)
    monkeypatch.setattr(files, "MAX_BYTES", 100_000)
    with pytest.raises(ValueError, match=r"a\.npz: .* bytes of arrays; at most 100000"):
        read_cam(path)


def test_lines_are_added_whole_and_what_is_torn_is_dropped(tmp_path):
    path = tmp_path / "a.jsonl"
    assert read_lines(path) == []
    append_lines(path, [])
    assert path.read_bytes() == b""
    append_lines(path, ["one", "two"])
    assert path.read_bytes() == b"one\ntwo\n"
    path.write_bytes(b"one\ntwo\nthr")  # a full disk
    assert read_lines(path) == ["one", "two"]
    append_lines(path, ["four"])
    assert read_lines(path) == ["one", "two", "four"]


def test_a_text_that_is_not_utf_8_is_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"a\n\xff\n")
    for read in (read_text, read_lines, read_csv):
        with pytest.raises(ValueError, match=r"a\.csv: expected UTF-8, got: .* 0xff"):
            read(path)
    path.write_text("a" * 200_000)
    with pytest.raises(ValueError, match=r"a\.csv: expected CSV, got: field larger"):
        read_csv(path)


def test_a_line_is_not_half_written(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    append_lines(path, ["one"])

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        append_lines(path, ["two"])
    assert read_lines(path) == ["one"]
    assert [file.name for file in tmp_path.iterdir()] == ["a.jsonl"]
