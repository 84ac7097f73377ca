"""A bar on a terminal, lines in a log file; nothing that takes no time says anything."""

import io
import time

import pytest

from execution import progress, ranks
from execution.progress import steps_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def lines_often(monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY", 0.05)


def waited_for(count: int, seconds: float = 0.02):
    for number in range(count):
        time.sleep(seconds)
        yield number


def test_a_log_file_shows_done_total_rate_and_what_is_left_on_lines_of_their_own(
    lines_often, capsys
):
    done = list(progress.progress(waited_for(20), "CAMs", 20))

    lines = capsys.readouterr().err.splitlines()
    assert done == list(range(20))
    assert len(lines) >= 3
    for line in lines:
        assert line.startswith("  CAMs: ")
        assert " of 20, " in line
        assert " images/s, " in line
        assert line.endswith(" left")
    counts = [int(line.split()[1]) for line in lines]
    assert counts == sorted(set(counts))


def test_a_log_file_shows_a_line_a_minute_and_no_more(capsys):
    list(progress.progress(waited_for(5), "CAMs", 5))

    assert progress.LINE_EVERY == 60
    assert capsys.readouterr().err == ""


def test_a_training_counts_the_steps_of_earlier_calls_and_shows_its_loss(lines_often, capsys):
    bar = steps_bar("training", 20, done=10)
    for _ in waited_for(10):
        bar.set_postfix({"total": "0.5"}, refresh=False)
        bar.update()
    bar.close()

    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert all(int(line.split()[1]) > 10 for line in lines)
    assert all(" of 20, " in line and line.endswith(", total=0.5") for line in lines)


def test_one_process_of_a_call_shows_its_progress(lines_often, capsys, monkeypatch):
    monkeypatch.setattr(ranks, "_world", lambda: (1, 2))
    assert list(progress.progress(waited_for(10), "CAMs", 10)) == list(range(10))
    assert capsys.readouterr().err == ""


def test_a_terminal_has_a_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)

    list(progress.progress(range(3), "maps"))

    assert "\r" in terminal.getvalue()
    assert "3/3" in terminal.getvalue()
