from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2

import datasets.transforms
from datasets.files import write_image, write_mask
from datasets.image_maps import ImageMapDataset, pseudo_labels
from datasets.record import Record
from datasets.transforms import eval_transform, train_transform

HALF = ([0.5] * 3, [0.5] * 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four 12 x 20 images whose brightness is 40 x their mask value; the truth is no picture."""
    rng = np.random.default_rng(0)
    for i in range(4):
        mask = rng.integers(0, 4, (12, 20)).astype(np.uint8)
        mask[0, 0] = 255 if i == 0 else 0
        write_mask(tmp_path / f"pseudo/{i}.png", mask)
        write_image(tmp_path / f"{i}.png", np.repeat(mask[..., None] * np.uint8(40), 3, axis=2))
    (tmp_path / "truth.png").write_text("training must not open this")
    return tmp_path


def records_in(folder: Path) -> list[Record]:
    return [Record(str(i), folder / f"{i}.png", (0,), mask=folder / "truth.png") for i in range(4)]


def dataset_of(folder: Path, transform: v2.Transform, seed: int = 0) -> ImageMapDataset:
    records = records_in(folder)
    return ImageMapDataset(
        records, 3, transform, seed, *pseudo_labels(records, folder / "pseudo", 3)
    )


def test_items_have_the_documented_types_and_keep_ignored_pixels(folder):
    item = dataset_of(folder, eval_transform((12, 20), *HALF))[0]

    assert item["image"].shape == (3, 12, 20) and item["image"].dtype == torch.float32
    assert item["map"].shape == (1, 12, 20) and item["map"].dtype == torch.uint8
    assert item["label"].tolist() == [1, 0, 0]
    assert item["name"] == "0"
    assert item["map"][0, 0, 0] == 255
    assert set(item["map"].unique().tolist()) == {0, 1, 2, 3, 255}


def test_mask_moves_with_its_image(folder, monkeypatch):
    monkeypatch.setattr(datasets.transforms, "JITTER", 0.0)
    transform = train_transform((12, 20), *HALF)
    dataset = dataset_of(folder, transform)
    plain = dataset_of(folder, eval_transform((12, 20), *HALF))[1]["map"]

    moved = 0
    for epoch in range(8):
        dataset.set_epoch(epoch)
        item = dataset[1]
        level = (item["image"][0] * 0.5 + 0.5) * 255 / 40  # undo the normalisation
        torch.testing.assert_close(level, item["map"][0].float(), atol=1e-3, rtol=0)
        moved += not torch.equal(item["map"], plain)
    assert moved > 0  # no flip in 8 draws: probability 4^-8


def test_crops_are_cut_from_image_and_mask_alike_and_see_the_foreground(tmp_path):
    mask = np.zeros((60, 90), np.uint8)
    mask[50:53, 4:7] = 2
    mask[0:5, 80:90] = 255  # is no foreground
    write_mask(tmp_path / "pseudo/0.png", mask)
    write_image(tmp_path / "0.png", mask)
    records = [Record("0", tmp_path / "0.png", (1,))]
    plain = eval_transform((16, 16), (0, 0, 0), (1, 1, 1))
    maps = pseudo_labels(records, tmp_path / "pseudo", 3, crop=16)
    dataset = ImageMapDataset(records, 3, plain, 0, *maps)

    held = 0
    for epoch in range(60):
        dataset.set_epoch(epoch)
        item = dataset[0]
        assert item["map"].shape == (1, 16, 16)
        assert item["label"].tolist() == [0, 1, 0]  # of the whole image
        torch.testing.assert_close(item["image"][:1] * 255, item["map"].float())
        held += bool((item["map"] == 2).any())
    assert 20 < held < 45  # half of them, and a few by chance


def test_draws_depend_on_seed_and_epoch_but_not_on_the_workers(folder):
    transform = train_transform((12, 20), *HALF)

    def images(seed: int, epoch: int, workers: int) -> torch.Tensor:
        dataset = dataset_of(folder, transform, seed)
        dataset.set_epoch(epoch)
        return torch.cat([b["image"] for b in DataLoader(dataset, 2, num_workers=workers)])

    first = images(seed=3, epoch=1, workers=0)
    assert torch.equal(first, images(seed=3, epoch=1, workers=2))
    assert not torch.equal(first, images(seed=3, epoch=2, workers=0))
    assert not torch.equal(first, images(seed=4, epoch=1, workers=0))


def test_reading_leaves_the_global_random_state_alone(folder):
    transform = train_transform((12, 20), *HALF)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    dataset_of(folder, transform)[2]

    assert torch.equal(torch.rand(3), expected)


def test_missing_masks_are_counted_and_named(folder):
    for i in (1, 3):
        (folder / f"pseudo/{i}.png").unlink()

    expected = r"pseudo label for each of 4 images, 2 are missing: 1\.png, 3\.png\. Run make_ps"
    with pytest.raises(FileNotFoundError, match=expected):
        dataset_of(folder, eval_transform((12, 20), *HALF))


def test_mask_of_another_size_is_refused(folder):
    write_mask(folder / "pseudo/2.png", np.zeros((20, 12), np.uint8))

    expected = r"2\.png\): expected the size of its image, \(12, 20\), got \(20, 12\)"
    with pytest.raises(ValueError, match=expected):
        dataset_of(folder, eval_transform((12, 20), *HALF))[2]


def test_values_of_unknown_classes_are_refused(folder):
    write_mask(folder / "pseudo/2.png", np.full((12, 20), 4, np.uint8))

    with pytest.raises(ValueError, match=r"2\.png: expected mask values 0\.\.3 and 255, got 4"):
        dataset_of(folder, eval_transform((12, 20), *HALF))[2]
