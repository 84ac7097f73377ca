"""The built-in sample: generated inspection pictures with exact masks, no download needed.

Three materials with uneven light carry inclusions (dark ragged streaks along the rolling
direction), patches (rough dark areas) and scratches (thin bright curves). Shadows, reflections,
dried stains and marker lines lie on all of them, whatever the label: they are no defects, but
contrast alone takes them for some: amounts and strengths were set so that, over the train split,
contrast maps painted with the image's label stay under 60 mIoU at their best threshold.
Pictures are (H, W, 3) RGB in [0, 1] until their last line.
"""

import json
from pathlib import Path

import cv2
import numpy as np

from datasets.atomic import TEMPORARY
from datasets.drawing import LINE_STEPS, blob, line, noise, tilted
from datasets.files import write_csv, write_image, write_json, write_mask, write_text
from datasets.record import BACKGROUND

CLASS_NAMES = ("inclusion", "patches", "scratches")
INCLUSION, PATCHES, SCRATCHES = range(len(CLASS_NAMES))
MATERIALS = ("rolled steel", "brushed metal", "ceramic")
GENERATOR_VERSION = 1  # raise with every change of the pictures: old samples are then made anew

DEFECT_FREE_SHARE = 0.15
TWO_CLASS_SHARE = 0.30
MIN_CLASS_PIXELS = 60  # a class that shows less, say below another defect, is drawn anew
SIDES = (110, 171)  # shortest side, and one more than the longest; pixels
MARKER = "sample.json"
SPLITS = ("train", "test")


def write_sample(root: Path, num_train: int, num_test: int, seed: int) -> None:
    """Write the sample in the VOC layout; return at once if it is there already.

    JPEGImages/<name>.jpg, SegmentationClass/<name>.png, ImageSets/Segmentation/{train,test}.txt
    and labels.csv (columns name, classes; classes joined by |). A picture depends on seed, split
    and index alone, not on the counts. sample.json says what was asked for and whether it is
    complete: a stopped call is made up for, other arguments replace the sample.

    Args:
        root: folder of the sample; made if missing.
        num_train: images of the train split, train_0000 and on.
        num_test: images of the test split, test_0000 and on.
        seed: not negative.

    Raises:
        ValueError: root holds files but no sample made by this function, or seed is negative.
    """
    if seed < 0:
        raise ValueError(f"sample seed: expected 0 or more, got {seed}. Set data.seed.")
    wanted = {"generator": GENERATOR_VERSION, "train": num_train, "test": num_test, "seed": seed}
    there = _read_marker(root)
    if there == {**wanted, "complete": True}:
        return
    if there is not None:
        # First "incomplete", then remove: stopped in between, nobody trusts what is left.
        _write_marker(root, {**there, "complete": False})
        _remove_sample(root, there)
    _write_marker(root, {**wanted, "complete": False})
    labels = {}
    for split in SPLITS:
        for index, name in enumerate(_names(split, wanted[split])):
            image, mask = make_image(np.random.default_rng((seed, SPLITS.index(split), index)))
            write_image(_image_path(root, name), image)
            write_mask(_mask_path(root, name), mask)
            labels[name] = [CLASS_NAMES[v - 1] for v in np.unique(mask) if v != BACKGROUND]
        listing = "".join(f"{name}\n" for name in _names(split, wanted[split]))
        write_text(_list_path(root, split), listing)
    rows = [(name, "|".join(classes)) for name, classes in labels.items()]
    write_csv(root / "labels.csv", [("name", "classes"), *rows])
    _write_marker(root, {**wanted, "complete": True})


def make_image(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw one inspection picture.

    Returns:
        image: (H, W, 3) uint8 RGB; H != W, neither a multiple of 16.
        mask: (H, W) uint8 mask values: 0 background, k + 1 class k; where two overlap, the later
            drawn defect. A class that is there has at least MIN_CLASS_PIXELS pixels.
    """
    size = _draw_size(rng)
    classes = _draw_classes(rng)
    image = make_surface(rng, size, MATERIALS[rng.integers(len(MATERIALS))])
    image = _add_marks(rng, image)
    image, mask = _add_defects(rng, image, classes)
    image = _add_light(rng, image)
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 0.7))
    grain = noise(rng, size, 0.5)[..., None] + 0.3 * rng.standard_normal((*size, 3))
    image = image + rng.uniform(0.008, 0.02) * grain
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8), mask


def make_surface(rng: np.random.Generator, size: tuple[int, int], material: str) -> np.ndarray:
    """Draw a flawless surface under even light, (H, W, 3) float32 around 0.45 to 0.65.

    Args:
        rng: source of every draw.
        size: (H, W).
        material: one of MATERIALS. Rolling and brushing run roughly from top to bottom.
    """
    tilt = rng.uniform(-8, 8)
    wide = (size[0] + 60, size[1] + 60)  # room for the tilt
    if material == "rolled steel":
        grain = tilted(noise(rng, wide, 14, 0.6), size, tilt)
        scale = noise(rng, size, 9, 6) * 0.7 + noise(rng, size, 3, 2.5) * 0.5
        grey = rng.uniform(0.42, 0.55) + 0.030 * grain + 0.022 * scale
        tint = (0.97, 1.0, 1.03)
    elif material == "brushed metal":
        streaks = noise(rng, wide, 45, 0.5) + 0.8 * noise(rng, wide, 30, 1.5)
        highlight = tilted(noise(rng, wide, 70, 14), size, tilt)
        grey = rng.uniform(0.50, 0.62) + 0.032 * tilted(streaks, size, tilt) + 0.035 * highlight
        tint = (1.02, 1.0, 0.97)
    else:
        mottling = noise(rng, size, 16) + 0.5 * noise(rng, size, 5)
        speckle = np.clip(noise(rng, size, 0.7) - 2.2, 0, None)
        grey = rng.uniform(0.58, 0.68) + 0.020 * mottling - 0.10 * speckle
        tint = (1.04, 1.0, 0.92)
    return (grey[..., None] * np.array(tint)).astype(np.float32)


def _draw_size(rng: np.random.Generator) -> tuple[int, int]:
    while True:
        height, width = (int(side) for side in rng.integers(*SIDES, size=2))
        if height != width and height % 16 and width % 16:
            return height, width


def _draw_classes(rng: np.random.Generator) -> list[int]:
    """Draw which defects an image shows, in the order in which they are drawn."""
    shares = (DEFECT_FREE_SHARE, 1 - DEFECT_FREE_SHARE - TWO_CLASS_SHARE, TWO_CLASS_SHARE)
    count = rng.choice(len(shares), p=shares)
    return rng.permutation(len(CLASS_NAMES))[:count].tolist()


def _add_defects(
    rng: np.random.Generator, image: np.ndarray, classes: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    draw = {INCLUSION: inclusions, PATCHES: patches, SCRATCHES: scratches}
    size = image.shape[:2]
    while True:
        result, mask = image, np.full(size, BACKGROUND, np.uint8)
        for k in classes:
            cover, shade = draw[k](rng, size)
            alpha = cv2.GaussianBlur(cover, (0, 0), 0.6)[..., None]
            result = result * (1 + alpha * shade[..., None])
            mask[cover >= 0.5] = k + 1
        if all((mask == k + 1).sum() >= MIN_CLASS_PIXELS for k in classes):
            return result.astype(np.float32), mask


def inclusions(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return cover (H, W) in [0, 1] and relative change of brightness (H, W) of dark streaks."""
    height, width = size
    y, x = np.mgrid[:height, :width].astype(np.float32)
    ragged = 0.28 * noise(rng, size, 2.5, 1)
    cover = np.zeros(size, np.float32)
    for _ in range(rng.integers(1, 5)):
        length = rng.uniform(0.35, 0.8) * height
        top, middle = rng.uniform(-0.1, 0.7) * height, rng.uniform(0.1, 0.9) * width
        along = (y - top) / length
        wander = np.interp(along, np.linspace(0, 1, 6), rng.uniform(-3, 3, 6))
        swell = np.interp(along, np.linspace(0, 1, 8), rng.uniform(0.5, 1, 8))
        taper = np.sqrt(np.clip(4 * along * (1 - along), 0, None))
        half_width = rng.uniform(4.5, 8) * swell * taper
        lean = np.tan(np.radians(rng.uniform(-10, 10))) * (y - top)
        cover[np.abs(x - middle - lean - wander) < half_width * (1 + ragged) - 0.4] = 1
    return cover, -rng.uniform(0.35, 0.6) + 0.07 * noise(rng, size, 3, 1)


def patches(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return cover and change of brightness of rough areas, 5 to 25 % of the picture in all."""
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    distance = np.full(size, np.inf)
    for _ in range(rng.integers(1, 4)):
        cy, cx = rng.uniform(0.15, 0.85, 2) * size
        ry, rx = rng.uniform(0.7, 1.4, 2) * min(size)
        distance = np.minimum(distance, np.hypot((y - cy) / ry, (x - cx) / rx))
    field = distance + 0.06 * noise(rng, size, 7) + 0.012 * noise(rng, size, 1.5)
    cover = (field < np.quantile(field, rng.uniform(0.06, 0.24))).astype(np.float32)
    rough = 0.6 * noise(rng, size, 0.9) + 0.8 * noise(rng, size, 2)
    return cover, -rng.uniform(0.22, 0.38) + 0.13 * rough


def scratches(rng: np.random.Generator, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return cover and change of brightness of thin bright curves, 2 to 9 px wide."""
    cover = np.zeros(size, np.float32)
    shade = np.zeros(size, np.float32)
    for _ in range(rng.integers(2, 6)):
        centre = rng.uniform(0.15, 0.85, 2) * size
        angle = rng.uniform(0, np.pi)
        direction = np.array([np.sin(angle), np.cos(angle)])
        reach = rng.uniform(0.2, 0.55) * min(size) * direction
        bend = centre + rng.uniform(-0.12, 0.12) * min(size) * direction[::-1] * (1, -1)
        width = rng.uniform(5, 9) * np.interp(LINE_STEPS, (0, 0.25, 0.8, 1), (0.4, 1, 0.8, 0.3))
        stroke = line(size, (centre - reach, bend, centre + reach), width)
        shade = np.where(stroke > cover, rng.uniform(0.28, 0.65), shade)
        cover = np.maximum(cover, stroke)
    return cover, shade * np.clip(1 + 0.2 * noise(rng, size, 5), 0.6, 1.4)


def _add_marks(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Add what lies on the surface but is no defect: marker lines and rims of dried drops."""
    size = image.shape[:2]
    if rng.random() < 0.45:
        ends = rng.uniform(-0.1, 1.1, (2, 2)) * size
        ends[:, rng.integers(2)] *= (0, 1)
        stroke = line(size, (ends[0], ends.mean(axis=0), ends[1]), rng.uniform(4, 7))
        inks = ((0.10, 0.15, 0.55), (0.60, 0.10, 0.12), (0.95, 0.85, 0.30), (0.25, 0.85, 0.55))
        alpha = rng.uniform(0.55, 0.85) * stroke[..., None]
        image = image * (1 - alpha) + alpha * np.array(inks[rng.integers(len(inks))])
    for _ in range(rng.integers(0, 3)):
        drop = blob(rng, size, 0.08, 0.2, softness=2.5)
        rim = 4 * drop * (1 - drop)
        stain = (0.08 * drop + 0.16 * rim)[..., None] * np.array((0.6, 1.0, 1.7))
        image = image * (1 - rng.uniform(0.5, 1.0) * stain)
    return image.astype(np.float32)


def _add_light(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Add a light gradient, a vignette, soft shadows and soft reflections."""
    size = image.shape[:2]
    y, x = np.meshgrid(*(np.linspace(-1, 1, side) for side in size), indexing="ij")
    angle = rng.uniform(0, 2 * np.pi)
    light = 1 + rng.uniform(0.05, 0.22) * (np.sin(angle) * y + np.cos(angle) * x)
    light -= rng.uniform(0.0, 0.15) * (x**2 + y**2) / 2
    for _ in range(rng.integers(0, 3)):
        light *= 1 - rng.uniform(0.2, 0.45) * blob(rng, size, 0.12, 0.3, softness=8)
    gloss = np.zeros(size, np.float32)
    for _ in range(rng.integers(0, 4)):
        gloss += rng.uniform(0.12, 0.35) * blob(rng, size, 0.05, 0.13, softness=5)
    return image * light[..., None] + gloss[..., None]


def _read_marker(root: Path) -> dict | None:
    """Return what sample.json says, None for a folder that is missing or empty."""
    refusal = "Choose another data.root, or move what lies there."
    if root.exists() and not root.is_dir():
        raise ValueError(f"{root}: expected a folder for the sample, got a file. {refusal}")
    if (root / MARKER).is_file():
        try:
            marker = json.loads((root / MARKER).read_text())
            counts = {split: int(marker[split]) for split in SPLITS}
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{root / MARKER}: expected the arguments of a sample, got: {error!r}. {refusal}"
            ) from error
        return {**marker, **counts}
    left_over = [path.name for path in root.iterdir()] if root.is_dir() else []
    foreign = sorted(name for name in left_over if not TEMPORARY.fullmatch(name))
    if foreign:
        raise ValueError(
            f"{root}: expected an empty folder or a sample with {MARKER}, got "
            f"{', '.join(foreign[:5])}. {refusal}"
        )
    return None


def _write_marker(root: Path, marker: dict) -> None:
    write_json(root / MARKER, marker)


def _remove_sample(root: Path, marker: dict) -> None:
    """Remove the files, and only those, that a call with the marker's counts writes."""
    for split in SPLITS:
        for name in _names(split, marker[split]):
            _image_path(root, name).unlink(missing_ok=True)
            _mask_path(root, name).unlink(missing_ok=True)
        _list_path(root, split).unlink(missing_ok=True)
    (root / "labels.csv").unlink(missing_ok=True)


def _names(split: str, count: int) -> list[str]:
    return [f"{split}_{index:04d}" for index in range(count)]


def _image_path(root: Path, name: str) -> Path:
    return root / f"JPEGImages/{name}.jpg"


def _mask_path(root: Path, name: str) -> Path:
    return root / f"SegmentationClass/{name}.png"


def _list_path(root: Path, split: str) -> Path:
    return root / f"ImageSets/Segmentation/{split}.txt"
