"""A run that says of red, green and blue pixels that they show its three classes."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from datasets.files import write_image
from demonstration.server import Demonstration, Place
from inference.predictor import Predictor, load_run
from inference.results import Options, Seen

CLASSES = ["<script>alert(1)</script>", "a|b", "dent"]
MAX_BYTES = 200_000


class Colours:
    """Stands in for the networks: the class of a pixel is its colour, its probability the level."""

    def __init__(self) -> None:
        self.num_images = 0

    def seen(self, pictures):
        for record, pixels, _ in pictures:
            self.num_images += 1
            level = pixels.max(axis=2)
            best = (pixels.argmax(axis=2) + 1).astype(np.uint8)
            share = (level / 255).astype(np.float32)
            mask = np.where(level > 0, best, np.uint8(0))
            scores = (pixels.max(axis=(0, 1)) / 255).astype(np.float32)
            yield Seen(record, pixels, scores, share, mask, best, share, scores, None)


def picture(*blocks: tuple[int, int, int, int, int, int]) -> np.ndarray:
    """Return 40 x 60 black pixels with blocks: class, level, top, left, height, width."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    for k, level, top, left, height, width in blocks:
        pixels[top : top + height, left : left + width] = 0
        pixels[top : top + height, left : left + width, k] = level
    return pixels


@pytest.fixture(scope="session")
def draw_picture() -> Callable[..., np.ndarray]:
    return picture


@pytest.fixture
def photos_dir(tmp_path) -> Path:
    """Write a sure red ring, a faint green block of 5 x 10 and a blue one of 2 x 3; and more."""
    ring = [(0, 250, 5, 5, 20, 20), (0, 0, 10, 10, 5, 5)]
    write_image(
        tmp_path / "in/a.png", picture(*ring, (1, 100, 30, 30, 5, 10), (2, 200, 2, 50, 2, 3))
    )
    write_image(tmp_path / "in/deep/good.png", picture())
    write_image(tmp_path / "secret.png", picture())
    return tmp_path / "in"


@pytest.fixture
def networks() -> Colours:
    return Colours()


@pytest.fixture(scope="session")
def loaded(untrained_run) -> Predictor:
    run = load_run(untrained_run, "cpu", Options(min_area=0))
    run.class_names = CLASSES
    return run


@pytest.fixture
def demonstration(loaded, photos_dir, networks) -> Demonstration:
    run = copy.copy(loaded)
    run.seen = networks.seen
    return Demonstration(run, Place("parts", photos_dir, "127.0.0.1", MAX_BYTES))
