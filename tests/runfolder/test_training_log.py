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


def test_an_epoch_that_is_trained_again_has_one_line(tmp_path):
    # Killed after the line and before the checkpoint, in the middle of the next line.
    log = TrainingLog(tmp_path, num_steps=36, first_epoch=1)
    for epoch in (1, 2):
        log.write({**LINE, "epoch": epoch})
    log.close()
    path = tmp_path / "log.jsonl"
    path.write_text(path.read_text() + '{"epoch": 3, "st')
    log = TrainingLog(tmp_path, num_steps=36, first_epoch=2)
    log.write({**LINE, "epoch": 2, "seconds": 9.0})
    log.close()
    lines = [strict(line) for line in path.read_text().splitlines()]
    assert [(line["epoch"], line["seconds"]) for line in lines] == [(1, 3.2), (2, 9.0)]


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "log.jsonl").write_text("[]\n")
    with pytest.raises(ValueError, match=r"log\.jsonl: expected an epoch in each line, got \[\]"):
        TrainingLog(tmp_path, num_steps=36, first_epoch=2)
