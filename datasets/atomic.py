"""Files that are whole or not there: written under a temporary name, then renamed."""

import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

# With the number of the process; never longer than names may be.
TEMPORARY = re.compile(r"\.stac-(\d+)-[0-9a-f]{8}\.tmp(\.\w{1,11})?")


def write_atomically(path: Path, save: Callable[[Path], Any]) -> None:
    """Write a file under a temporary name in its folder and rename it; folders are made.

    Args:
        path: of the file.
        save: writes to the path that it is given.

    Raises:
        OSError: the disk is full, the folder may not be written to, ...; names the file.
    """
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save(temporary)
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # PyTorch tells of a full disk in words of its own
        reason = getattr(error, "strerror", None) or f"a write that failed ({type(error).__name__})"
        raise OSError(
            f"{path}: expected to write it, got: {reason}. Free space or correct the permissions, "
            "and give the same command again."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """Return under which name a file is written, beside its own, until it is whole."""
    number = zlib.crc32(os.fsencode(path.name))
    suffix = path.suffix if re.fullmatch(r"\.\w{1,11}", path.suffix) else ""
    return path.with_name(f".stac-{os.getpid()}-{number:08x}.tmp{suffix}")


def remove_temporaries(folder: Path) -> None:
    """Remove what killed programs have left half-written in a folder."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if (found := TEMPORARY.fullmatch(path.name)) and not _is_running(int(found[1])):
            path.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True
