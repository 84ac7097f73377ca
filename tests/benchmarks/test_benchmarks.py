"""Both sides of each benchmark give one result; no time is looked at."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks import __main__ as command
from benchmarks import contrast, measuring, training
from benchmarks.measuring import Measured, Row, measure
from benchmarks.rows import ROWS

CPU = torch.device("cpu")
TINY = ("vit_tiny_patch16_224", (32, 32))


@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if row.tolerance])
def test_both_sides_give_the_same(name, monkeypatch):
    monkeypatch.setattr(training, "BACKEND", "eager")  # the graph is captured, not compiled
    row = ROWS[name]
    found, expected = (np.asarray(make(True, "cpu")()) for make in (row.ours, row.other))
    assert found.any()
    np.testing.assert_allclose(found, expected, rtol=0, atol=row.tolerance)


def test_what_does_not_give_the_same_is_known():
    assert [name for name, row in ROWS.items() if not row.tolerance] == ["contrast", "training"]


@pytest.mark.parametrize("loss", [contrast.ours, contrast.straightforward])
def test_both_losses_run_forward_and_backward(loss):
    torch.manual_seed(0)
    batch = contrast.make_batch(contrast.SMALL, "cpu")
    total = loss(batch, contrast.SMALL)
    total.backward()
    gradient = batch["embedding"].grad
    assert total.ndim == 0
    assert torch.isfinite(total) and total > 0
    assert torch.isfinite(gradient).all() and gradient.any()


def test_both_losses_estimate_the_same_number():
    """Anchors and negatives are drawn at random: with many of them the means are alike."""
    problem = contrast.Problem(3, batch_size=6, width=8, grid=4, size=16, num_samples=200)
    batch = contrast.make_batch(problem, "cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        values = [of(batch, problem).item() for of in (contrast.ours, contrast.straightforward)]
    assert values[0] == pytest.approx(values[1], rel=0.01)


def test_every_class_of_the_batch_has_valid_and_hard_pixels():
    problem = contrast.Problem(3, batch_size=6, width=8, grid=4, size=16, num_samples=4)
    batch = contrast.make_batch(problem, "cpu")
    assert batch["labels"].sum(dim=0).min() > 0
    confidence, label = torch.cat((1 - batch["saliency"], batch["cams"]), dim=1).max(dim=1)
    for k in range(4):
        of_class = confidence[label == k]
        assert (of_class >= contrast.VALID_THRESHOLD).any()
        assert (of_class < contrast.HARD_THRESHOLD).any()


@pytest.mark.parametrize("build", [training.stac_step, training.plain_step])
def test_both_trainings_take_a_step(build):
    batch = training.make_batch(2, TINY[1])
    torch.manual_seed(0)
    model, loss = build(*TINY, CPU)
    total = loss(batch)
    total.backward()
    assert total.ndim == 0 and torch.isfinite(total)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert sum(bool(gradient.any()) for gradient in gradients) > 100  # of 12 blocks
    step = training.step_of(build, True, "cpu")
    assert step() != step()  # the weights have moved


def test_the_plain_loss_is_that_of_the_image_labels_alone():
    batch = training.make_batch(2, TINY[1])
    torch.manual_seed(0)
    model, loss = training.plain_step(*TINY, CPU)
    model.eval()
    expected = F.multilabel_soft_margin_loss(model(batch["image"]), batch["label"])
    assert torch.equal(loss(batch), expected)
    assert torch.equal(loss(batch | {"map": 1 - batch["map"]}), expected)


def test_the_own_loss_is_guided_by_the_maps():
    batch = training.make_batch(2, TINY[1])
    values = []
    for maps in (batch["map"], 1 - batch["map"]):
        torch.manual_seed(0)
        _, loss = training.stac_step(*TINY, CPU)
        values.append(loss(batch | {"map": maps}).item())
    assert values[0] != values[1]


def test_sides_are_run_in_turn_in_processes_of_their_own():
    found = measure("pamr", ROWS, "cpu", pairs=1)
    assert found.lowest == found.speedup == found.highest == found.seconds[1] / found.seconds[0]
    assert min(found.seconds) > 0
    assert min(found.megabytes) >= 0  # too little to see where the libraries took more


def test_the_command_prints_its_table_and_writes_its_rows(tmp_path, capsys, monkeypatch):
    found = Measured(2.0, 1.5, 2.25, 0.25, (0.5, 1.0), (10.0, 40.0))
    monkeypatch.setattr(command, "measure", lambda *_: found)
    command.main(["--rows", "pamr", "loading", "--json", str(tmp_path / "rows.json")])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert lines[2] == (
        "| pamr | 2.00 | 1.50 to 2.25 | 2.00 | 0.25 | 0.34 | 500 ms, 10 MB | 1000 ms, 40 MB |"
    )
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["row"], row["speedup"], row["memory"]) for row in rows] == [
        ("pamr", 2.0, 0.25),
        ("loading", 2.0, 0.25),
    ]


def test_rows_of_the_cpu_are_left_out_on_a_gpu(capsys, monkeypatch):
    monkeypatch.setattr(command, "measure", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    command.main(["--rows", "loading", "--device", "cuda"])
    assert "| loading |" not in capsys.readouterr().out


def test_a_side_that_ends_is_an_error(monkeypatch):
    def fail(small: bool, device: str):
        raise OSError("no disk")

    broken = Row("work", "against", fail, fail, 1.0)
    monkeypatch.setattr(measuring, "_serve", serve_broken)
    with pytest.raises(RuntimeError, match="a side has ended"):
        measure("broken", {"broken": broken}, "cpu")


def serve_broken(connection, *_) -> None:
    connection.close()
