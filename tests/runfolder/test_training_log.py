"""log.jsonl, one schema for both trainings."""

import json
import subprocess
import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from configs.command_line import ROOT
from runfolder.training_log import NUM_PICTURES, TrainingLog, read_training_log

LINE = {"epoch": 1, "step": 18, "lr": 0.001, "train": {"total": 1.5, "token": 0.25}, "seconds": 3.2}


def strict(line: str) -> dict:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(line, parse_constant=refuse)


def test_each_epoch_is_a_line_with_its_validation_where_there_is_one(tmp_path, capsys):
    log = TrainingLog(tmp_path, num_steps=36, first_epoch=1)
    log.write(LINE)
    log.write({**LINE, "epoch": 2, "step": 36, "val": {"total": 1.25, "map": 87.5}})
    log.close({})

    first, second = map(strict, (tmp_path / "log.jsonl").read_text().splitlines())
    assert first == LINE
    assert second["val"] == {"total": 1.25, "map": 87.5}
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "epoch 1, step 18 of 36: total 1.500, token 0.250 (3 s)"
    assert printed[2] == "  validation: total 1.250, map 87.500"
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_value_that_is_no_number_is_null(tmp_path, value):
    log = TrainingLog(tmp_path, num_steps=36, first_epoch=1)
    log.write({**LINE, "val": {"total": 1.25, "map": value}})
    log.close({})

    (line,) = map(strict, (tmp_path / "log.jsonl").read_text().splitlines())
    assert line["val"] == {"total": 1.25, "map": None}


def test_a_new_training_begins_a_new_log_and_a_resumed_one_goes_on(tmp_path):
    for first_epoch, expected in ((1, [1]), (2, [1, 2]), (1, [1])):
        log = TrainingLog(tmp_path, num_steps=36, first_epoch=first_epoch)
        log.write({**LINE, "epoch": first_epoch})
        log.close({})
        lines = (tmp_path / "log.jsonl").read_text().splitlines()
        assert [strict(line)["epoch"] for line in lines] == expected


def test_an_epoch_that_is_trained_again_has_one_line(tmp_path):
    # Killed after the line and before the checkpoint, in the middle of the next line.
    log = TrainingLog(tmp_path, num_steps=36, first_epoch=1)
    for epoch in (1, 2):
        log.write({**LINE, "epoch": epoch})
    log.close({})
    path = tmp_path / "log.jsonl"
    path.write_text(path.read_text() + '{"epoch": 3, "st')
    log = TrainingLog(tmp_path, num_steps=36, first_epoch=2)
    log.write({**LINE, "epoch": 2, "seconds": 9.0})
    log.close({})
    lines = [strict(line) for line in path.read_text().splitlines()]
    assert [(line["epoch"], line["seconds"]) for line in lines] == [(1, 3.2), (2, 9.0)]


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "log.jsonl").write_text("[]\n")
    for read in (read_training_log, lambda path: TrainingLog(path.parent, 36, first_epoch=2)):
        with pytest.raises(
            ValueError, match=r"log\.jsonl, line 1: expected an epoch of a training, got \[\]"
        ):
            read(tmp_path / "log.jsonl")


def test_a_log_is_read_as_it_was_written(tmp_path):
    path = tmp_path / "log.jsonl"
    assert read_training_log(path) == []
    log = TrainingLog(tmp_path, num_steps=36, first_epoch=1)
    log.write(LINE)
    log.write({**LINE, "epoch": 2, "val": {"map": float("nan")}})
    log.close({})
    first, second = read_training_log(path)
    assert first == {**LINE, "val": {}}
    assert (second["epoch"], second["val"]) == (2, {"map": None})


@pytest.mark.parametrize("value", ["[1]", '{"total": "high"}', "1"])
def test_a_line_whose_figures_are_no_numbers_is_named(tmp_path, value):
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps(LINE) + "\n" + json.dumps(LINE)[:-1] + f', "val": {value}}}\n')
    with pytest.raises(ValueError, match=r"log\.jsonl, line 2: expected an epoch of a training"):
        read_training_log(path)


@pytest.mark.parametrize(
    ("num_epochs", "expected"),
    [
        (1, [1]),
        (3, [1, 2, 3]),
        (5, [1, 2, 3, 4, 5]),
        (12, [3, 5, 8, 10, 12]),
        (80, [16, 32, 48, 64, 80]),
    ],
)
def test_pictures_are_spread_over_a_training_and_end_it(tmp_path, num_epochs, expected):
    num_batches = 7
    log = TrainingLog(tmp_path, num_steps=num_batches * num_epochs, first_epoch=1)
    ends = {epoch: num_batches * epoch for epoch in range(1, num_epochs + 1)}
    assert [e for e, step in ends.items() if log.wants_picture(step, num_batches)] == expected
    assert len(expected) <= NUM_PICTURES
    log.num_steps -= 3  # the last epoch is cut short
    assert log.wants_picture(log.num_steps, num_batches)


def test_the_table_of_trainings_has_settings_and_the_names_of_curves(tmp_path):
    log = TrainingLog(tmp_path, num_steps=18, first_epoch=1)
    log.write({**LINE, "val": {"miou": 50.0}})
    log.close({"train.lr": 0.5, "cam.types": ["fused"], "data.source": "mtd"})

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    parts = {
        tag: HParamsPluginData.FromString(content)
        for tag, content in events.PluginTagToContent("hparams").items()
    }
    settings = parts["_hparams_/session_start_info"].session_start_info.hparams
    assert settings["train.lr"].number_value == 0.5
    assert settings["cam.types"].string_value == "['fused']"
    assert set(settings) == {"train.lr", "cam.types", "data.source"}
    metrics = parts["_hparams_/experiment"].experiment.metric_infos
    tags = {one.name.tag for one in metrics}
    assert (
        tags == {"total/train", "token/train", "miou/val"} == set(events.Tags()["scalars"]) - {"lr"}
    )
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1  # no folder of its own


def test_a_log_is_read_without_pytorch():
    code = "import sys, runfolder.doubts, report; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
