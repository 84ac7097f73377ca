"""Picture files, of whatever kind and however damaged, to pixels.

Only regular files are read. Pillow refuses pictures of more than 178,956,970 pixels before it
decodes them.
"""

import io
import stat
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import IMAGELENGTH, IMAGEWIDTH, ImageFileDirectory_v2

MAX_TIFF_PIXELS = 178_956_970  # where OpenCV reads what Pillow does not know
HIGHEST_VALUE = 255  # of a mask
TRANSPOSED = (5, 6, 7, 8)  # EXIF orientations that exchange height and width
ORIENTATION = 0x0112  # EXIF tag
KINDS = "PNG, JPEG, BMP, TIFF or WebP"
FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")  # others run programs, or are many pictures


def opened(data: bytes) -> Image.Image:
    """Open a picture of one of `FORMATS`; nothing is decoded yet."""
    return Image.open(io.BytesIO(data), formats=FORMATS)


def size(path: Path) -> tuple[int, int]:
    """Return the (H, W) of a picture, EXIF orientation applied, from its head if that tells."""
    data = read_bytes(path, "an image")
    try:
        with opened(data) as picture:
            turned = picture.getexif().get(ORIENTATION) in TRANSPOSED
            return picture.size if turned else picture.size[::-1]
    except UnidentifiedImageError:
        return read_colour(path).shape[:2]
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise damaged(path, KINDS, str(error)) from error


def read_colour(path: Path) -> np.ndarray:
    """Return (H, W, 3) colour or, of grey deeper than 8 bit, (H, W) levels."""
    return colour_of(read_bytes(path, "an image"), path)


def colour_of(data: bytes, path: Path) -> np.ndarray:
    """Return what `read_colour` does of the content of a file; `path` names it in errors."""
    try:
        return _decode_colour(data)
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise damaged(path, KINDS, str(error)) from error


def read_bytes(path: Path, what: str) -> bytes:
    """Return what a file holds.

    Args:
        path: of a file.
        what: it should be, for the error.

    Raises:
        FileNotFoundError: no such file; its folder is described.
        ValueError: not a regular file.
    """
    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):  # a pipe would be waited for
            kind = "a folder" if Path(path).is_dir() else "a pipe or a device"
            raise ValueError(f"{path}: expected {what}, got {kind}.")
        return Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        folder = Path(path).parent
        count = len(list(folder.iterdir())) if folder.is_dir() else 0
        state = f"holds {count} other files" if folder.is_dir() else "does not exist"
        raise FileNotFoundError(f"{path}: expected {what}; its folder {state}.") from error


def _decode_colour(data: bytes) -> np.ndarray:
    """Return (H, W, 3) colour or, of grey deeper than 8 bit, (H, W) levels."""
    try:
        with opened(data) as picture:
            picture.load()
            picture = ImageOps.exif_transpose(picture)
            deep = picture.mode.startswith(("I", "F"))
            return np.array(picture if deep else picture.convert("RGB"))
    except UnidentifiedImageError:
        # Pillow lacks some deep colour TIFF; OpenCV has them.
        if not data:
            raise ValueError("an empty file") from None
        pixels = _decode_tiff(data) if _is_small_tiff(data) else None
        if pixels is None:
            raise ValueError("an unknown format") from None
        return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _decode_tiff(data: bytes) -> np.ndarray | None:
    """Return what OpenCV decodes, None where it cannot; its many lines on stderr are kept back."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    try:
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    finally:
        cv2.utils.logging.setLogLevel(level)


def _is_small_tiff(data: bytes) -> bool:
    """Tell whether this is a TIFF of a size that may be decoded: a damaged head names any size."""
    try:
        head = ImageFileDirectory_v2(data[:8])
        file = io.BytesIO(data)
        file.seek(head.next)
        head.load(file)
        return 0 < head[IMAGEWIDTH] * head[IMAGELENGTH] <= MAX_TIFF_PIXELS
    except Exception:  # no TIFF, or a damaged one
        return False


def read_grey(path: Path, what: str) -> np.ndarray:
    """Read a picture of any mode as (H, W) grey levels, of the depth that it has."""
    data = read_bytes(path, what)
    try:
        with opened(data) as picture:
            deep = picture.mode.startswith(("I", "F"))
            pixels = np.array(picture if deep else picture.convert("L"))
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise damaged(path, "a grey picture", str(error)) from error
    return pixels


def read_single_channel(path: Path, what: str) -> np.ndarray:
    """Read grey levels or palette indices as (H, W) uint8."""
    data = read_bytes(path, what)
    try:
        with opened(data) as picture:
            picture.load()
            mode = picture.mode
            pixels = np.array(picture)
    except Exception as error:  # decoders raise nearly anything on damaged files
        raise damaged(path, "a grey or palette picture", str(error)) from error
    if mode == "RGB" and (pixels == pixels[..., :1]).all():  # grey saved as colour
        pixels = pixels[..., 0]
    if pixels.ndim != 2:
        raise damaged(path, "one channel", f"mode {mode}")
    whole = pixels.dtype.kind in "bui"
    if whole and pixels.min() >= 0 and pixels.max() <= HIGHEST_VALUE:
        return pixels.astype(np.uint8)
    raise damaged(path, f"values 0..{HIGHEST_VALUE}", f"{pixels.min()}..{pixels.max()}")


def to_8_bit(pixels: np.ndarray, path: Path) -> np.ndarray:
    """Scale 16-bit levels to uint8; pass uint8 through."""
    if pixels.dtype == np.uint8:
        return pixels
    whole = np.issubdtype(pixels.dtype, np.integer)
    if not whole or pixels.min() < 0 or pixels.max() > 65535:
        got = f"{pixels.dtype} from {pixels.min()} to {pixels.max()}"
        raise ValueError(f"{path}: expected 8 or 16 bit levels, got {got}. Convert it first.")
    return np.round(pixels / 257).astype(np.uint8)


def damaged(path: Path, expected: str, got: str) -> ValueError:
    """Return the error of a file that cannot be read."""
    got = " ".join(got.split())
    return ValueError(f"{path}: expected {expected}, got: {got}. Replace or remove the file.")
