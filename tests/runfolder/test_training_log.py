"""log.jsonl, one schema for both trainings."""

import json

import pytest

from runfolder.training_log import TrainingLog

LINE = {"epoch": 1, "step": 18, "lr": 0.001, "train": {"total": 1.5, "token": 0.25}, "seconds": 3.2}


def strict(line: str) -> dict:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(line, parse_constant=refuse)


def test_each_epoch_is_a_line_with_its_validation_where_there_is_one(tmp_path, capsys):
    log = TrainingLog(tmp_path, num_steps=36, first_epoch=1)
    log.write(LINE)
    log.write({**LINE, "epoch": 2, "step": 36, "val": {"total": 1.25, "map": 87.5}})
    log.close()

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
    log.close()

    (line,) = map(strict, (tmp_path / "log.jsonl").read_text().splitlines())
    assert line["val"] == {"total": 1.25, "map": None}


def test_a_new_training_begins_a_new_log_and_a_resumed_one_goes_on(tmp_path):
    for first_epoch, expected in ((1, [1]), (2, [1, 2]), (1, [1])):
        log = TrainingLog(tmp_path, num_steps=36, first_epoch=first_epoch)
        log.write({**LINE, "epoch": first_epoch})
        log.close()
        lines = (tmp_path / "log.jsonl").read_text().splitlines()
        assert [strict(line)["epoch"] for line in lines] == expected
