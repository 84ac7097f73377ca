"""The size of files, functions, settings and lines."""

import ast
import subprocess
from pathlib import Path

from configs.__main__ import settings, settings_page
from configs.command_line import ROOT

MAX_FILE, MAX_FUNCTION, MAX_PARAMETERS = 350, 60, 6
MAX_ROOT_FILES, MAX_SETTINGS, MAX_LINE = 12, 100, 120
OUTSIDE = {"data", "shared", "tests", "weights"}
SOURCES = sorted(
    path
    for path in ROOT.glob("**/*.py")
    if not any(part in OUTSIDE or part.startswith(".") for part in path.relative_to(ROOT).parts)
)


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(path: Path) -> list[ast.FunctionDef]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = ast.FunctionDef | ast.AsyncFunctionDef
    return [node for node in ast.walk(tree) if isinstance(node, kinds)]


def num_parameters(function: ast.FunctionDef) -> int:
    arguments = function.args
    listed = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    listed += [one for one in (arguments.vararg, arguments.kwarg) if one]
    return sum(one.arg not in ("self", "cls") for one in listed)


def test_the_sources_of_every_package_are_looked_at():
    names = set(map(named, SOURCES))
    assert {"pipeline.py", "runfolder/run.py", "datasets/layouts/mtd.py"} <= names


def test_no_file_is_too_long():
    lengths = {named(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length > MAX_FILE} == {}


def test_no_function_is_too_long_but_main():
    lengths = {
        f"{named(path)}:{function.name}": function.end_lineno - function.lineno + 1
        for path in SOURCES
        for function in functions(path)
        if function.name != "main"
    }
    assert {name: length for name, length in lengths.items() if length > MAX_FUNCTION} == {}


def test_no_function_has_too_many_parameters():
    counts = {
        f"{named(path)}:{function.name}": num_parameters(function)
        for path in SOURCES
        if not named(path).startswith("losses/")
        for function in functions(path)
    }
    assert {name: count for name, count in counts.items() if count > MAX_PARAMETERS} == {}


def test_the_root_holds_few_files():
    assert len(list(ROOT.glob("*.py"))) <= MAX_ROOT_FILES


def test_there_are_few_settings():
    assert len(list(settings())) <= MAX_SETTINGS


def test_the_page_of_settings_is_that_of_the_schema():
    page = (ROOT / "docs/settings.md").read_text(encoding="utf-8")
    assert page == settings_page(), "run python -m configs --markdown >docs/settings.md"


def test_lines_of_the_documentation_fit_a_screen():
    too_long = [
        f"{named(path)}:{number}"
        for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if len(line) > MAX_LINE and not line.startswith("|")
    ]
    assert too_long == []


def test_git_ignores_no_source_but_the_folders_of_runs(tmp_path):
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    (tmp_path / ".gitignore").write_text((ROOT / ".gitignore").read_text())

    names = [*map(named, SOURCES), "tests/runfolder/test_run.py", "runs/sample/config.toml"]
    command = ["git", "check-ignore", "--no-index", "--stdin"]
    ignored = subprocess.run(
        command, cwd=tmp_path, input="\n".join(names), capture_output=True, text=True
    )
    assert ignored.stdout.split() == ["runs/sample/config.toml"]
