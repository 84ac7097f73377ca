"""The points that are measured, how they are shown, and that a step runs on one rank and on two."""

import json

from benchmarks import growth
from benchmarks.growth import Point


def test_one_thing_changes_at_a_time(monkeypatch):
    asked = []
    monkeypatch.setattr(
        growth, "training_cost", lambda _, values: asked.append(values) or (1.0, 2.0)
    )

    class Here:
        def __init__(self, *_, **__): ...

        def __enter__(self):
            return self

        def __exit__(self, *_): ...

        def submit(self, function, *arguments):
            result = function(*arguments)
            return type("Done", (), {"result": lambda _: result})()

    monkeypatch.setattr(growth, "ProcessPoolExecutor", Here)
    point = growth.measure("classes", 20, "cpu")
    assert point == Point("classes", 20, 1.0, 2.0)
    assert asked == [{**growth.BASE, "classes": 20}]
    assert all(growth.BASE[axis] in growth.AXES[axis] for axis in growth.BASE)


def test_the_command_prints_writes_and_draws_its_points(tmp_path, capsys, monkeypatch):
    def measured(axis, value, device):
        return Point(axis, value, value / 100, 10.0 * value)

    monkeypatch.setattr(growth, "measure", measured)
    files = [tmp_path / "points.json", tmp_path / "points.png"]
    flags = ["--axes", "classes", "batch", "--json", str(files[0]), "--plot", str(files[1])]
    growth.main(flags)
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "| classes | 1 | 0.010 | 10 |"
    assert len(lines) == 2 + len(growth.AXES["classes"]) + len(growth.AXES["batch"])
    assert json.loads(files[0].read_text())[0] == {
        "axis": "classes", "value": 1, "seconds": 0.01, "megabytes": 10.0,
    }  # fmt: skip
    assert files[1].read_bytes().startswith(b"\x89PNG")


def test_training_and_evaluation_cost_something():
    values = {"image size": 32, "classes": 2, "batch": 2}
    assert growth.training_cost("cpu", values)[0] > 0
    assert growth.evaluation_cost(3)[0] > 0


def test_a_step_is_measured_on_two_ranks():
    seconds, megabytes = growth.in_ranks(2, "cpu")
    assert seconds > 0 and megabytes > 0
