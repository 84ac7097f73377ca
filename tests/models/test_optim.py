import math

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from configs import TrainConfig
from execution import ranks
from models.optim import (
    epoch_batches,
    finite_or_raise,
    mean_terms,
    optimizer_step,
    parameter_groups,
    seed_of,
    set_lr,
    steps_per_epoch,
    validation_batches,
    warmup_cosine,
)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 3, 4))
        self.layer = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)
        self.head = nn.Conv2d(4, 2, 3)

    def no_weight_decay(self) -> set[str]:
        return {"token"}


def grouped(model: nn.Module, head_lr_scale: float) -> dict[str, tuple[float, float]]:
    """Return weight decay and rate scale of each parameter, by its name."""
    scales = {True: head_lr_scale, False: 1.0}
    groups = parameter_groups(model, 0.05, lambda name: scales[name.startswith("head.")])
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [
        (names[id(parameter)], (group["weight_decay"], group["lr_scale"]))
        for group in groups
        for parameter in group["params"]
    ]
    assert len(found) == len(dict(found))  # each once
    return dict(found)


def test_biases_norms_and_embeddings_are_not_decayed():
    assert grouped(Network(), 10.0) == {
        "token": (0.0, 1.0),
        "layer.weight": (0.05, 1.0),
        "layer.bias": (0.0, 1.0),
        "norm.weight": (0.0, 1.0),
        "norm.bias": (0.0, 1.0),
        "head.weight": (0.05, 10.0),
        "head.bias": (0.0, 10.0),
    }


def test_groups_of_equal_settings_are_one():
    groups = parameter_groups(Network(), 0.05)
    assert sorted(group["weight_decay"] for group in groups) == [0.0, 0.05]


def test_a_model_that_names_no_embedding_decays_every_matrix():
    model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.BatchNorm2d(2))
    assert grouped(model, 1.0) == {
        "0.weight": (0.05, 1.0),
        "0.bias": (0.0, 1.0),
        "1.weight": (0.0, 1.0),
        "1.bias": (0.0, 1.0),
    }


def test_decay_moves_only_the_decayed():
    # With zero gradient AdamW multiplies by 1 - lr * decay alone: 1 - 0.1 * 0.5.
    model = Network()
    for parameter in model.parameters():
        nn.init.ones_(parameter)
        parameter.grad = torch.zeros_like(parameter)
    groups = parameter_groups(model, 0.5)
    torch.optim.AdamW(groups, lr=0.1).step()
    assert torch.allclose(model.layer.weight, torch.tensor(0.95))
    for kept in (model.token, model.layer.bias, model.norm.weight, model.frozen):
        assert torch.equal(kept, torch.ones_like(kept))


def test_schedule_by_hand():
    # 4 warm-up steps from 0.1 to 1.0 in steps of 0.225; then steps 4..10 are one half cosine,
    # 0.1 + 0.9 * (1 + cos(pi * k / 6)) / 2 at k = 0..6, whose cosines are 1, sqrt(3)/2, 1/2, 0, ...
    root = math.sqrt(3) / 2
    expected = [0.1, 0.325, 0.55, 0.775, 1.0]
    expected += [0.1 + 0.45 * (1 + cosine) for cosine in (root, 0.5, 0.0, -0.5, -root, -1.0)]
    rates = [warmup_cosine(step, 11, 4, lr=1.0, min_lr=0.1) for step in range(11)]
    assert rates == pytest.approx(expected)


def test_schedule_without_warmup_starts_at_its_peak():
    rates = [warmup_cosine(step, 3, 0, lr=1.0, min_lr=0.0) for step in range(3)]
    assert rates == pytest.approx([1.0, 0.5, 0.0])
    assert warmup_cosine(0, 1, 0, lr=1.0, min_lr=0.0) == 1.0


def test_schedule_cut_short_is_still_warming_up():
    # 2 of 8 warm-up steps: 0, 1/8
    assert [warmup_cosine(step, 2, 8, lr=1.0, min_lr=0.0) for step in (0, 1)] == [0.0, 0.125]


def test_schedule_never_rises_again_after_its_last_step():
    assert warmup_cosine(50, 11, 4, lr=1.0, min_lr=0.1) == pytest.approx(0.1)


def test_every_group_gets_the_rate_times_its_scale():
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [first], "lr_scale": 10.0}, {"params": [second]}], lr=1)
    for rate in (0.2, 0.3):  # not 10 times the last rate
        set_lr(optimizer, rate)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([10 * rate, rate])


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_loss_that_is_no_number_names_epoch_step_and_terms(value):
    expected = (
        rf"loss: expected finite numbers, got total 0\.5, contrast {value:g} in epoch 3, step 41\. "
        r"Lower the learning rate or set amp to off\."
    )
    with pytest.raises(RuntimeError, match=expected):
        finite_or_raise({"total": 0.5, "contrast": value}, 3, 41)


def test_finite_loss_passes():
    finite_or_raise({"total": -1e30}, 1, 1)


def test_the_last_batch_may_be_smaller():
    assert [steps_per_epoch(n, 4) for n in (1, 4, 5, 8)] == [1, 1, 2, 2]


def test_a_last_batch_below_the_least_is_left_out():
    assert [steps_per_epoch(n, 4, least_batch=2) for n in (2, 4, 5, 6, 9)] == [1, 1, 1, 2, 2]
    expected = r"training images: expected at least 2 outside the validation part, got 1\. Add im"
    with pytest.raises(ValueError, match=expected):
        steps_per_epoch(1, 4, least_batch=2)
    with pytest.raises(ValueError, match="expected at least 1 outside the validation part, got 0"):
        steps_per_epoch(0, 4)


class Indices(Dataset):
    """Items are their own index."""

    def __init__(self, length: int):
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> int:
        return index


def batches(length: int, epoch: int, seed: int = 0, least: int = 1, workers: int = 0) -> list[list]:
    settings = TrainConfig(batch_size=4, seed=seed)
    cpu = torch.device("cpu")
    loader = epoch_batches(Indices(length), settings, workers, cpu, epoch, least)
    return [batch.tolist() for batch in loader]


@pytest.mark.parametrize("least", [1, 2])
@pytest.mark.parametrize("length", [2, 4, 5, 6, 9])
def test_an_epoch_has_the_batches_that_were_counted_and_no_image_twice(length, least):
    drawn = batches(length, 0, least=least)
    assert len(drawn) == steps_per_epoch(length, 4, least)
    images = [index for batch in drawn for index in batch]
    left_out = length % 4 if length % 4 < least else 0
    assert len(set(images)) == len(images) == length - left_out
    assert min(map(len, drawn)) >= least


@pytest.mark.parametrize("least", [1, 2])
def test_ranks_share_each_batch_in_the_order_of_one_process(least, monkeypatch):
    whole = batches(13, epoch=3)
    of_ranks = []
    for rank in (0, 1):
        monkeypatch.setattr(ranks, "_world", lambda rank=rank: (rank, 2))
        of_ranks.append(batches(13, epoch=3, least=least))
        assert len(of_ranks[-1]) == steps_per_epoch(13, 4, least)
        assert all(len(part) >= least for part in of_ranks[-1])
    joined = [sum(parts, []) for parts in zip(*of_ranks, strict=True)]
    assert joined == whole[:3]  # the last one has one image, too few for two ranks


def test_validation_gives_each_batch_to_one_rank(monkeypatch):
    found = {}
    for rank in range(3):
        monkeypatch.setattr(ranks, "_world", lambda rank=rank: (rank, 3))
        found |= {n: b.tolist() for n, b in validation_batches(Indices(9), 2, 0)}
    assert found == {0: [0, 1], 1: [2, 3], 2: [4, 5], 3: [6, 7], 4: [8]}


def test_a_batch_too_small_for_all_ranks_is_refused(monkeypatch):
    monkeypatch.setattr(ranks, "_world", lambda: (0, 3))
    expected = "batch_size: expected 6 or more, 2 for each of 3 processes, got 4"
    with pytest.raises(ValueError, match=expected):
        steps_per_epoch(100, 4, least_batch=2)


def test_the_order_of_an_epoch_depends_on_seed_and_epoch_alone():
    torch.manual_seed(1)
    first = batches(12, epoch=3, seed=5)
    torch.manual_seed(2)
    assert batches(12, epoch=3, seed=5) == batches(12, epoch=3, seed=5, workers=1) == first
    assert batches(12, epoch=4, seed=5) != first
    assert batches(12, epoch=3, seed=6) != first


def test_epochs_of_neighbouring_seeds_share_no_seed():
    seeds = [seed_of(seed, epoch) for seed in range(4) for epoch in range(1000)]
    assert len(set(seeds)) == len(seeds)


def test_the_step_clips_the_gradient_and_clears_it():
    model = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for clip_norm, expected in ((1.0, [-0.6, -0.8]), (0.0, [-3.6, -4.8])):
        model.weight.grad = torch.tensor([[3.0, 4.0]])  # its norm is 5
        optimizer_step(model, optimizer, scaler, clip_norm)
        assert model.weight.flatten().tolist() == pytest.approx(expected, abs=1e-5)
        assert model.weight.grad is None


def test_terms_are_averaged_over_rows():
    assert mean_terms([{"a": 1.0, "b": 0.0}, {"a": 2.0, "b": 3.0}]) == {"a": 1.5, "b": 1.5}
    assert mean_terms(iter([])) == {}
