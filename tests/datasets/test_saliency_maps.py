from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from datasets.files import write_image, write_mask, write_saliency
from datasets.image_maps import WeakDataset, balance, with_saliency
from datasets.record import Record, label_vector
from datasets.transforms import eval_transform, train_transform

NUM_CLASSES = 3
CLASSES = {"defect_free": (), "one": (1,), "two": (0, 2), "last": (2,)}
NORMALISATION = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    rng = np.random.default_rng(0)
    found = []
    for name, classes in CLASSES.items():
        image, mask = tmp_path / f"images/{name}.png", tmp_path / f"masks/{name}.png"
        write_image(image, rng.integers(0, 256, (9, 14, 3), dtype=np.uint8))
        write_saliency(tmp_path / f"saliency/{name}.png", rng.random((9, 14)))
        write_mask(mask, rng.integers(0, 4, (9, 14), dtype=np.uint8))
        found.append(Record(name, image, classes, mask=mask))
    return with_saliency(found, tmp_path / "saliency")


def dataset(records: list[Record], seed: int = 0) -> WeakDataset:
    transform = train_transform((16, 32), **NORMALISATION, flip=True, rotate=False, jitter=0.3)
    return WeakDataset(records, NUM_CLASSES, transform, seed)


def epoch_of(data: WeakDataset, epoch: int, workers: int = 0) -> dict:
    data.set_epoch(epoch)
    (batch,) = DataLoader(data, batch_size=len(data), num_workers=workers)
    return batch


def test_batches_hold_what_training_sees(records):
    batch = epoch_of(dataset(records), 0)
    assert batch["image"].shape == (4, 3, 16, 32) and batch["image"].dtype == torch.float32
    assert batch["saliency"].shape == (4, 1, 16, 32) and batch["saliency"].dtype == torch.float32
    assert batch["saliency"].min() >= 0 and batch["saliency"].max() <= 1
    assert batch["label"].tolist() == [[0, 0, 0], [0, 1, 0], [1, 0, 1], [0, 0, 1]]
    assert batch["label"].dtype == torch.float32
    assert batch["name"] == list(CLASSES)
    assert set(batch) == {"image", "label", "saliency", "name"}


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
        for key in ("image", "saliency", "label"):
            assert torch.equal(alone[key], shared[key])


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
        assert torch.equal(again[i]["saliency"], items[i]["saliency"])


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
    data = WeakDataset(records, NUM_CLASSES, eval_transform((16, 32), **NORMALISATION), 0)
    assert torch.equal(epoch_of(data, 0)["image"], epoch_of(data, 1)["image"])


def test_saliency_moves_with_its_image(tmp_path):
    levels = np.arange(9 * 14, dtype=np.uint8).reshape(9, 14)
    write_image(tmp_path / "images/a.png", levels)
    write_saliency(tmp_path / "a.png", levels / 255)
    (record,) = with_saliency([Record("a", tmp_path / "images/a.png", (0,))], tmp_path)
    plain = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    transform = train_transform((9, 14), **plain, flip=True, rotate=False, jitter=0)
    data, seen = WeakDataset([record], 1, transform, 0), set()
    for epoch in range(40):
        data.set_epoch(epoch)
        assert torch.allclose(data[0]["image"][:1], data[0]["saliency"], atol=1e-6)
        seen.add(data[0]["saliency"].numpy().tobytes())
    assert len(seen) == 4


def test_saliency_of_another_size_is_refused(records):
    write_saliency(records[1].saliency, np.zeros((14, 9)))
    expected = r"one\.png: expected the size of its image, \(9, 14\), got \(14, 9\)\. Make the"
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
        with_saliency(records, tmp_path)


def test_records_get_the_path_of_their_map_and_keep_the_rest(tmp_path):
    write_saliency(tmp_path / "a.b.png", np.zeros((2, 3)))
    record = Record("a.b", Path("x.jpg"), (1,), mask=Path("m.png"))
    assert with_saliency([record], tmp_path) == [replace(record, saliency=tmp_path / "a.b.png")]


def test_a_crop_is_cut_from_image_and_saliency_alike(tmp_path):
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 60, (40, 70), dtype=np.uint8)  # under 0.25: no defect
    levels[5:13, 50:58] = 200
    write_image(tmp_path / "images/a.png", levels)
    write_saliency(tmp_path / "a.png", levels / 255)
    (record,) = with_saliency([Record("a", tmp_path / "images/a.png", (1,))], tmp_path)
    plain = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    transform = train_transform((20, 20), **plain, flip=True, rotate=False, jitter=0)
    data = WeakDataset([record], 2, transform, 0, crop=20, crop_support=0.05)
    labels = set()
    for epoch in range(40):
        data.set_epoch(epoch)
        item = data[0]
        assert torch.allclose(item["image"][:1], item["saliency"], atol=1e-6)
        supported = bool((item["saliency"] >= 0.5).float().mean() >= 0.05)
        assert item["label"].tolist() == [0, float(supported)]
        assert torch.equal(item["image"], data[0]["image"])
        labels.add(supported)
    assert labels == {True, False}


def test_crops_without_saliency_maps_are_refused():
    records = [Record(f"n{i}", Path(f"n{i}.png"), ()) for i in range(7)]
    expected = r"train\.crop: expected a saliency map .* 7 images, .* n4\. Make the maps, or set"
    with pytest.raises(ValueError, match=expected):
        WeakDataset(records, 1, eval_transform((16, 32), **NORMALISATION), 0, crop=32)


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
