"""The comparison of second stages: its table by hand, and what it takes from a run."""

import pytest

from benchmarks import second_stage


def test_table_shows_mean_and_deviation_of_the_seeds():
    table = second_stage.table({"ce": [40, 42, 47], "ema": [50]}, "test").splitlines()
    assert table[0] == "| variant | seeds | mIoU, test |"
    assert table[2:] == ["| ce | 3 | 43.00 ± 3.61 |", "| ema | 1 | 50.00 ± 0.00 |"]


def test_labels_and_pseudo_labels_are_those_of_the_run(tmp_path):
    run, own = tmp_path / "run", tmp_path / "own"
    (run / "pseudo_labels").mkdir(parents=True)
    (run / "pseudo_labels/a.png").write_text("mask")
    (run / "labels.csv").write_text("name,classes\n")
    for _ in range(2):  # again, as after a stop
        second_stage.take_over(run, own)
    assert (own / "labels.csv").read_text() == "name,classes\n"
    assert (own / "pseudo_labels/a.png").read_text() == "mask"


def test_a_run_without_pseudo_labels_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a run with all its pseudo labels"):
        second_stage.main(["--run", str(tmp_path), "--out", str(tmp_path / "out")])
