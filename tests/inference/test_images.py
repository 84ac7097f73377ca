"""Images pass through a network in order: decoded once, cut into tiles, batched across images."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import inference.images
from datasets.files import read_image, write_image
from datasets.record import Record
from datasets.transforms import as_image, eval_transform
from inference.images import TILE_OVERLAP, Cutting, load_pictures, over_images
from models.tiles import tiles_of

SIZES = [(9, 14), (30, 7), (12, 12), (6, 40), (5, 5)]


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    rng = np.random.default_rng(0)
    for i, size in enumerate(SIZES):
        write_image(tmp_path / f"{i}.png", rng.integers(0, 256, (*size, 3), dtype=np.uint8))
    return [Record(str(i), tmp_path / f"{i}.png", ()) for i in range(len(SIZES))]


@pytest.fixture
def decoded(monkeypatch) -> Counter:
    """Count how often each image is decoded in this process."""
    counts = Counter()

    def count(path: Path) -> np.ndarray:
        counts[path.stem] += 1
        return read_image(path)

    monkeypatch.setattr(inference.images, "read_image", count)
    return counts


def to_size(*size: int) -> object:
    return eval_transform(size, [0.5] * 3, [0.5] * 3)


class Network:
    """Says of each item its mean values at every scale, and remembers the batches it saw."""

    def __init__(self) -> None:
        self.batches = []

    def __call__(self, scales: list[Tensor]) -> list[Tensor]:
        self.batches.append([tuple(batch.shape) for batch in scales])
        return list(torch.stack([batch.mean((1, 2, 3)) for batch in scales], dim=1))

    def sizes(self) -> list[int]:
        return [scales[0][0] for scales in self.batches]


@pytest.mark.parametrize("workers", [0, 2])
def test_images_of_different_sizes_come_one_by_one_in_order(records, workers):
    got = list(load_pictures(records, workers=workers))
    assert [picture.record for picture in got] == records
    for picture, record, size in zip(got, records, SIZES, strict=True):
        assert picture.pixels.shape == (*size, 3)
        np.testing.assert_array_equal(picture.pixels, read_image(record.image))
        assert picture.inputs is None


@pytest.mark.parametrize("workers", [0, 2])
def test_inputs_of_whole_images_are_made_with_the_decoding(records, workers):
    scales = [to_size(8, 8), to_size(16, 12)]
    for picture in load_pictures(records, scales, workers):
        for made, transform in zip(picture.inputs, scales, strict=True):
            assert torch.equal(made, transform(as_image(picture.pixels)))


@pytest.mark.parametrize("made_early", [True, False])
def test_a_whole_image_is_one_tile_and_batches_go_across_images(records, decoded, made_early):
    scales = [to_size(8, 8), to_size(16, 12)]
    network = Network()
    pictures = load_pictures(records, scales if made_early else ())
    passed = list(over_images(pictures, scales, network, Cutting(0, 2)))
    assert network.batches == [[(n, 3, 8, 8), (n, 3, 16, 12)] for n in (2, 2, 1)]
    assert [record for record, *_ in passed] == records
    for record, pixels, tiles in passed:
        ((tile, said),) = tiles
        np.testing.assert_array_equal(pixels, read_image(record.image))
        assert tile.size == pixels.shape[:2]
        expected = torch.stack([transform(as_image(pixels)).mean() for transform in scales])
        torch.testing.assert_close(said, expected)
    assert decoded == dict.fromkeys("01234", 1)


def test_regions_are_cut_and_scaled_in_batches(records, decoded):
    """Tiles of several images share a batch, and each says what its own region is."""
    scales = [to_size(8, 8), to_size(16, 12)]
    network = Network()
    passed = list(over_images(load_pictures(records), scales, network, Cutting(12, 4)))
    # Sides of 12 that share 3: 14 columns need 2 tiles; 30 rows 3; 40 columns 5.
    assert [len(tiles) for *_, tiles in passed] == [2, 3, 1, 5, 1]
    assert network.sizes() == [4, 4, 4]
    assert [record for record, *_ in passed] == records
    for _, pixels, tiles in passed:
        expected = tiles_of(pixels.shape[:2], 12, TILE_OVERLAP)
        for (tile, said), wanted in zip(tiles, expected, strict=True):
            assert (tile.rows, tile.columns) == (wanted.rows, wanted.columns)
            region = as_image(pixels[tile.rows, tile.columns])
            of_region = torch.stack([transform(region).mean() for transform in scales])
            torch.testing.assert_close(said, of_region)
    assert decoded == dict.fromkeys("01234", 1)


@pytest.mark.parametrize("tile", [0, 12])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_what_is_said_does_not_depend_on_the_batch_size(records, tile, batch_size):
    scales = [to_size(8, 8)]

    def said(size: int) -> list[list[Tensor]]:
        passed = over_images(load_pictures(records), scales, Network(), Cutting(tile, size))
        return [[output for _, output in tiles] for *_, tiles in passed]

    for got, expected in zip(said(batch_size), said(2), strict=True):
        torch.testing.assert_close(torch.cat(got), torch.cat(expected))


def test_an_image_is_handed_on_before_the_next_ones_are_decoded(records, decoded):
    passed = over_images(load_pictures(records), [to_size(8, 8)], Network(), Cutting(0, 2))
    next(passed)
    assert set(decoded) == {"0", "1"}  # one batch


def test_no_more_tiles_than_a_batch_are_held(records):
    """Memory does not grow with the image: tiles are made for the batch they belong to."""
    held, most = 0, 0

    def transform(region: Tensor) -> Tensor:
        nonlocal held, most
        held += 1
        most = max(most, held)
        return torch.zeros(3, 2, 2)

    def network(scales: list[Tensor]) -> Tensor:
        nonlocal held
        held -= len(scales[0])
        return torch.zeros(len(scales[0]))

    passed = list(over_images(load_pictures(records), [transform], network, Cutting(4, 3)))
    assert sum(len(tiles) for *_, tiles in passed) > 30
    assert (held, most) == (0, 3)


def test_no_image_needs_no_network():
    network = Network()
    assert list(over_images(load_pictures([]), [to_size(8, 8)], network, Cutting(0, 2))) == []
    assert network.batches == []


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_collected_and_the_others_go_on(records, workers):
    records[1].image.write_bytes(b"no picture")
    records[3].image.unlink()
    problems = {}
    got = [p.record.name for p in load_pictures(records, [to_size(8, 8)], workers, problems)]
    assert got == ["0", "2", "4"]
    assert list(problems) == ["1", "3"]
    assert problems["1"].startswith(f"{records[1].image}: expected PNG, JPEG, BMP, TIFF or WebP")
    assert problems["3"].startswith(f"{records[3].image}: expected an image; its folder holds 4")


def test_an_unreadable_image_between_others_leaves_the_batches_in_order(records):
    records[1].image.write_bytes(b"no picture")
    problems, network = {}, Network()
    pictures = load_pictures(records, problems=problems)
    passed = over_images(pictures, [to_size(8, 8)], network, Cutting(0, 2))
    assert [record.name for record, *_ in passed] == ["0", "2", "3", "4"]
    assert network.sizes() == [2, 2]
    assert list(problems) == ["1"]


def test_unreadable_images_are_errors_where_nothing_takes_them(records):
    records[1].image.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"1\.png: expected PNG, JPEG, BMP, TIFF or WebP, got"):
        list(load_pictures(records))
    records[1].image.unlink()
    with pytest.raises(FileNotFoundError, match=r"1\.png: expected an image; its folder holds 4"):
        list(load_pictures(records))
