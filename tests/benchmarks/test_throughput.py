"""Absolute figures: what is counted is right; no time is looked at."""

import json
import subprocess

import pytest

from benchmarks import throughput
from configs.command_line import ROOT


def test_multiplications_are_those_of_the_paper():
    counted = throughput.multiplications((224, 224))
    assert counted / 1e9 == pytest.approx(4.29, rel=0.1)


def test_each_work_has_a_row_for_each_batch_size(tmp_path, capsys, monkeypatch):
    def rows(device, batch_sizes, size, peak, repeats):
        assert (device, size, repeats) == ("cpu", (224, 224), 1)
        for batch_size in batch_sizes:
            yield dict(zip(throughput.HEAD, ("CAMs", batch_size, 283.0, 156.0, None), strict=True))

    monkeypatch.setattr(throughput, "rows", rows)
    path = tmp_path / "rows.json"
    flags = ["--device", "cpu", "--batch-sizes", "2", "4", "--repeats", "1", "--json", str(path)]
    throughput.main(flags)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("22.63 M parameters, 4.4")  # 0.95 M of them are the projection
    assert lines[-2:] == ["| CAMs | 2 | 283.0 | 156.0 | - |", "| CAMs | 4 | 283.0 | 156.0 | - |"]
    assert [row["batch"] for row in json.loads(path.read_text())] == [2, 4]


def test_training_and_cams_run():
    found = list(throughput.rows("cpu", [1], (224, 224), 1e12, 1))
    assert [row["work"] for row in found] == ["training", "CAMs"]
    assert all(row["images/s"] > 0 for row in found)


def test_the_gpu_day_says_how_it_is_called():
    done = subprocess.run(
        ["bash", "studies/gpu_day.sh", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "usage: bash studies/gpu_day.sh DATA OUT" in done.stdout
