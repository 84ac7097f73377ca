"""The network of the learned refinement: its loss by hand, its inputs, its training, its maps."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from configs import RefinementConfig, SaliencyConfig
from datasets.files import Cam, write_cam, write_image
from datasets.record import Record
from saliency import student
from saliency.student import Student, StudentInputs, flipped, train_student

CPU = torch.device("cpu")
BACKBONE = SaliencyConfig(backbone="test_vit", weights="none")
SETTINGS = RefinementConfig(image_size=(32, 48), steps=3)


@pytest.fixture
def simple(monkeypatch) -> None:
    """Constants of the loss with which a calculation by hand is short."""
    for name, value in (("HIGH", 0.5), ("LOW", 0.25), ("ROBUSTNESS", 0.5)):
        monkeypatch.setattr(student, name, value)


def shares(*values: float) -> torch.Tensor:
    """Logits of one pixel whose softmax is `values`, (1, K + 1, 1, 1)."""
    return torch.tensor(values).log().view(1, -1, 1, 1)


def loss(logits: torch.Tensor, prior: list[float], label: list[float]) -> float:
    priors = torch.tensor(prior).view(1, -1, 1, 1)
    return student.partial_label_loss(logits, priors, torch.tensor([label])).item()


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
def test_partial_label_loss_by_hand(simple, prior, label, expected):
    assert loss(shares(0.51, 0.36, 0.13), prior, label) == pytest.approx(expected, abs=1e-5)


def test_robustness_near_zero_is_the_cross_entropy(simple, monkeypatch):
    monkeypatch.setattr(student, "ROBUSTNESS", 1e-4)
    # -log .36 = 1.021651
    assert loss(shares(0.51, 0.36, 0.13), [0.9, 0.0], [1, 1]) == pytest.approx(1.021651, abs=1e-3)


def test_loss_is_the_mean_over_known_pixels_alone():
    logits = torch.randn(2, 3, 3, 5, generator=torch.Generator().manual_seed(0))
    priors = torch.full((2, 2, 3, 5), 0.4)  # between LOW, 0.2, and HIGH, 0.6
    priors[0, 0, 1, 2], priors[1, :, 2, 4] = 0.8, 0.0
    total = student.partial_label_loss(logits, priors, torch.ones(2, 2))
    share = logits.double().softmax(1)
    terms = [(1 - p**0.7) / 0.7 for p in (share[0, 1, 1, 2].item(), share[1, 0, 2, 4].item())]
    assert total.item() == pytest.approx(sum(terms) / 2, rel=1e-5)


def test_extreme_logits_give_a_finite_loss_and_gradient():
    logits = torch.tensor([[[[1e4]], [[-1e4]]], [[[-1e4]], [[1e4]]]], requires_grad=True)
    priors = torch.tensor([[[[1.0]]], [[[0.0]]]])  # both contradicted
    total = student.partial_label_loss(logits, priors, torch.tensor([[1.0], [0.0]]))
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("size", [(32, 48), (37, 50)])
def test_logits_have_the_size_of_the_image_and_every_parameter_gets_a_gradient(size):
    torch.manual_seed(0)
    model = Student(6, 4)
    logits = model(torch.randn(2, 3, *size), torch.randn(2, 6, 3, 4))
    assert logits.shape == (2, 4, *size)
    logits.square().mean().backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    # A bias before a batch normalisation changes nothing.
    assert all(g is not None and (g.any() or n.endswith("bias")) for n, g in gradients.items())


def test_image_map_and_features_flip_together_each_image_on_its_own():
    column = torch.arange(5.0).repeat(3, 1) + 10 * torch.arange(3.0)[:, None]
    images = column.expand(64, 3, 3, 5)
    image, features = flipped([images, images[:, :2]], [0, 1, 2, 3] * 16)
    assert torch.equal(image[:, :2], features)
    corners = set(image[:, 0, 0, 0].tolist())
    assert corners == {0.0, 4.0, 20.0, 24.0}  # all four ways


@pytest.fixture
def inputs(tmp_path: Path, monkeypatch) -> StudentInputs:
    monkeypatch.setattr(student, "FEATURE_SIZE", 64)
    torch.manual_seed(0)
    return StudentInputs(BACKBONE, 2, tmp_path / "features", tmp_path / "priors", CPU)


@pytest.fixture
def records(tmp_path: Path) -> list[Record]:
    """Three images of other sizes, one of them defect-free, with priors of their classes."""
    rng, records = np.random.default_rng(0), []
    for name, size, classes in (("a", (37, 50), (1,)), ("b", (61, 40), ()), ("c", (40, 40), (0,))):
        image = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
        write_image(tmp_path / f"{name}.png", image)
        maps = rng.random((len(classes), *size), np.float32)
        cam = Cam(maps, np.array(classes, np.int64), np.zeros(2, np.float32))
        write_cam(tmp_path / f"priors/{name}.npz", cam)
        records.append(Record(name, tmp_path / f"{name}.png", classes))
    return records


def test_features_lie_on_one_grid_and_are_read_from_files_once_they_are_there(inputs, records):
    direct = [inputs.features(record) for record in records]
    assert len({feature.shape for feature in direct}) == 1
    assert direct[0].shape[1:] == inputs.grid
    inputs.keep_features(records)
    inputs.encode = None
    inputs.keep_features(records)
    for record, feature in zip(records, direct, strict=True):
        kept = inputs.features(record)
        assert kept.dtype == torch.float32
        torch.testing.assert_close(kept, feature, atol=1e-3, rtol=1e-3)  # half precision


def test_priors_of_absent_classes_are_zero(inputs, records):
    maps = [inputs.priors(record) for record in records]
    assert [m.shape for m in maps] == [(2, 37, 50), (2, 61, 40), (2, 40, 40)]
    assert [m.any(axis=(1, 2)).tolist() for m in maps] == [
        [False, True],
        [False, False],
        [True, False],
    ]


def test_training_depends_on_its_seed_alone(inputs, records):
    def weights(seed: int) -> list[torch.Tensor]:
        model = train_student(records, 2, SETTINGS, inputs, CPU, seed)
        assert not model.training
        return list(model.state_dict().values())

    first = weights(3)
    torch.manual_seed(99)
    assert all(torch.equal(a, b) for a, b in zip(first, weights(3), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, weights(4), strict=True))


@pytest.mark.parametrize(("batch_size", "sizes"), [(2, [2] * 5), (16, [3] * 5)])
def test_training_takes_its_steps_in_batches_of_no_more_than_there_are_images(
    inputs, records, monkeypatch, batch_size, sizes
):
    seen = []
    original = student.partial_label_loss

    def count(logits, priors, labels):
        seen.append(len(logits))
        assert logits.shape[1:] == (3, 32, 48)
        assert priors.shape == (len(logits), 2, 32, 48)
        # A class that an image does not carry has no prior in it.
        assert not (priors.amax(dim=(2, 3)) > labels).any()
        return original(logits, priors, labels)

    monkeypatch.setattr(student, "partial_label_loss", count)
    monkeypatch.setattr(student, "BATCH_SIZE", batch_size)
    train_student(records, 2, replace(SETTINGS, steps=5), inputs, CPU, 0)
    assert seen == sizes


class Shares(torch.nn.Module):
    """A student that gives fixed probabilities, by the first channel of the image, flipped too.

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
    model = Shares([[0.97, 0.01, 0.01, 0.01], [0.05, 0.9, 0.01, 0.04], [0.6, 0.01, 0.35, 0.04]])
    image = torch.zeros(3, 10, 10)
    image[:, :, 2:4], image[:, :, 6:8] = 1, 2

    def maps(classes):
        return student.foreground([model], image, torch.zeros(1, 2, 2), classes, (10, 10))[0]

    both = maps((0, 1))
    assert both[:, 2:4].min() > 0.99 and both[:, 6:8].min() > 0.99
    assert both[:, 4].max() < 0.04  # .01 / .98, scaled by 1 / .368
    # Never scaled by more than 1 / LEAST_LEVEL: class 2 is nowhere above .04 / .09 or .0625.
    least = student.LEAST_LEVEL
    assert maps((2,))[:, 6].max().item() == pytest.approx(0.0625 / max(0.04 / 0.09, least))
    # Without a label nothing is scaled.
    assert maps(())[:, 6].max().item() == pytest.approx(0.4, abs=1e-5)


def test_a_mirrored_image_gives_the_mirrored_map():
    torch.manual_seed(0)
    model = Student(4, 3).eval()
    image, features = torch.randn(3, 32, 48), torch.randn(4, 4, 6)
    plain = student.foreground([model], image, features, (0,), (40, 60))
    assert plain.shape == (1, 40, 60)
    assert 0 <= plain.min() <= plain.max() <= 1
    for axes in student.MIRRORS:
        flipped = student.foreground([model], image.flip(axes), features.flip(axes), (0,), (40, 60))
        torch.testing.assert_close(flipped.flip(axes), plain)
