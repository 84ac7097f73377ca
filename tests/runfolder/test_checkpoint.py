import os
import pickle
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn

from configs import Config, LossConfig, TrainConfig, to_dict
from runfolder.checkpoint import (
    Checkpoint,
    check_classes,
    load_checkpoint,
    restore_training,
    save_checkpoint,
    save_weights,
    training_state,
)

FACTS = {"class_names": ["dent"], "mean": [0.5] * 3, "std": [0.5] * 3, "progress": {"step": 3}}
CONTENT = FACTS | {
    "model": OrderedDict(weight=torch.arange(6.0).view(2, 3), half=torch.ones(2).half()),
    "config": {"train": {"image_size": [224, 192], "lr": 5e-3}, "loss": {"token": 0.5}},
    "class_names": ["inclusion", "patches"],
    "best": None,
}


def load(path: Path) -> Checkpoint:
    return load_checkpoint(path, "train_stac.py")


def refused(path: Path):
    expected = rf"{path.name}: expected a checkpoint of train_stac\.py, got"
    return pytest.raises(ValueError, match=expected)


class CreatesFile:
    """Unpickling it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_checkpoint_round_trip(tmp_path):
    save_checkpoint(tmp_path / "new/a.pt", CONTENT)
    found = load(tmp_path / "new/a.pt")
    assert found.path == tmp_path / "new/a.pt"
    assert found.config.train == TrainConfig(image_size=(224, 192))
    assert found.config.loss == LossConfig(token=0.5)
    model, expected = found.pop("model"), dict(CONTENT)
    for name, tensor in expected.pop("model").items():
        assert torch.equal(model.pop(name), tensor)
    assert not model
    assert found == expected
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.pt"]


def test_failing_save_leaves_nothing_and_keeps_the_old_file(tmp_path):
    unwritable = {**CONTENT, "code": lambda: None}
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        save_checkpoint(tmp_path / "a.pt", unwritable)
    assert not list(tmp_path.iterdir())
    save_checkpoint(tmp_path / "a.pt", CONTENT)
    with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
        save_checkpoint(tmp_path / "a.pt", unwritable)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
    assert load(tmp_path / "a.pt")["class_names"] == CONTENT["class_names"]


def test_save_stopped_half_way_keeps_the_old_file(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "a.pt", CONTENT)
    old = (tmp_path / "a.pt").read_bytes()

    def stop(content: dict, path: Path) -> None:
        Path(path).write_bytes(b"half")
        assert (tmp_path / "a.pt").read_bytes() == old  # nobody sees the half
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path / "a.pt", CONTENT)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]
    assert (tmp_path / "a.pt").read_bytes() == old


@pytest.mark.parametrize("zipped", [True, False])
def test_code_inside_a_checkpoint_is_refused_without_running(tmp_path, zipped):
    trap = CreatesFile(tmp_path / "ran")
    content = {"model": {}, "trap": trap}
    torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    with refused(tmp_path / "a.pt") as error:
        load(tmp_path / "a.pt")
    assert not (tmp_path / "ran").exists()
    # PyTorch's own message explains how to run it all the same.
    assert "weights_only" not in str(error.value) and "can still be loaded" not in str(error.value)


def test_bare_pickle_is_refused_without_running(tmp_path):
    (tmp_path / "a.pt").write_bytes(
        pickle.dumps({"model": CreatesFile(tmp_path / "ran")}, protocol=2)
    )
    with refused(tmp_path / "a.pt"):
        load(tmp_path / "a.pt")
    assert not (tmp_path / "ran").exists()


def test_truncated_checkpoint_is_refused(tmp_path):
    save_checkpoint(tmp_path / "a.pt", CONTENT)
    whole = (tmp_path / "a.pt").read_bytes()
    for length in (0, 1, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / "a.pt").write_bytes(whole[:length])
        with refused(tmp_path / "a.pt"):
            load(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "data",
    [
        b"hello world\n",
        b'{"model": 1}',
        b"\x89PNG\r\n",
        b"\x00" * 99,
        b"\x80\x02X\x03\x00\x00\x00\xff",
    ],
    ids=["text", "json", "png", "zeros", "bad utf-8"],
)
def test_other_files_are_refused(tmp_path, data):
    (tmp_path / "a.pt").write_bytes(data)
    with refused(tmp_path / "a.pt") as error:
        load(tmp_path / "a.pt")
    assert "\n" not in str(error.value)


def test_missing_checkpoint_says_what_makes_it(tmp_path):
    for path in (tmp_path / "a.pt", tmp_path):
        expected = rf"{path.name}: expected a checkpoint, found none\. Run train_stac\.py first"
        with pytest.raises(FileNotFoundError, match=expected):
            load(path)


@pytest.mark.parametrize(
    "content", [{"state_dict": {}}, [1, 2], torch.zeros(2), {"model": torch.zeros(2), "config": {}}]
)
def test_torch_files_of_others_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"expected a checkpoint of train_stac\.py, got another"):
        load(tmp_path / "a.pt")


def train(model: nn.Module, optimizer: torch.optim.Optimizer, epochs: range) -> None:
    for epoch in epochs:
        torch.manual_seed(epoch)
        for _ in range(3):
            model(torch.randn(4, 3)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()


def start() -> tuple[nn.Module, torch.optim.Optimizer, torch.amp.GradScaler]:
    torch.manual_seed(9)
    model = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Dropout(0.5))
    optimizer = torch.optim.AdamW([{"params": list(model.parameters()), "lr_scale": 2.0}], lr=0.01)
    return model, optimizer, torch.amp.GradScaler("cpu", init_scale=8.0)


def test_resumed_training_equals_training_in_one_go(tmp_path):
    whole, optimizer, _ = start()
    train(whole, optimizer, range(4))

    stopped, optimizer, scaler = start()
    train(stopped, optimizer, range(2))
    scaler.load_state_dict(scaler.state_dict() | {"scale": 2.0})
    progress = {"epoch": 2, "step": 6, "best_loss": float("inf")}
    state = training_state(stopped, optimizer, scaler, progress)
    save_checkpoint(tmp_path / "a.pt", {**FACTS, **state, "config": {}})

    resumed, optimizer, scaler = start()
    found = restore_training(load(tmp_path / "a.pt"), resumed, optimizer, scaler)
    assert found == progress
    assert scaler.get_scale() == 2.0
    assert optimizer.param_groups[0]["lr_scale"] == 2.0
    train(resumed, optimizer, range(2, 4))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor)


def test_checkpoint_of_another_network_is_refused():
    model, optimizer, scaler = start()
    state = training_state(nn.Linear(3, 5), optimizer, scaler, {"epoch": 1})
    with pytest.raises(RuntimeError, match="Missing key"):
        restore_training(state, model, optimizer, scaler)


def test_averaged_weights_are_the_model_and_the_trained_ones_are_kept(tmp_path):
    model, optimizer, scaler = start()
    average = ModelEmaV3(model, decay=0.5)
    train(model, optimizer, range(1))
    average.update(model)
    state = training_state(model, optimizer, scaler, {"epoch": 1}, average)
    save_checkpoint(tmp_path / "a.pt", {**FACTS, **state, "config": {}})

    other, optimizer, scaler = start()
    other_average = ModelEmaV3(other, decay=0.5)
    restore_training(load(tmp_path / "a.pt"), other, optimizer, scaler, other_average)
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)
    for name, tensor in average.module.state_dict().items():
        assert torch.equal(other_average.module.state_dict()[name], tensor)
        assert torch.equal(load(tmp_path / "a.pt")["model"][name], tensor)


def test_a_checkpoint_of_an_earlier_version_names_the_settings_that_are_gone(tmp_path):
    old = to_dict(Config())
    old["train"] |= {"split_block": 4, "flip": True}
    save_checkpoint(tmp_path / "a.pt", {**CONTENT, "config": old})
    save_weights(tmp_path / "b.safetensors", {}, {"config": old})
    for name in ("a.pt", "b.safetensors"):
        expected = (
            rf"{name}: expected settings of this version, got 2 of an earlier one: "
            r"train\.split_block \(train\.frozen_blocks\); train\.flip \(always on\)\."
        )
        with pytest.raises(ValueError, match=expected):
            load(tmp_path / name)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_file_and_name(tmp_path, value):
    weights = {"count": torch.tensor(3), "head.weight": torch.ones(2, 3).half()}
    weights |= {"head.bias": torch.zeros(4)}
    weights["head.weight"][1, 2] = value
    save_checkpoint(tmp_path / "a.pt", {**CONTENT, "model": weights})
    save_weights(tmp_path / "b.safetensors", weights, {"config": {}})
    for name in ("a.pt", "b.safetensors"):
        expected = rf"{name}: expected finite weights, got NaN or infinity in head\.weight\. Make"
        with pytest.raises(ValueError, match=expected):
            load(tmp_path / name)


def test_other_classes_or_another_order_of_them_are_refused(tmp_path):
    save_checkpoint(tmp_path / "a.pt", CONTENT)
    checkpoint = load(tmp_path / "a.pt")
    check_classes(checkpoint, ("inclusion", "patches"))
    expected = r"a\.pt: expected the classes patches, inclusion, got inclusion, patches\. Train on"
    with pytest.raises(ValueError, match=expected):
        check_classes(checkpoint, ("patches", "inclusion"))


def test_a_tensor_in_place_of_a_setting_is_an_error_of_one_line(tmp_path):
    config = {"train": {"lr": torch.full((2, 2), torch.inf)}}
    save_checkpoint(tmp_path / "a.pt", CONTENT | {"config": config})
    with pytest.raises(ValueError, match=r"a\.pt: .*train\.lr") as caught:
        load(tmp_path / "a.pt")
    assert "\n" not in str(caught.value)


def test_weights_and_facts_come_back_from_two_files(tmp_path):
    weights = {"head.weight": torch.arange(6.0).view(2, 3).T}  # a view, not contiguous
    facts = FACTS | {"config": {"train": {"lr": 0.1}}}
    save_weights(tmp_path / "new/model.safetensors", weights, facts)

    found = load(tmp_path / "new/model.safetensors")
    assert torch.equal(found.pop("model")["head.weight"], weights["head.weight"])
    assert found == facts
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        "model.json",
        "model.safetensors",
    ]


def test_weights_without_their_facts_are_refused(tmp_path):
    save_weights(tmp_path / "model.safetensors", {"a": torch.zeros(1)}, {})
    (tmp_path / "model.json").write_text("{")
    with pytest.raises(ValueError, match=r"model\.safetensors: expected a checkpoint of train"):
        load(tmp_path / "model.safetensors")
    (tmp_path / "model.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.json: expected the facts beside the wei"):
        load(tmp_path / "model.safetensors")


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_weights_may_be_read_by_whom_the_umask_lets(tmp_path, umask):
    before = os.umask(umask)
    try:
        save_weights(tmp_path / "model.safetensors", {"a": torch.zeros(1)}, {})
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("model.json", "model.safetensors"), 0o666 & ~umask)


@pytest.mark.parametrize(
    ("changes", "got"),
    [
        ({"class_names": 3}, "expected class_names of a checkpoint"),
        ({"class_names": [3]}, r"expected class_names\.0 of a checkpoint"),
        ({"mean": [0.5]}, "expected mean of a checkpoint"),
        ({"mean": [0.5, float("nan"), 0.5]}, r"expected mean\.1 of a checkpoint"),
        ({"mean": [10**30] * 3}, r"expected mean\.0 of a checkpoint"),
        ({"std": [0.5, 0.5, 0]}, r"expected std\.2 of a checkpoint"),
        ({"std": [float("inf")] * 3}, r"expected std\.0 of a checkpoint"),
        ({"progress": None}, "expected progress of a checkpoint"),
        ({"config": None}, "expected a checkpoint of train_stac.py, got another file"),
        ({"config": {"train": 3}}, "train"),
        ({"config": {"train": {"backbone": 3}}}, "backbone"),
        ({"config": {"train": {"backbone": "hf-hub:someone/else"}}}, "the name of an architecture"),
        ({"config": {"segmentation": {"encoder": "../../x"}}}, "the name of an architecture"),
    ],
)
def test_facts_that_are_none_are_named(tmp_path, changes, got):
    save_checkpoint(tmp_path / "a.pt", CONTENT | changes)
    with pytest.raises(ValueError, match=rf"a\.pt: .*{got}") as raised:
        load(tmp_path / "a.pt")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("missing", ["class_names", "config", "mean", "std", "progress", "model"])
def test_a_checkpoint_without_a_fact_is_refused(tmp_path, missing):
    save_checkpoint(tmp_path / "a.pt", {k: v for k, v in CONTENT.items() if k != missing})
    with pytest.raises(ValueError, match=r"a\.pt: expected"):
        load(tmp_path / "a.pt")
