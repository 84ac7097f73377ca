"""Pictures and folders that a run goes on without, because they cannot be used.

`run_STAC.sh --skip-bad` writes their paths to skipped.csv of the run; then readers pass them
over (inference.preflight).
"""

import os
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

from datasets.files import read_csv, write_csv
from datasets.problems import Problem

SKIPPED_NAME = "skipped.csv"  # beside labels.csv
HEAD = ("path", "problem")


def read_skipped(path: Path) -> frozenset[Path]:
    """Return the paths of skipped.csv; none where it is not there.

    Raises:
        ValueError: not such a file.
    """
    if not path.is_file():
        return frozenset()
    return frozenset(Path(os.fsdecode(unquote_to_bytes(quoted))) for quoted, _ in _rows(path))


def add_skipped(path: Path, problems: Iterable[Problem]) -> None:
    """Add the paths of problems to skipped.csv, or begin it.

    Paths are quoted as in addresses, whatever bytes they hold.
    """
    rows = dict(_rows(path)) if path.is_file() else {}
    for problem in problems:
        text = " ".join(problem.text.split()).encode(errors="backslashreplace").decode()
        for skipped in problem.paths:
            rows.setdefault(quote(os.fsencode(skipped)), text)
    write_csv(path, [HEAD, *sorted(rows.items())])


def _rows(path: Path) -> list[tuple[str, str]]:
    head, *rows = [tuple(row) for row in read_csv(path)] or [()]
    if head != HEAD or any(len(row) != len(HEAD) for row in rows):
        raise ValueError(
            f"{path}: expected columns {', '.join(HEAD)}, got others. Delete the file and run "
            "bash run_STAC.sh --skip-bad again."
        )
    return rows
