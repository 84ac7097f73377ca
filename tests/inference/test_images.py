"""Native images arrive in order, and their regions in batches at every scale."""

from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.files import write_image
from inference.images import native_loader, region_batches
from datasets.record import Record
from datasets.transforms import as_image, eval_transform


@pytest.mark.parametrize("workers", [0, 2])
def test_images_of_different_sizes_come_one_by_one_in_order(tmp_path: Path, workers):
    rng, records, pixels = np.random.default_rng(0), [], []
    for i, size in enumerate([(9, 14), (30, 7), (12, 12)]):
        pixels.append(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        write_image(tmp_path / f"{i}.png", pixels[-1])
        records.append(Record(str(i), tmp_path / f"{i}.png", (i,)))
    found = list(native_loader(records, workers))
    assert [record for record, _ in found] == records
    for (_, got), expected in zip(found, pixels, strict=True):
        np.testing.assert_array_equal(got, expected)


def test_regions_are_cut_and_scaled_in_batches():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 50, 3), dtype=np.uint8)
    regions = [(slice(i, i + 20), slice(5 * i, 5 * i + 10)) for i in range(5)]
    scales = [eval_transform(size, [0.5] * 3, [0.5] * 3) for size in ((20, 10), (40, 32))]
    batches = list(region_batches(pixels, regions, scales, 2))
    assert [len(batch[0]) for batch in batches] == [2, 2, 1]
    for s, transform in enumerate(scales):
        joined = torch.cat([batch[s] for batch in batches])
        expected = [transform(as_image(pixels[region])) for region in regions]
        assert torch.equal(joined, torch.stack(expected))
