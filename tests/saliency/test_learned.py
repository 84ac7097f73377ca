"""Learned refinement: its loss by hand, its targets, and that it finds a planted defect."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from configs import Config, RefinementConfig
from datasets.files import read_cam, write_image, write_mask
from datasets.record import Record
from scoring.confusion import SaliencyHistogram
from saliency import refinement
from saliency.generator import Prepared

CPU = torch.device("cpu")
TINY = RefinementConfig(
    network="unet",
    encoder="tu-test_efficientnet",
    pretrained="none",
    image_size=(64, 64),
    steps=40,
    batch_size=4,
    lr=1e-2,
    folds=2,
    amp="off",
    jitter=0.0,
)


def shares(*values: float) -> torch.Tensor:
    """Logits of one pixel whose softmax is `values`, (1, K + 1, 1, 1)."""
    return torch.tensor(values).log().view(1, -1, 1, 1)


def loss(logits: torch.Tensor, prior: list[float], label: list[float], q: float = 0.5) -> float:
    priors = torch.tensor(prior).view(1, -1, 1, 1)
    settings = {"high": 0.5, "low": 0.25, "robustness": q}
    return refinement.partial_label_loss(logits, priors, torch.tensor([label]), **settings).item()


@pytest.mark.parametrize(
    ("prior", "label", "expected"),
    [
        # the prior allows class 0 only: (1 - sqrt(.36)) / .5; class 1 is present, none is absent
        ([0.9, 0.3], [1, 1], 0.8),
        # both classes may be there: (1 - sqrt(.36 + .13)) / .5
        ([0.9, 0.5], [1, 1], 0.6),
        # background: 1 - sqrt(.51), over .5
        ([0.25, 0.1], [1, 1], 0.571714),
        # between the thresholds nothing is known
        ([0.4, 0.0], [1, 1], 0.0),
        # class 1 is absent: besides, -log(1 - .13)
        ([0.4, 0.0], [1, 0], 0.139262),
    ],
)
def test_partial_label_loss_by_hand(prior, label, expected):
    assert loss(shares(0.51, 0.36, 0.13), prior, label) == pytest.approx(expected, abs=1e-5)


def test_robustness_near_zero_is_the_cross_entropy():
    # -log .36 = 1.021651
    got = loss(shares(0.51, 0.36, 0.13), [0.9, 0.0], [1, 1], q=1e-4)
    assert got == pytest.approx(1.021651, abs=1e-3)


def test_loss_is_the_mean_over_known_pixels_alone():
    logits = torch.randn(2, 3, 3, 5, generator=torch.Generator().manual_seed(0))
    priors = torch.full((2, 2, 3, 5), 0.4)
    priors[0, 0, 1, 2], priors[1, :, 2, 4] = 0.8, 0.0
    labels = torch.ones(2, 2)
    settings = {"high": 0.5, "low": 0.25, "robustness": 0.7}
    got = refinement.partial_label_loss(logits, priors, labels, **settings)
    share = logits.double().softmax(1)
    terms = [(1 - p**0.7) / 0.7 for p in (share[0, 1, 1, 2].item(), share[1, 0, 2, 4].item())]
    assert got.item() == pytest.approx(sum(terms) / 2, rel=1e-5)


@pytest.fixture(scope="module")
def planted(tmp_path_factory) -> SimpleNamespace:
    """12 images with a dark square of class 0 and 4 without a defect; priors are half noise."""
    root = tmp_path_factory.mktemp("planted")
    rng = np.random.default_rng(0)
    records, truths = [], {}
    for i in range(16):
        classes = (0,) if i < 12 else ()
        truth = np.zeros((50, 70), np.uint8)
        image = rng.normal(150, 8, (50, 70, 1)).repeat(3, 2)
        if classes:
            y, x = rng.integers(5, 25), rng.integers(5, 45)
            truth[y : y + 18, x : x + 18] = 1
            image[truth == 1] -= 70
        write_image(root / f"image_{i}.png", image.clip(0, 255).astype(np.uint8))
        write_mask(root / f"mask_{i}.png", truth)
        mask = root / f"mask_{i}.png"
        records.append(Record(f"image_{i}", root / f"image_{i}.png", classes, mask=mask))
        truths[f"image_{i}"] = truth

    def noisy(record: Record, image: np.ndarray) -> np.ndarray:
        wrong = np.random.default_rng(int(record.name.split("_")[1])).random(image.shape[:2]) < 0.3
        return np.where(wrong, 1 - truths[record.name], truths[record.name]).astype(np.float32)

    data = SimpleNamespace(class_names=("dent", "stain"), split=lambda name: records)
    return SimpleNamespace(records=records, truths=truths, data=data, prior=Prepared(noisy))


FEATURES = replace(
    TINY, network="features", backbone="test_vit", weights="none", feature_size=64, blocks=(1, 2)
)


@pytest.fixture(scope="module", params=[TINY, FEATURES], ids=["unet", "features"])
def refined(planted, tmp_path_factory, request) -> Prepared:
    folder = tmp_path_factory.mktemp("priors")
    return refinement.prepare(request.param, planted.prior, planted.data, folder, CPU, 0)


def best_iou(generator: Prepared, planted: SimpleNamespace) -> float:
    histogram = SaliencyHistogram(2)
    for record in planted.records[:12]:
        image = refinement.read_image(record.image)
        histogram.update(planted.truths[record.name], generator.make_map(record, image), True)
    return histogram.scores().best_fg_iou


def test_refined_maps_are_better_than_their_noisy_priors(planted, refined):
    assert best_iou(refined, planted) > best_iou(planted.prior, planted) + 5


def test_maps_have_the_size_and_range_of_any_generator(planted, refined):
    record = planted.records[0]
    image = refinement.read_image(record.image)
    found = refined.make_map(record, image)
    assert (found.shape, found.dtype) == ((50, 70), np.float32)
    assert 0 <= found.min() <= found.max() <= 1
    unseen = Record("unseen", record.image, (0,))
    both = refined.make_map(unseen, image)  # by the mean of both networks, not by one
    assert not np.array_equal(both, found)


def test_priors_are_made_for_each_class_alone(planted, tmp_path):
    asked = []

    def make_map(record: Record, image: np.ndarray) -> np.ndarray:
        asked.append(record.classes)
        return np.full(image.shape[:2], 0.25 * (1 + record.classes[0]), np.float32)

    record = Record("two", planted.records[0].image, (0, 1))
    free = Record("free", planted.records[0].image, ())
    refinement.write_priors(Prepared(make_map), [record, free], tmp_path, 3)
    assert asked == [(0,), (1,)]
    assert read_cam(tmp_path / "free.npz").cam.shape == (0, 50, 70)
    maps = refinement.read_prior(tmp_path, record, 3)
    assert maps[:, 0, 0].tolist() == [0.25, 0.5, 0.0]
    assert not refinement.read_prior(tmp_path, free, 3).any()


def test_a_map_never_comes_from_a_network_that_saw_its_image(planted, tmp_path, monkeypatch):
    seen = []

    def remember(records, *_):
        seen.append({record.name for record in records})
        return len(seen) - 1  # stands for the network

    monkeypatch.setattr(refinement, "train_student", remember)
    used = []
    monkeypatch.setattr(
        refinement, "foreground", lambda models, *_: used.append(models) or torch.zeros(1, 50, 70)
    )
    generator = refinement.prepare(TINY, planted.prior, planted.data, Path(tmp_path), CPU, 0)
    for record in planted.records:
        generator.make_map(record, np.zeros((50, 70, 3), np.uint8))
    for record, (student,) in zip(planted.records, used, strict=True):
        assert record.name not in seen[student]
    assert len(seen) == 2


def test_too_few_images_are_refused(planted, tmp_path):
    few = SimpleNamespace(class_names=("dent",), split=lambda name: planted.records[:6])
    with pytest.raises(ValueError, match="expected 4 training images or more .* got 3. Lower ref"):
        refinement.prepare(TINY, planted.prior, few, tmp_path, CPU, 0)


def test_refinement_is_off_by_default():
    assert Config().refinement.rounds == 0


def test_masks_are_drawn_by_the_seed_and_evenly_over_the_classes():
    path = Path("x.png")
    records = [
        Record(str(i), path, ((0,), (0,), (0,), (1,), ())[i % 5], mask=path if i else None)
        for i in range(100)
    ]
    chosen = refinement.choose_masked(records, 10, 2, seed=3)
    assert len({record.name for record in chosen}) == 10
    assert all(record.mask and record.classes for record in chosen)
    assert sum(record.classes == (1,) for record in chosen) == 5
    assert chosen == refinement.choose_masked(records, 10, 2, seed=3)
    assert chosen != refinement.choose_masked(records, 10, 2, seed=4)
    assert refinement.choose_masked(records, 0, 2, seed=3) == []
    with pytest.raises(ValueError, match="masks of 80 defective training images, got 79. Lower"):
        refinement.choose_masked(records, 80, 2, seed=3)


def test_masks_become_targets_of_every_network_and_are_told(planted, tmp_path, monkeypatch):
    trained_on = []

    def remember(records, prior_dir, num_classes, *_):
        trained_on.append([record.name for record in records])
        targets = {r.name: refinement.read_prior(prior_dir, r, num_classes)[0] for r in records}
        for name in masked:
            np.testing.assert_array_equal(targets[name], planted.truths[name])
        return torch.nn.Identity()

    masked = [r.name for r in refinement.choose_masked(planted.records, 3, 2, seed=0)]
    monkeypatch.setattr(refinement, "train_student", remember)
    settings = replace(TINY, masks=3)
    generator = refinement.prepare(settings, planted.prior, planted.data, tmp_path, CPU, 0)

    for names in trained_on:
        share = sum(name in masked for name in names) / len(names)
        assert 0.15 < share < 0.45  # a quarter, in whole repeats
        others = [name for name in names if name not in masked]
        assert len(others) == len(set(others))
    assert generator.facts["masked"] == sorted(masked)
    assert "made with 3 pixel masks: no longer image labels alone" in generator.lines
    record = next(r for r in planted.records if r.name == masked[0])
    own = generator.make_map(record, refinement.read_image(record.image))
    np.testing.assert_array_equal(own, planted.truths[masked[0]])


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, [0.8] * 4), (0.5, [0.4, 0.8, 0.8, 0.8]), (1.0, [0.2, 0.4, 0.6, 0.8])],
)
def test_robustness_grows_over_a_share_of_the_steps(
    planted, tmp_path, monkeypatch, share, expected
):
    used = []

    def remember(logits, *_, robustness, **__):
        used.append(robustness)
        return logits.mean()

    monkeypatch.setattr(refinement, "partial_label_loss", remember)
    settings = replace(TINY, steps=4, robustness=0.8, robust_after=share, folds=1)
    refinement.prepare(settings, planted.prior, planted.data, tmp_path, CPU, 0)
    assert used == pytest.approx(expected)


def test_no_mask_is_opened_without_being_asked_for(planted, tmp_path, monkeypatch):
    monkeypatch.setattr(refinement, "train_student", lambda *_: torch.nn.Identity())
    monkeypatch.setattr(refinement, "read_truth", None)
    generator = refinement.prepare(TINY, planted.prior, planted.data, tmp_path, CPU, 0)
    assert "masked" not in generator.facts


def test_unknown_pixels_of_a_mask_stay_unknown(tmp_path):
    write_mask(tmp_path / "m.png", np.array([[0, 1, 255, 2]], np.uint8))
    record = Record("m", tmp_path / "m.png", (0, 1), mask=tmp_path / "m.png")
    refinement.write_mask_as_prior(record, tmp_path, 3)
    maps = refinement.read_prior(tmp_path, record, 3)
    np.testing.assert_array_equal(maps[:, 0], [[0, 1, 0.5, 0], [0, 0, 0.5, 1], [0, 0, 0, 0]])
    assert RefinementConfig().low < 0.5 < RefinementConfig().high


class Shares(torch.nn.Module):
    """A student that gives fixed probabilities, of the image's first channel where it is mirrored.

    Background and three classes; the classes lie in columns of their own.
    """

    def __init__(self, of_columns: list[list[float]]):
        super().__init__()
        self.of_columns = torch.tensor(of_columns).log()  # (columns, 4)

    def forward(self, image, features):
        column = image[:, 0].round().long()  # (B, H, W)
        return self.of_columns[column].permute(0, 3, 1, 2)


def test_a_faint_class_of_the_label_is_not_lost_beside_a_plain_one():
    # Columns: surface, plain class 0, faint class 1. Against the background: .9 / (.9 + .05) for
    # class 0 and .35 / (.35 + .6) = .368 for class 1.
    student = Shares([[0.97, 0.01, 0.01, 0.01], [0.05, 0.9, 0.01, 0.04], [0.6, 0.01, 0.35, 0.04]])
    image = torch.zeros(3, 10, 10)
    image[:, :, 2:4], image[:, :, 6:8] = 1, 2

    def maps(classes):
        return refinement.foreground([student], image, None, classes, (10, 10), None)[0]

    both = maps((0, 1))
    assert both[:, 2:4].min() > 0.99 and both[:, 6:8].min() > 0.99
    assert both[:, 4].max() < 0.04  # .01 / .98, scaled by 1 / .368
    # Never scaled by more than 1 / LEAST_LEVEL: class 2 is nowhere above .04 / .09 or .0625.
    least = refinement.LEAST_LEVEL
    assert maps((2,))[:, 6].max().item() == pytest.approx(0.0625 / max(0.04 / 0.09, least))
    # Without a label nothing is scaled.
    assert maps(())[:, 6].max().item() == pytest.approx(0.4, abs=1e-5)
