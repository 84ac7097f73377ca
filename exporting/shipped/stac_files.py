"""The files that stac_onnx.py reads and writes: pictures in, masks and JSON out."""

import io
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
PICTURES = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")


def read_image(path: Path) -> np.ndarray:
    """Read a picture as (H, W, 3) uint8 RGB; 16-bit grey is scaled by its full range.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a picture, or damaged.
    """
    data = content_of(path, "an image")
    try:
        with Image.open(io.BytesIO(data), formats=PICTURES) as picture:
            picture.load()
            picture = ImageOps.exif_transpose(picture)
            deep = picture.mode.startswith(("I", "F"))
            pixels = np.array(picture if deep else picture.convert("RGB"))
        if deep:
            whole = np.issubdtype(pixels.dtype, np.integer)
            if not whole or pixels.min() < 0 or pixels.max() > 65535:
                raise ValueError(f"levels of {pixels.dtype}, {pixels.min()}..{pixels.max()}")
            pixels = np.round(pixels / 257).astype(np.uint8)
    except Exception as error:  # decoders raise nearly anything on damaged files
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path}: expected PNG, JPEG, BMP, TIFF or WebP of 8 or 16 bit, got: {reason}. Replace "
            "or remove the file."
        ) from error
    return checked(pixels)


def checked(pixels: np.ndarray) -> np.ndarray:
    """Return (H, W, 3) uint8 of RGB or grey pixels.

    Raises:
        ValueError: another array.
    """
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=2)
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
        raise ValueError(
            f"image: expected (H, W, 3) uint8 RGB or (H, W) uint8, got {pixels.shape} "
            f"{pixels.dtype}. Convert it first."
        )
    return pixels


def content_of(path: Path, what: str) -> bytes:
    """Return what a file holds; `what` it should be is named if there is none.

    Raises:
        FileNotFoundError: no such file.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{path}: expected {what}, found none. Correct the path."
        ) from error


def list_images(given: Sequence[str], to: Path) -> Iterator[tuple[str, Path]]:
    """Yield name and file of the pictures at paths and patterns, but for masks of earlier calls.

    Raises:
        FileNotFoundError: a path or pattern leads to no picture.
        ValueError: two pictures would get one name.
    """
    known: dict[str, Path] = {}
    for entry in given:
        path = Path(entry).expanduser()
        files = [(f, f.relative_to(path)) for f in sorted(path.rglob("*"))] if path.is_dir() else []
        if path.is_file():
            files = [(path, Path(path.name))]
        elif not path.is_dir():
            matches = Path(path.anchor or ".").glob(str(path.relative_to(path.anchor)))
            fixed = Path(*itertools.takewhile(lambda p: not set(p) & set("*?["), path.parts))
            files = [(file, file.relative_to(fixed)) for file in sorted(matches)]
        files = [(f, r) for f, r in files if f.is_file() and f.suffix.lower() in SUFFIXES]
        if not files:
            raise FileNotFoundError(f"{entry}: expected pictures, found none. Correct the path.")
        for file, relative in files:
            if file.resolve().is_relative_to((to / "masks").resolve()):
                continue
            name = "_".join(relative.with_suffix("").parts)
            if known.setdefault(name, file).resolve() != file.resolve():
                raise ValueError(
                    f"{file}: expected another name than {known[name]}, both would be {name}. "
                    "Give their folders one by one, or the folder above both."
                )
    yield from known.items()


def write(path: Path, content: bytes) -> None:
    """Write a file that is whole or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def png_of(mask: np.ndarray) -> bytes:
    """Return a palette PNG in the colours of PASCAL VOC."""
    values = np.arange(256)
    places = [(place, channel) for place in range(8) for channel in range(3)]
    colours = np.zeros((256, 3), np.uint8)
    for place, channel in places:
        colours[:, channel] |= ((values >> (3 * place + channel) & 1) << (7 - place)).astype("u1")
    picture, content = Image.fromarray(mask), io.BytesIO()
    picture.putpalette(colours.reshape(-1).tolist())
    picture.save(content, format="PNG")
    return content.getvalue()
