"""The saliency maps that training sees, and the data set of images with maps."""

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2

import datasets.image_maps
import datasets.transforms
from datasets.crops import SUPPORT
from datasets.files import write_image, write_mask, write_saliency
from datasets.image_maps import ImageMapDataset, balance, saliency_maps
from datasets.record import Record, label_vector
from datasets.transforms import eval_transform, train_transform

NUM_CLASSES = 3
CLASSES = {"defect_free": (), "one": (1,), "two": (0, 2), "last": (2,)}
NORMALISATION = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
PLAIN = {"mean": (0, 0, 0), "std": (1, 1, 1)}


@pytest.fixture
def same_light(monkeypatch):
    monkeypatch.setattr(datasets.transforms, "JITTER", 0.0)


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    rng = np.random.default_rng(0)
    made = []
    for name, classes in CLASSES.items():
        image, mask = tmp_path / f"images/{name}.png", tmp_path / f"masks/{name}.png"
        write_image(image, rng.integers(0, 256, (9, 14, 3), dtype=np.uint8))
        write_saliency(tmp_path / f"saliency/{name}.png", rng.random((9, 14)))
        write_mask(mask, rng.integers(0, 4, (9, 14), dtype=np.uint8))
        made.append(Record(name, image, classes, mask=mask))
    return made


def folder_of(records: list[Record]) -> Path:
    return records[0].image.parent.parent / "saliency"


def dataset(
    records: list[Record], seed: int = 0, transform: v2.Transform | None = None
) -> ImageMapDataset:
    transform = transform or train_transform((16, 32), **NORMALISATION)
    return ImageMapDataset(
        records, NUM_CLASSES, transform, seed, *saliency_maps(records, folder_of(records))
    )


def epoch_of(data: ImageMapDataset, epoch: int, workers: int = 0) -> dict:
    data.set_epoch(epoch)
    (batch,) = DataLoader(data, batch_size=len(data), num_workers=workers)
    return batch


def test_batches_hold_what_training_sees(records):
    batch = epoch_of(dataset(records), 0)
    assert batch["image"].shape == (4, 3, 16, 32) and batch["image"].dtype == torch.float32
    assert batch["map"].shape == (4, 1, 16, 32) and batch["map"].dtype == torch.float32
    assert batch["map"].min() >= 0 and batch["map"].max() <= 1
    assert batch["label"].tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 1], [0, 0, 1]]
    assert batch["label"].dtype == torch.float32
    assert batch["name"] == list(CLASSES)
    assert set(batch) == {"image", "label", "map", "name"}


def test_label_vector_is_multi_hot():
    record = Record("a", Path("a.png"), (0, 2))
    assert label_vector(record, 4) == [1.0, 0.0, 1.0, 0.0]
    assert label_vector(replace(record, classes=()), 2) == [0.0, 0.0]


def test_training_never_opens_a_mask(records):
    with_masks = epoch_of(dataset(records), 0)
    for record in records:
        record.mask.unlink()
    without = epoch_of(dataset(records), 0)
    assert torch.equal(with_masks["image"], without["image"])
    assert torch.equal(with_masks["label"], without["label"])


def test_items_do_not_depend_on_the_number_of_workers(records):
    for epoch in (0, 3):
        alone = epoch_of(dataset(records), epoch)
        shared = epoch_of(dataset(records), epoch, workers=2)
        for key in ("image", "map", "label"):
            assert torch.equal(alone[key], shared[key])


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_is_decoded_in_the_first_epoch_alone(records, workers):
    data = dataset(records)
    epoch_of(data, 0, workers)
    expected = epoch_of(dataset(records), 1)
    for record in records:
        record.image.unlink()
        (folder_of(records) / f"{record.name}.png").unlink()
    again = epoch_of(data, 1, workers)
    assert torch.equal(again["image"], expected["image"])
    assert torch.equal(again["map"], expected["map"])
    assert again["label"].tolist() == expected["label"].tolist()


def test_what_does_not_fit_into_memory_is_decoded_in_every_epoch(records, monkeypatch):
    size = 4 * (3 * 16 * 32 + 4 * 16 * 32)  # four images of bytes, and their maps of floats
    for room, is_kept in ((size, True), (size - 1, False)):
        monkeypatch.setattr(datasets.image_maps, "KEPT_BYTES", room)
        data = dataset(records)
        epoch_of(data, 0)
        assert data.kept.done.all() == is_kept
    records[0].image.unlink()
    with pytest.raises(FileNotFoundError, match="defect_free.png"):
        epoch_of(data, 1)


def test_what_is_kept_is_not_sent_to_processes_that_are_not_forked(records):
    data = dataset(records)
    epoch_of(data, 0)
    kept = pickle.loads(pickle.dumps(data.kept))
    assert (kept.count, kept.images, kept.done.any().item()) == (4, None, False)


def test_items_differ_between_epochs_seeds_and_indices(records):
    same = dataset([records[0]] * 8)
    images = [epoch_of(same, epoch)["image"] for epoch in range(3)]
    images.append(epoch_of(dataset([records[0]] * 8, seed=1), 0)["image"])
    drawn = {image.numpy().tobytes() for batch in images for image in batch}
    assert len(drawn) == 4 * 8


def test_equal_seed_epoch_and_index_give_the_equal_item(records):
    data, again = dataset(records, seed=5), dataset(records, seed=5)
    data.set_epoch(2)
    again.set_epoch(7)
    again.set_epoch(2)
    torch.manual_seed(1)
    items = [data[i] for i in range(4)]
    torch.manual_seed(2)
    for i in reversed(range(4)):
        assert torch.equal(again[i]["image"], items[i]["image"])
        assert torch.equal(again[i]["map"], items[i]["map"])


def test_global_random_numbers_are_left_alone(records):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    dataset(records)[0]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_random_numbers_of_the_gpu_are_left_alone(records, monkeypatch):
    # Else dropout on the GPU would repeat itself, and differ with the number of workers.
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    monkeypatch.setattr(torch.cuda, "manual_seed", seeded.append)
    dataset(records)[0]
    assert not seeded


@pytest.mark.parametrize("seed", [20_251_231, 2**32 - 1, 2**63 - 1])
def test_large_seeds_are_welcome(records, seed):
    data = dataset(records, seed)
    assert not torch.equal(epoch_of(data, 0)["image"], epoch_of(data, 1)["image"])


def test_evaluation_items_are_the_same_in_every_epoch(records):
    data = dataset(records, transform=eval_transform((16, 32), **NORMALISATION))
    assert torch.equal(epoch_of(data, 0)["image"], epoch_of(data, 1)["image"])


def levels_as_saliency(tmp_path: Path, levels: np.ndarray, *classes: int) -> Record:
    """Write an image whose saliency map is the image itself."""
    write_image(tmp_path / "images/a.png", levels)
    write_saliency(tmp_path / "a.png", levels / 255)
    return Record("a", tmp_path / "images/a.png", classes)


def test_saliency_moves_with_its_image(tmp_path, same_light):
    record = levels_as_saliency(tmp_path, np.arange(9 * 14, dtype=np.uint8).reshape(9, 14), 0)
    transform = train_transform((9, 14), **PLAIN)
    data = ImageMapDataset([record], 1, transform, 0, *saliency_maps([record], tmp_path))
    seen = set()
    for epoch in range(40):
        data.set_epoch(epoch)
        assert torch.allclose(data[0]["image"][:1], data[0]["map"], atol=1e-6)
        seen.add(data[0]["map"].numpy().tobytes())
    assert len(seen) == 4


def test_several_maps_of_an_image_move_with_it(tmp_path, same_light):
    levels = np.arange(9 * 14, dtype=np.uint8).reshape(9, 14)
    record = levels_as_saliency(tmp_path, levels, 0)

    def read_maps(record: Record) -> np.ndarray:
        return np.stack([levels, levels // 2]).astype(np.float32)

    data = ImageMapDataset([record], 1, train_transform((9, 14), **PLAIN), 0, read_maps)
    for epoch in range(8):
        data.set_epoch(epoch)
        item = data[0]
        assert torch.allclose(item["image"][0] * 255, item["map"][0], atol=1e-4)
        assert torch.equal(item["map"][0].div(2, rounding_mode="floor"), item["map"][1])


def test_saliency_of_another_size_is_refused(records):
    write_saliency(folder_of(records) / "one.png", np.zeros((14, 9)))
    expected = r"one\.png\): expected the size of its image, \(9, 14\), got \(14, 9\)\. Make it"
    with pytest.raises(ValueError, match=expected):
        dataset(records)[1]


def test_missing_saliency_maps_are_counted_and_five_are_named(tmp_path):
    records = [Record(f"n{i}", Path(f"n{i}.png"), ()) for i in range(9)]
    for i in (0, 4):
        write_saliency(tmp_path / f"n{i}.png", np.zeros((2, 3)))
    expected = (
        "expected a saliency map for each of 9 images, 7 are missing: "
        r"n1\.png, n2\.png, n3\.png, n5\.png, n6\.png\. Run make_saliency\.py first"
    )
    with pytest.raises(FileNotFoundError, match=expected):
        saliency_maps(records, tmp_path)


def test_a_missing_folder_of_saliency_maps_misses_all(tmp_path):
    records = [Record("a", Path("a.png"), ())]
    with pytest.raises(FileNotFoundError, match=r"none: .* of 1 images, 1 are missing: a\.png\."):
        saliency_maps(records, tmp_path / "none")


def test_the_map_of_a_name_with_dots_is_read(tmp_path):
    write_saliency(tmp_path / "a.b.png", np.full((2, 3), 0.2))
    record = Record("a.b", Path("x.jpg"), (1,), mask=Path("m.png"))
    read, choose = saliency_maps([record], tmp_path)
    assert choose is None
    assert read(record) == pytest.approx(np.full((2, 3), 0.2))


def test_a_crop_is_cut_from_image_and_saliency_alike(tmp_path, same_light):
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 60, (40, 70), dtype=np.uint8)  # under 0.25: no defect
    levels[5:13, 50:58] = 200
    record = levels_as_saliency(tmp_path, levels, 1)
    transform = train_transform((20, 20), **PLAIN)
    data = ImageMapDataset([record], 2, transform, 0, *saliency_maps([record], tmp_path, crop=20))
    labels = set()
    for epoch in range(40):
        data.set_epoch(epoch)
        item = data[0]
        assert torch.allclose(item["image"][:1], item["map"], atol=1e-6)
        supported = bool((item["map"] >= 0.5).float().mean() >= SUPPORT)
        assert item["label"].tolist() == [0, float(supported)]
        assert torch.equal(item["image"], data[0]["image"])
        labels.add(supported)
    assert labels == {True, False}


def test_defect_free_images_do_not_outnumber_the_others():
    path = Path("x.png")
    defective = [Record(f"d{i}", path, (0,)) for i in range(3)]
    free = [Record(f"f{i}", path, ()) for i in range(9)]
    listed = balance([*defective, *free])
    assert sorted(r.name for r in listed) == sorted([r.name for r in [*defective * 3, *free]])
    listed = balance([*defective, *free], 0.75)
    assert sorted(r.name for r in listed) == sorted([r.name for r in [*defective * 9, *free]])
    assert balance([*defective, *free], 0) == [*defective, *free]
    assert balance([*defective, free[0]]) == [*defective, free[0]]
    assert balance(defective) == defective
    assert balance(free) == free
