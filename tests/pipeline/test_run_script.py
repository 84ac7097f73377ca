"""run_STAC.sh itself: it sets up, and hands its words to pipeline.py."""

import os
import subprocess
import sys

import pytest

from configs.command_line import ROOT

# Stands for Python: passes every check of the set-up and notes how pipeline.py is called.
STUB = """#!/usr/bin/env bash
case "$*" in "-c "* | *check_requirements.py*) exit 0 ;; esac
printf '%s\\n' "$PWD" "$@" >"$CALLED"
exit "$CODE"
"""


@pytest.fixture
def run_script(tmp_path):
    python = tmp_path / "python3"
    python.write_text(STUB)
    python.chmod(0o755)

    def run(*arguments, code=0, python=python):
        environment = {"PYTHON": str(python), "CALLED": f"{tmp_path}/called", "CODE": str(code)}
        return subprocess.run(
            ["bash", ROOT / "run_STAC.sh", *arguments],
            cwd=tmp_path,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    return run


def test_help_names_every_option(run_script, tmp_path):
    for arguments in (["--help"], ["mine.toml", "-h"]):
        run = run_script(*arguments)
        assert run.returncode == 0
        words = ("[CONFIG ...]", "--set", "--out", "--device", "--restart", "data.root", "PYTHON=")
        for word in words:
            assert word in run.stdout
    assert not (tmp_path / "called").exists()  # nothing is set up or run


def test_the_script_hands_its_words_and_the_callers_folder_to_the_pipeline(run_script, tmp_path):
    run = run_script("mine.toml", "--set", "data.root=/a b", "--restart")

    assert run.returncode == 0, run.stderr
    words = ["pipeline.py", "--called-from", str(tmp_path)]
    words += ["mine.toml", "--set", "data.root=/a b", "--restart"]
    assert (tmp_path / "called").read_text().splitlines() == [str(ROOT), *words]


def test_the_script_ends_with_the_exit_code_of_the_pipeline(run_script):
    for code in (0, 7, 130):
        assert run_script(code=code).returncode == code


def test_an_error_of_the_pipeline_is_one_line_and_exit_code_1(run_script):
    run = run_script("none.toml", python=sys.executable)

    assert run.returncode == 1
    assert run.stderr.startswith("error: ")
    assert "none.toml: expected a config file." in run.stderr
    assert run.stderr.count("\n") == 1
