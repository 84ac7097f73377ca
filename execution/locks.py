"""One call at a time writes to a folder."""

import fcntl
from pathlib import Path
from typing import TextIO


def taken(path: Path) -> TextIO | None:
    """Lock a file, made if missing, until it is closed; None if another process has locked it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("w")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


_held: dict[Path, TextIO] = {}  # of this process, which gives them back when it ends


def hold(folder: Path) -> None:
    """Keep other calls from writing to a folder, as long as this process runs.

    The lock is a file beside the folder; it stays there when nobody holds it.

    Raises:
        ValueError: another call writes there.
    """
    path = folder.resolve().with_name(f".{folder.name}.lock")
    if path in _held:
        return
    if (file := taken(path)) is None:
        raise ValueError(
            f"{folder}: expected to write here alone, got another call that does. Wait until it "
            "has ended, or give another --out."
        )
    _held[path] = file
