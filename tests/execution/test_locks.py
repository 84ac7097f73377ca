"""Two calls never write to one folder."""

import subprocess
import sys
import textwrap

import pytest

from configs.command_line import ROOT
from execution.locks import hold


def test_another_process_is_refused_until_the_first_one_ends(tmp_path):
    folder = tmp_path / "cams/pixel"
    script = f"""
        import sys
        from pathlib import Path
        from execution.locks import hold
        hold(Path({str(folder)!r}))
        print("held", flush=True)
        sys.stdin.read()
    """
    words = [sys.executable, "-c", textwrap.dedent(script)]
    first = subprocess.Popen(
        words, cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert first.stdout.readline() == "held\n"
    with pytest.raises(ValueError, match="pixel: expected to write here alone, got another call"):
        hold(folder)
    hold(folder.with_name("fused"))
    first.kill()
    first.wait()
    hold(folder)
    hold(folder)  # again, in this process
