"""Both sides of each benchmark can be built and run; no time is looked at."""

import json

import pytest
import torch
import torch.nn.functional as F

from benchmarks import losses, measuring, training

CPU = torch.device("cpu")
TINY = ("vit_tiny_patch16_224", (32, 32))


@pytest.mark.parametrize("name", losses.IMPLEMENTATIONS)
def test_both_losses_run_forward_and_backward(name):
    torch.manual_seed(0)
    batch = losses.make_batch(losses.WARM_UP, "cpu")
    total = losses.IMPLEMENTATIONS[name](batch, losses.WARM_UP)
    total.backward()
    gradient = batch["embedding"].grad
    assert total.ndim == 0
    assert torch.isfinite(total) and total > 0
    assert torch.isfinite(gradient).all() and gradient.any()


def test_both_losses_estimate_the_same_number():
    """Anchors and negatives are drawn at random: with many of them the means are alike."""
    problem = losses.Problem(3, batch_size=6, width=8, grid=4, size=16, num_samples=200)
    batch = losses.make_batch(problem, "cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        values = [of(batch, problem).item() for of in losses.IMPLEMENTATIONS.values()]
    assert values[0] == pytest.approx(values[1], rel=0.01)


def test_every_class_of_the_batch_has_valid_and_hard_pixels():
    problem = losses.Problem(3, batch_size=6, width=8, grid=4, size=16, num_samples=4)
    batch = losses.make_batch(problem, "cpu")
    assert batch["labels"].sum(dim=0).min() > 0
    confidence, label = torch.cat((1 - batch["saliency"], batch["cams"]), dim=1).max(dim=1)
    for k in range(4):
        of_class = confidence[label == k]
        assert (of_class >= losses.VALID_THRESHOLD).any()
        assert (of_class < losses.HARD_THRESHOLD).any()


@pytest.mark.parametrize("name", training.STEP_OF)
def test_both_trainings_take_a_step(name):
    batch = training.make_batch(2, TINY[1])
    torch.manual_seed(0)
    model, loss = training.STEP_OF[name](*TINY, CPU)
    total = loss(batch)
    total.backward()
    assert total.ndim == 0 and torch.isfinite(total)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert sum(bool(gradient.any()) for gradient in gradients) > 100  # of 12 blocks
    training.train(name, TINY[0], 2, TINY[1], 1, "cpu")


def test_the_plain_loss_is_that_of_the_image_labels_alone():
    batch = training.make_batch(2, TINY[1])
    torch.manual_seed(0)
    model, loss = training.STEP_OF["plain"](*TINY, CPU)
    model.eval()
    expected = F.multilabel_soft_margin_loss(model(batch["image"]), batch["label"])
    assert torch.equal(loss(batch), expected)
    assert torch.equal(loss(batch | {"map": 1 - batch["map"]}), expected)


def test_the_own_loss_is_guided_by_the_maps():
    batch = training.make_batch(2, TINY[1])
    values = []
    for maps in (batch["map"], 1 - batch["map"]):
        torch.manual_seed(0)
        model, loss = training.STEP_OF["ours"](*TINY, CPU)
        values.append(loss(batch | {"map": maps}).item())
    assert values[0] != values[1]


def test_a_benchmark_prints_its_table_and_writes_its_rows(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    def rows_of(device):
        yield {"row": device, "ratio": 2.0}, f"{device} {measuring.Cost(1.25, 30.4)}"

    arguments = ["--json", str(tmp_path / "rows.json")]
    measuring.run_benchmark(arguments, "What it is.\n\nMore.", "heading", rows_of)
    assert capsys.readouterr().out.splitlines() == ["heading", "cpu    1.25 s    30 MB"]
    assert json.loads((tmp_path / "rows.json").read_text()) == [{"row": "cpu", "ratio": 2.0}]
