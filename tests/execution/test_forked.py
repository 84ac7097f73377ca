"""Programs in copies of a process do what they do when Python is started with their words."""

import signal
import sys

import pytest

from execution import forked

PROGRAM = """
import os, sys
import beside
print(__name__, os.getcwd(), *sys.argv[1:], "torch" in sys.modules, beside.NUMBER)
print(beside.NUMBER, file=sys.stderr)
what = sys.argv[1]
if what == "text": sys.exit("error: a line")
if what == "number": sys.exit(3)
if what == "killed": os.kill(os.getpid(), 9)
"""


@pytest.fixture(params=[True, False], ids=["here", "anew"])
def is_loaded(request, monkeypatch):
    """Let PyTorch be there, or not."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    if request.param:
        monkeypatch.setitem(sys.modules, "torch", None)
    return request.param


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "beside.py").write_text("NUMBER = 7")
    return tmp_path


@pytest.mark.parametrize(
    ("what", "code"), [("well", 0), ("text", 1), ("number", 3), ("killed", -signal.SIGKILL)]
)
@pytest.mark.parametrize("name", [["program.py"], ["-m", "program"]])
def test_a_program_ends_as_it_does_alone(is_loaded, folder, name, what, code):
    process = forked.begin([*name, what], folder)
    process.join()
    assert process.exitcode == code


@pytest.mark.parametrize("name", [["program.py"], ["-m", "program"]])
def test_a_program_gets_its_words_and_what_lies_beside_it(is_loaded, folder, name, capfd):
    told = forked.printed([*name, "well", "--flag"], folder)
    assert told == f"__main__ {folder} well --flag {is_loaded} 7\n"
    assert capfd.readouterr() == ("", "")  # its errors are lost
    forked.begin([*name, "text"], folder).join()
    out, err = capfd.readouterr()
    assert out == f"__main__ {folder} text {is_loaded} 7\n"
    assert err == "7\nerror: a line\n"


def test_what_was_loaded_before_is_run_without_a_warning(folder, monkeypatch, capfd):
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setitem(sys.modules, "torch", None)
    (folder / "package_of_forked").mkdir()
    (folder / "package_of_forked/stage.py").write_text("print(__name__)")
    forked.load(["package_of_forked.stage"], "cpu")
    assert capfd.readouterr().out == "package_of_forked.stage\n"
    forked.begin(["-m", "package_of_forked.stage"], folder).join()
    assert capfd.readouterr() == ("__main__\n", "")


def test_nothing_is_loaded_where_there_may_be_a_gpu(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("first_of_forked", "second_of_forked"):
        (tmp_path / f"{name}.py").touch()
    monkeypatch.setattr(forked.shutil, "which", lambda name: f"/bin/{name}")
    forked.load(["first_of_forked"], "auto")
    assert "first_of_forked" not in sys.modules
    forked.load(["second_of_forked"], "cpu")
    assert "second_of_forked" in sys.modules
