"""Files are whole or not there, and what killed programs leave is removed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from datasets import atomic


def test_what_killed_programs_left_is_removed_and_nothing_else(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True
    )
    ended = int(done.stdout)
    own = atomic.temporary_name(tmp_path / "a.png")
    left = own.with_name(own.name.replace(str(os.getpid()), str(ended)))
    others = [tmp_path / name for name in (".hidden", "a.tmp", ".stac-1.tmp", "a.png")]
    for path in (own, left, *others):
        path.touch()
    atomic.remove_temporaries(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {p.name for p in (own, *others)}
    atomic.remove_temporaries(tmp_path / "none")


@pytest.mark.parametrize("name", ["a.png", "a" * 250 + ".png", "a." + "b" * 240, "ä" * 120])
def test_a_temporary_name_is_short_and_keeps_the_ending(tmp_path, name):
    temporary = atomic.temporary_name(tmp_path / name)
    assert len(temporary.name.encode()) < 60
    assert atomic.TEMPORARY.fullmatch(temporary.name)
    assert temporary.suffix == (".png" if name.endswith(".png") else ".tmp")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos"),
            "RuntimeError",
        ),
    ],
)
def test_a_write_that_fails_names_the_file_and_leaves_the_old_one(tmp_path, error, reason):
    path = tmp_path / "a.pt"
    path.write_text("old")

    def save(to: Path) -> None:
        to.write_text("half")
        raise error

    with pytest.raises(
        OSError, match=rf"a\.pt: expected to write it, got: .*{reason}.* Free space"
    ):
        atomic.write_atomically(path, save)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
