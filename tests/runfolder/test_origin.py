"""A result says which code made it, and whether that code was the commit's."""

import subprocess
from pathlib import Path

import pytest

import runfolder.results
from runfolder.results import origin


@pytest.fixture
def repository(tmp_path: Path, monkeypatch) -> Path:
    """Make a repository with one commit of one file, which stands for this one."""
    (tmp_path / "code.py").write_text("a = 1\n")
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    for words in (("init", "-q"), ("add", "code.py"), (*identity, "commit", "-q", "-m", "one")):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(runfolder.results, "__file__", str(tmp_path / "results.py"))
    return tmp_path


def test_a_commit_is_named_with_what_differs_from_it(repository):
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True, check=True
    ).stdout
    clean = origin()
    assert clean["dirty"] is False
    assert len(clean["commit"]) >= 7 and head.startswith(clean["commit"])
    (repository / "notes.txt").write_text("not tracked\n")
    assert origin()["dirty"] is False
    (repository / "code.py").write_text("a = 2\n")
    assert origin()["dirty"] is True
    assert origin()["commit"] == clean["commit"]


def test_code_outside_a_repository_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(runfolder.results, "__file__", str(tmp_path / "results.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    about = origin()
    assert (about["commit"], about["dirty"]) == ("unknown", None)
