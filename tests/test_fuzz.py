"""Damaged files, a few hundred for each reader; python tests/fuzz --inputs 10000 gives many."""

import os
import subprocess
import sys

from configs.command_line import ROOT

INPUTS = 100


def test_no_reader_breaks_over_a_damaged_file(tmp_path):
    words = ["tests/fuzz", "--inputs", str(INPUTS), "--keep", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    head, _, *rows = done.stdout.splitlines()
    assert len(rows) >= 12
    for row in rows:
        clean, accepted, *bad = map(int, row.strip("|").split("|")[1:])
        assert clean + accepted == INPUTS
        assert clean  # something was damaged
        assert not any(bad)
    assert list(tmp_path.iterdir()) == []
