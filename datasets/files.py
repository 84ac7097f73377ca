"""Every read and write of an image, saliency map, mask or CAM.

All arrays are (H, W) or (H, W, 3), top left first. Every file of the project is written by
`datasets.atomic`, so that a stopped run never leaves half a file that later stages trust.
"""

import csv
import io
import itertools
import json
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from datasets import decoding
from datasets.atomic import write_atomically
from datasets.outlines import read_outlines
from datasets.record import BACKGROUND, IGNORE, NO_DEFECT, Record, check_num_classes

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
MAX_BYTES = 2**30  # of the arrays of a CAM file, unpacked
HIGHEST_INDEX = 31  # a grey mask whose values end there or below may hold indices, or 0 and 1


class Cam(NamedTuple):
    """The class activation maps of one image.

    Attributes:
        cam: (M, H, W) float32 in [0, 1], one map per class in `classes`; M may be 0.
        classes: (M,) int64, ascending foreground indices.
        scores: (K,) float32 image scores in [0, 1] of all classes.
    """

    cam: np.ndarray
    classes: np.ndarray
    scores: np.ndarray


def list_images(given: str) -> list[tuple[Path, Path]]:
    """Return the pictures at a path, each with its path below the folder that was given.

    Args:
        given: a picture, a folder (with all below it) or a pattern, which may begin with ~; the
            folder of a pattern is what stands before its first wildcard.

    Raises:
        FileNotFoundError: there is none.
    """
    path = Path(given).expanduser()
    if path.is_dir():
        files = [(file, file.relative_to(path)) for file in sorted(path.rglob("*"))]
    elif path.is_file():
        files = [(path, Path(path.name))]
    else:
        pattern = str(path.relative_to(path.anchor))
        matches = sorted(Path(path.anchor or ".").glob(pattern))
        folder = Path(*itertools.takewhile(lambda part: not set(part) & set("*?["), path.parts))
        files = [(file, file.relative_to(folder)) for file in matches]
    files = [(f, r) for f, r in files if f.is_file() and f.suffix.lower() in IMAGE_SUFFIXES]
    if not files:
        raise FileNotFoundError(
            f"{given}: expected a picture, a folder with pictures or a pattern of some "
            f"({', '.join(IMAGE_SUFFIXES)}), found none. Correct the path."
        )
    return files


def read_image(path: Path) -> np.ndarray:
    """Read a picture as (H, W, 3) uint8 RGB.

    PNG, JPEG, BMP, TIFF and WebP, 8 or 16 bit, grey, colour or palette; 16 bit is scaled by its
    full range (65,535 becomes 255), transparency is dropped, the EXIF orientation is applied.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a picture, or damaged.
    """
    return in_colour(decoding.read_colour(path), path)


def in_colour(levels: np.ndarray, path: Path) -> np.ndarray:
    """Return levels of a picture, (H, W) or (H, W, 3) of any depth, as `read_image` does.

    Raises:
        ValueError: levels that are no whole numbers, or of more than 16 bit.
    """
    pixels = decoding.to_8_bit(levels, path)
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def image_size(path: Path) -> tuple[int, int]:
    """Return the (H, W) that `read_image` gives, from the head of the file where that tells.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a picture, or damaged.
    """
    return decoding.size(path)


def read_saliency(path: Path) -> np.ndarray:
    """Read a saliency map as (H, W) float32 in [0, 1]; colour is turned to grey.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a picture, or damaged.
    """
    return (
        decoding.to_8_bit(decoding.read_grey(path, "a saliency map"), path).astype(np.float32) / 255
    )


def read_mask(path: Path, num_classes: int) -> np.ndarray:
    """Read a mask of class indices as (H, W) uint8.

    Args:
        path: grey or palette picture whose values (or palette indices) are class indices.
        num_classes: K foreground classes; values 0..K and 255 are allowed.

    Raises:
        ValueError: other values, too many classes, more than one channel, or a damaged file.
    """
    check_num_classes(num_classes, path)
    mask = decoding.read_single_channel(path, "a mask")
    wrong = np.setdiff1d(np.unique(mask), [*range(num_classes + 1), IGNORE])
    if wrong.size:
        raise ValueError(
            f"{path}: expected mask values 0..{num_classes} and {IGNORE}, got "
            f"{', '.join(map(str, wrong[:5]))}. Check the number of classes."
        )
    return mask


def read_truth(record: Record, num_classes: int) -> np.ndarray:
    """Read a record's ground truth as (H, W) uint8 mask values. For evaluation only.

    Raises:
        ValueError: the record has no mask, or its file is damaged or has unknown values, or is
            said to be grey and holds no defect, but values that look like indices; K too high.
    """
    if record.mask is None:
        raise ValueError(f"{record.name}: expected a ground-truth mask, got none.")
    check_num_classes(num_classes, record.mask)
    if record.mask_level == NO_DEFECT:
        return np.full(read_image(record.mask).shape[:2], BACKGROUND, np.uint8)
    if record.mask_names:
        size = image_size(record.image)
        return read_outlines(record.mask, record.image, size, record.mask_names)
    if record.mask_level is None:
        return read_mask(record.mask, num_classes)
    levels = read_levels(record.mask)
    defect = levels >= record.mask_level
    if record.classes and 0 < levels.max() <= HIGHEST_INDEX and not defect.any():
        raise ValueError(
            f"{record.mask}: expected grey levels up to 255 with defects from {record.mask_level} "
            f"on, got 0..{levels.max()}. Set data.mask_level=1 for masks of 0 and 1, 0 for "
            "class indices (sources folder and csv), or correct the mask."
        )
    value = record.classes[0] + 1 if record.classes else BACKGROUND
    return np.where(defect, np.uint8(value), np.uint8(BACKGROUND))


def read_levels(path: Path) -> np.ndarray:
    """Read a grey mask as (H, W) uint8 levels; colour is turned to grey.

    Of a 16-bit mask whose values end at 255 these are the levels: scaled, it would be empty.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a picture, or damaged.
    """
    levels = decoding.read_grey(path, "a mask")
    if np.issubdtype(levels.dtype, np.integer) and 0 <= levels.min() <= levels.max() <= 255:
        return levels.astype(np.uint8)
    return decoding.to_8_bit(levels, path)


def write_text(path: Path, text: str) -> None:
    """Write text in UTF-8."""
    write_atomically(path, lambda to: to.write_text(text, encoding="utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes."""
    write_atomically(path, lambda to: to.write_bytes(content))


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines of text."""
    write_text(path, "".join(f"{line}\n" for line in lines))


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Add lines to a text file, all or none; one of a file that ends within a line is dropped."""
    write_lines(path, [*read_lines(path), *lines])


def read_lines(path: Path) -> list[str]:
    """Return the whole lines of a text file; none of a file that is not there.

    What a stopped program or a full disk has left of a last line is no line.

    Raises:
        ValueError: it is not UTF-8.
    """
    return read_text(path).split("\n")[:-1] if path.is_file() else []


def read_text(path: Path) -> str:
    """Return the text of a file.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected UTF-8, got: {error}. Correct the file.") from error


def read_csv(path: Path) -> list[list[str]]:
    """Return the rows of a CSV file, the first of them the names of the columns.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not UTF-8, or not CSV.
    """
    try:
        return list(csv.reader(io.StringIO(read_text(path), newline="")))
    except csv.Error as error:
        raise ValueError(f"{path}: expected CSV, got: {error}. Correct the file.") from error


def write_json(path: Path, content: Any) -> None:
    """Write JSON; NaN and infinity, which JSON does not know, are refused with a ValueError."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Write rows, the first of them the names of the columns, as CSV."""
    content = io.StringIO()
    csv.writer(content).writerows(rows)
    write_atomically(path, lambda to: to.write_text(content.getvalue(), "utf-8", newline=""))


def write_image(path: Path, image: np.ndarray) -> None:
    """Write (H, W, 3) or (H, W) uint8 as PNG or JPEG, by the ending of `path`."""
    suffix_format = "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else "PNG"
    picture = Image.fromarray(image)
    write_atomically(path, lambda to: picture.save(to, format=suffix_format, quality=95))


def write_saliency(path: Path, saliency: np.ndarray) -> None:
    """Write a (H, W) map in [0, 1] as 8-bit grey PNG."""
    write_image(path, np.round(np.clip(saliency, 0, 1) * 255).astype(np.uint8))


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write (H, W) uint8 mask values as a palette PNG in the PASCAL VOC colours."""
    picture = _in_colours(mask)
    write_atomically(path, lambda to: picture.save(to, format="PNG"))


def mask_png(mask: np.ndarray) -> bytes:
    """Return what `write_mask` writes."""
    content = io.BytesIO()
    _in_colours(mask).save(content, format="PNG")
    return content.getvalue()


def _in_colours(mask: np.ndarray) -> Image.Image:
    picture = Image.fromarray(mask.astype(np.uint8, copy=False))
    picture.putpalette(voc_palette().reshape(-1).tolist())
    return picture


def voc_palette() -> np.ndarray:
    """Return the (256, 3) uint8 RGB colours of PASCAL VOC masks.

    Bit i of a value's bits 0, 1, 2 (then 3, 4, 5, ...) sets bit 7 - i of red, green, blue.
    """
    values = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for place in range(8):
        for channel in range(3):
            bit = values >> (3 * place + channel) & 1
            colours[:, channel] |= (bit << (7 - place)).astype(np.uint8)
    return colours


def write_cam(path: Path, cam: Cam) -> None:
    """Write a CAM file: npz with cam float16, classes int64 and scores float32."""
    write_bytes(path, cam_bytes(cam))


def cam_bytes(cam: Cam) -> bytes:
    """Return the content of a CAM file."""
    arrays = {
        "cam": cam.cam.astype(np.float16),
        "classes": cam.classes.astype(np.int64),
        "scores": cam.scores.astype(np.float32),
    }
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def read_cam(path: Path) -> Cam:
    """Read a CAM file written by `write_cam`; never unpickles.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a file, arrays that do not fit together, or NaN and other numbers
            outside [0, 1].
    """
    data = decoding.read_bytes(path, "a CAM file")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as members:
            size = sum(member.file_size for member in members.infolist())
        if size > MAX_BYTES:
            raise ValueError(f"{size} bytes of arrays; at most {MAX_BYTES} are read")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            cam = Cam(
                arrays["cam"].astype(np.float32),
                arrays["classes"].astype(np.int64),
                arrays["scores"].astype(np.float32),
            )
    except Exception as error:  # zip, zlib and numpy raise nearly anything on damaged files
        raise decoding.damaged(path, "npz with cam, classes and scores", str(error)) from error
    shapes_fit = cam.cam.ndim == 3 and cam.classes.shape == cam.cam.shape[:1]
    indices = [-1, *cam.classes.reshape(-1).tolist(), cam.scores.size]
    ascending = all(low < high for low, high in itertools.pairwise(indices))
    if not (shapes_fit and cam.scores.ndim == 1 and ascending):
        got = f"cam {cam.cam.shape}, classes {cam.classes.tolist()}, scores {cam.scores.shape}"
        raise decoding.damaged(
            path, "cam (M, H, W), M ascending classes under K and scores (K,)", got
        )
    for name, values in (("cam", cam.cam), ("scores", cam.scores)):
        if values.size and not 0 <= values.min() <= values.max() <= 1:  # NaN is neither
            raise decoding.damaged(path, f"{name} in [0, 1]", f"{values.min()}..{values.max()}")
    return cam
