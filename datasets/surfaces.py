"""Generated surfaces of many kinds, with exact masks: python -m datasets.surfaces asphalt DIR.

The built-in sample is one kind of surface; these are eight, to see what one set of settings does on
surfaces that it was not chosen for. Each has two classes, pictures of both, defect-free pictures,
several scales and contrasts. DIR holds images/, masks/ and table.csv, a table of your own as
docs/datasets.md describes it (data.source=csv, data.mask_level=0). Pictures are (H, W, 3) RGB in
[0, 1] until their last line.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from configs.command_line import run_stage
from datasets.drawing import blob, cracks, line, noise, shifted
from datasets.files import write_csv, write_image, write_mask
from datasets.record import BACKGROUND
from datasets.sample import inclusions, make_surface, patches, scratches

MIN_CLASS_PIXELS = 12  # a class that shows less, say below another defect, is drawn anew
TWO_CLASS_SHARE = 0.15
CONTRASTS = (0.55, 1.1)  # of the defects of an image, of what is written below

Size = tuple[int, int]
Drawn = tuple[np.ndarray, dict[str, np.ndarray]]  # picture; class -> (H, W) cover in [0, 1]


class Wanted(NamedTuple):
    """What a picture shall be.

    Attributes:
        rng: source of every draw but those of the scene.
        size: (H, W).
        classes: what it shows, the later on top.
        contrast: of its defects.
        scene: gives the same numbers for all pictures, for what a fixed camera always sees.
    """

    rng: np.random.Generator
    size: Size
    classes: Sequence[str]
    contrast: float
    scene: np.random.Generator


class Surface(NamedTuple):
    """A kind of surface.

    Attributes:
        class_names: of its defects.
        draw: gives a picture and what its defects cover.
        sides: shortest and longest side of a picture, pixels.
    """

    class_names: tuple[str, str]
    draw: Callable[[Wanted], Drawn]
    sides: tuple[int, int]


def make_picture(
    surface: Surface, classes: Sequence[str], rng: np.random.Generator, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw a picture of a surface.

    Args:
        surface: one of `SURFACES`.
        classes: what it shows; none for a defect-free picture.
        rng: source of every draw but the scene.
        seed: of the scene.

    Returns:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) uint8 mask values, the later class on top.
    """
    of_size = np.random.default_rng(seed) if surface.draw is polished else rng
    size = tuple(int(side) for side in of_size.integers(*surface.sides, size=2))
    values = [surface.class_names.index(name) + 1 for name in classes]
    while True:
        scene = np.random.default_rng((seed, 1))
        wanted = Wanted(rng, size, classes, rng.uniform(*CONTRASTS), scene)
        picture, covers = surface.draw(wanted)
        mask = np.full(size, BACKGROUND, np.uint8)
        for name, value in zip(classes, values, strict=True):
            mask[covers[name] >= 0.5] = value
        if all((mask == value).sum() >= MIN_CLASS_PIXELS for value in values):
            break
    y, x = np.meshgrid(*(np.linspace(-1, 1, side) for side in size), indexing="ij")
    slopes = rng.uniform(-0.12, 0.12, 2)
    picture = picture * (1 + slopes[0] * y + slopes[1] * x)[..., None]
    picture = cv2.GaussianBlur(picture.astype(np.float32), (0, 0), rng.uniform(0.4, 0.8))
    picture = picture + rng.uniform(0.006, 0.018) * rng.standard_normal(picture.shape)
    return np.round(np.clip(picture, 0, 1) * 255).astype(np.uint8), mask


def asphalt(wanted: Wanted) -> Drawn:
    """Rough asphalt: thin dark branching cracks, dark oil stains."""
    rng, size, classes, contrast, _ = wanted
    zoom = rng.uniform(0.7, 1.5)  # of the camera
    grey = rng.uniform(0.38, 0.52) + 0.04 * noise(rng, size, 0.8 * zoom)
    grey += 0.04 * noise(rng, size, 2 * zoom) + 0.015 * noise(rng, size, 15 * zoom)
    grey += 0.10 * np.clip(noise(rng, size, 1.3 * zoom) - 1.3, 0, None)  # stones
    grey -= 0.10 * np.clip(noise(rng, size, 1.0 * zoom) - 1.6, 0, None)  # holes between them
    picture = grey[..., None] * np.array((1.0, 0.99, 0.96))
    covers = {}
    for name in classes:
        if name == "oil":
            covers[name] = blob(rng, size, 0.08, 0.28, softness=1.5)
            shade = -contrast * rng.uniform(0.3, 0.45) * covers[name]
        else:
            covers[name] = cracks(rng, size, rng.uniform(1.5, 3.5) * zoom, branches=4)
            shade = -contrast * rng.uniform(0.5, 0.75) * np.minimum(covers[name], 1)
        picture = picture * (1 + shade)[..., None]
    return picture, covers


def cloth(wanted: Wanted) -> Drawn:
    """Plain weave: a thread or two missing, thick knots."""
    rng, size, classes, contrast, _ = wanted
    period, tilt = rng.uniform(5, 9), np.radians(rng.uniform(-6, 6))
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    across = (x * np.cos(tilt) + y * np.sin(tilt) + 0.7 * noise(rng, size, 25)) / period
    along = (y * np.cos(tilt) - x * np.sin(tilt) + 0.7 * noise(rng, size, 25)) / period
    tones = 1 + 0.05 * rng.standard_normal((2, 1000))  # of each thread
    warp = np.sin(np.pi * (across % 1)) ** 0.7 * tones[0, across.astype(int) % 1000]
    weft = np.sin(np.pi * (along % 1)) ** 0.7 * tones[1, along.astype(int) % 1000]
    warp_on_top = (np.floor(across) + np.floor(along)) % 2 == 0
    value = np.where(warp_on_top, warp, 0.92 * weft)
    covers = {}
    for name in classes:
        here = rng.uniform(0.15, 0.85, 2) * size
        at = int(here[0]), int(here[1])
        if name == "missing thread":
            first, count = np.floor(across[at]), rng.integers(1, 3)
            missing = (np.floor(across) >= first) & (np.floor(across) < first + count)
            reach = rng.uniform(0.15, 0.6) * size[0] / period
            missing &= np.abs(along - along[at]) < reach
            covers[name] = missing.astype(np.float32)
            gap = 0.75 * weft - 0.15
            value = np.where(missing, value + np.sqrt(contrast) * (gap - value), value)
        else:
            away = ((across - across[at]) / rng.uniform(0.6, 1.1)) ** 2
            away += ((along - along[at]) / rng.uniform(1.5, 4)) ** 2
            covers[name] = (away < 1).astype(np.float32)
            thick = 1.05 * (1 - 0.5 * away.clip(0, 1)) + 0.05 * noise(rng, size, 1.5, 0.7)
            value = np.where(away < 1, value + np.sqrt(contrast) * (thick + 0.15 - value), value)
    colour = rng.uniform(0.35, 0.65) * np.array((1.0, 0.95, 0.85)) * rng.uniform(0.9, 1.1, 3)
    return (0.35 + 0.65 * value)[..., None] * colour, covers


def wood(wanted: Wanted) -> Drawn:
    """Planed wood: dark knots that push the grain aside, greyish blue stains."""
    rng, size, classes, contrast, _ = wanted
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    across = x + 6 * noise(rng, size, 70, 20)
    knots = []
    for _ in range(rng.integers(1, 3) if "knot" in classes else 0):
        centre, radius = rng.uniform(0.1, 0.9, 2) * size, rng.uniform(5, 20)
        shape = np.array((rng.uniform(1.0, 1.8), 1.0)) * radius
        away = np.hypot((y - centre[0]) / shape[0], (x - centre[1]) / shape[1])
        away += 0.06 * noise(rng, size, 4)
        side = np.sign(x - centre[1])
        across -= side * radius * np.exp(-(away**2) / 6)
        knots.append(away)
    ring = rng.uniform(9, 24)
    rings = np.sin(2 * np.pi * across / ring + 1.5 * noise(rng, size, 90, 6))
    fibres = noise(rng, (size[0], size[1]), 25, 0.7)
    pores = np.clip(noise(rng, size, 8, 0.6) - 2, 0, None)
    tone = 1 + 0.08 * rings + 0.04 * fibres - 0.10 * pores
    colour = rng.uniform(0.6, 0.75) * np.array((1.0, 0.74, 0.5)) * rng.uniform(0.92, 1.08, 3)
    picture = tone[..., None] * colour
    covers = {}
    for name in classes:
        if name == "knot":
            away = np.minimum.reduce(knots)
            covers[name] = (away < 1).astype(np.float32)
            inside = 0.5 + 0.12 * np.sin(9 * away) + 0.05 * noise(rng, size, 1.5)
            alpha = cv2.GaussianBlur(covers[name], (0, 0), 1.0) * min(1.0, contrast)
            dark = inside[..., None] * colour * np.array((0.95, 0.85, 0.8))
            picture = picture + alpha[..., None] * (dark - picture)
        else:
            covers[name] = blob(rng, size, 0.07, 0.25, softness=2.0)
            tint = np.array((0.45, 0.33, 0.2)) * contrast * rng.uniform(0.6, 1.0)
            rough = 1 + 0.25 * noise(rng, size, 5)
            picture = picture * (1 - (covers[name] * rough)[..., None] * tint)
    return picture, covers


def printed(wanted: Wanted) -> Drawn:
    """A printed pattern: ink smeared along the web, places without ink."""
    rng, size, classes, contrast, _ = wanted
    period = rng.uniform(14, 28)
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    u, v = (x + rng.uniform(0, 99)) / period, (y + rng.uniform(0, 99)) / period
    motif = rng.integers(3)
    if motif == 0:  # diamonds
        distance = np.abs(u % 1 - 0.5) + np.abs(v % 1 - 0.5) - 0.32
    elif motif == 1:  # dots, every other row moved
        distance = np.hypot((u + 0.5 * (np.floor(v) % 2)) % 1 - 0.5, v % 1 - 0.5) - 0.3
    else:  # waves
        distance = np.abs((v + 0.25 * np.sin(2 * np.pi * u)) % 1 - 0.5) - 0.2
    ink = np.clip(0.5 - distance * period / 1.5, 0, 1).astype(np.float32)
    ink *= 1 - 0.12 * np.clip(noise(rng, size, 1.2), 0, None)
    covers = {}
    for name in classes:
        where = blob(rng, size, 0.06, 0.2, softness=1.2)
        covers[name] = where
        if name == "smear":
            length = int(rng.uniform(0.8, 1.6) * period) | 1
            drawn = cv2.blur(ink, (1, length)) + 0.15 + 0.06 * noise(rng, size, 12, 0.8)
            ink = ink + where * contrast * 0.9 * (np.maximum(ink, drawn) - ink)
        else:
            ink = ink * (1 - where * min(1.0, contrast))
    paper = rng.uniform(0.78, 0.9) * np.array((1.0, 0.99, 0.95))
    colour = rng.uniform(0.15, 0.6, 3)
    tone = 1 + 0.012 * noise(rng, size, 1.5)
    return (paper + np.clip(ink, 0, 1)[..., None] * (colour - paper)) * tone[..., None], covers


def polished(wanted: Wanted) -> Drawn:
    """A turned part before a fixed camera: tiny dark pits, thin scratches."""
    rng, size, classes, contrast, scene = wanted
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    round_part = (y - size[0] / 2) / (0.42 * size[0])
    grey = 0.22 + 0.5 * np.sqrt(np.clip(1 - round_part**2, 0, None))
    grey += 0.2 * np.exp(-(((round_part + 0.35) / 0.12) ** 2))  # the lamp in it
    for _ in range(scene.integers(2, 5)):  # grooves
        at, width = scene.uniform(0.05, 0.95) * size[1], scene.uniform(3, 9)
        grey = grey * (1 - 0.45 * np.exp(-(((x - at) / width) ** 4)))
    on_part = np.abs(round_part) < 0.85
    for _ in range(scene.integers(1, 3)):  # holes
        centre, radius = scene.uniform(0.3, 0.7, 2) * size, scene.uniform(0.03, 0.07) * size[0]
        away = np.hypot(y - centre[0], x - centre[1]) / radius
        on_part &= away > 1.3
        grey = np.where(away < 1, 0.08, grey * (1 + 0.25 * np.exp(-(((away - 1.1) / 0.1) ** 2))))
    grey += 0.02 * noise(scene, size, 0.6, 12)  # marks of turning, the same part each time
    move = rng.uniform(-1.5, 1.5, 2)
    grey = shifted(grey, move) * rng.uniform(0.95, 1.05) + 0.008 * noise(rng, size, 0.7, 8)
    covers = {}
    for name in classes:
        cover, shade = np.zeros(size, np.float32), np.zeros(size, np.float32)
        for _ in range(rng.integers(1, 6)):
            centre = np.array((rng.uniform(0.2, 0.8) * size[0], rng.uniform(0.05, 0.95) * size[1]))
            if name == "pit":
                radius = rng.uniform(1.2, 4)
                away = np.hypot(y - centre[0], x - centre[1]) / radius + 0.15 * noise(rng, size, 2)
                pit = np.clip((1 - away) * radius + 0.5, 0, 1)
                rim = np.exp(-(((away - 1.25) / 0.2) ** 2)) * (y + x > centre.sum())
                shade += contrast * (0.25 * rim - 0.6 * pit)
                cover = np.maximum(cover, pit)
            else:
                angle = rng.uniform(0, np.pi)
                reach = rng.uniform(10, 40) * np.array((np.sin(angle), np.cos(angle)))
                bend = centre + rng.uniform(-4, 4, 2)
                stroke = line(size, (centre - reach, bend, centre + reach), rng.uniform(1.2, 2.2))
                shade += contrast * rng.choice((-0.4, 0.5)) * stroke
                cover = np.maximum(cover, stroke)
        covers[name] = cover * on_part
        grey = grey * (1 + shade * on_part)
    return grey[..., None] * np.array((1.0, 1.0, 0.98)), covers


def _of_sample(material: str) -> Callable[[Wanted], Drawn]:
    """Return the drawing of a material of the built-in sample, without its marks and shadows."""
    defects = {"inclusion": inclusions, "patch": patches, "scratch": scratches}

    def draw(wanted: Wanted) -> Drawn:
        rng, size, classes, contrast, _ = wanted
        picture, covers = make_surface(rng, size, material), {}
        for name in classes:
            if name == "crack":
                covers[name] = cracks(rng, size, rng.uniform(1.2, 2.2), branches=1)
                shade = np.full(size, -0.5)
            else:
                covers[name], shade = defects[name](rng, size)
            alpha = contrast * cv2.GaussianBlur(covers[name], (0, 0), 0.6)
            picture = picture * (1 + alpha * shade)[..., None]
        return picture, covers

    return draw


SURFACES = {
    "asphalt": Surface(("crack", "oil"), asphalt, (260, 420)),
    "ceramic": Surface(("crack", "patch"), _of_sample("ceramic"), (180, 260)),
    "cloth": Surface(("missing thread", "knot"), cloth, (220, 320)),
    "metal": Surface(("patch", "scratch"), _of_sample("brushed metal"), (180, 260)),
    "polished": Surface(("pit", "scratch"), polished, (240, 420)),
    "printed": Surface(("smear", "void"), printed, (220, 320)),
    "steel": Surface(("inclusion", "scratch"), _of_sample("rolled steel"), (180, 260)),
    "wood": Surface(("knot", "stain"), wood, (220, 340)),
}


def write_surface(root: Path, name: str, num_defective: int, num_good: int, seed: int) -> None:
    """Write pictures of a surface with masks and a table.

    Args:
        root: folder; made if missing.
        name: of `SURFACES`.
        num_defective: pictures with defects, the classes in turn, `TWO_CLASS_SHARE` with both.
        num_good: defect-free pictures.
        seed: of all draws. A picture depends on it, its number and the two counts.

    Raises:
        ValueError: the folder holds other files.
    """
    surface = SURFACES[name]
    table = root / "table.csv"
    if root.exists() and any(root.iterdir()) and not table.is_file():
        raise ValueError(f"{root}: expected an empty folder, got files. Choose another.")
    rows = [("image", "classes", "mask")]
    for index in range(num_defective + num_good):
        rng = np.random.default_rng((seed, index))
        classes = list(surface.class_names)
        if index >= num_defective:
            classes = []
        elif rng.random() >= TWO_CLASS_SHARE:
            classes = [classes[index % 2]]
        image, mask = make_picture(surface, classes, rng, seed)
        paths = f"images/{index:04d}.png", f"masks/{index:04d}.png"
        write_image(root / paths[0], image)
        write_mask(root / paths[1], mask)
        rows.append((paths[0], "|".join(classes), paths[1]))
    write_csv(table, rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Write the pictures of one surface."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets.surfaces",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("surface", choices=tuple(SURFACES))
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--defective", type=int, default=120, metavar="N", help="default: 120")
    parser.add_argument("--good", type=int, default=60, metavar="N", help="default: 60")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: 0")
    args = parser.parse_args(argv)
    write_surface(args.folder, args.surface, args.defective, args.good, args.seed)
    print(f"wrote {args.defective + args.good} pictures of {args.surface} to {args.folder}/")


if __name__ == "__main__":
    run_stage(main)
