"""Python programs, each in a process of its own that need not load PyTorch again.

Loading PyTorch, torchvision and timm takes as long as many a stage of a small run. So a process
that has loaded them is copied, and its copy runs the program.
"""

import multiprocessing
import os
import runpy
import shutil
import sys
import tempfile
import warnings
from collections.abc import Sequence
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path


def load(modules: Sequence[str], device: str) -> None:
    """Import what `begin` shall not import again, unless a GPU may be used.

    CUDA does not work in the copy of a process that has looked for a GPU: there programs load all
    by themselves.

    Args:
        modules: names.
        device: of --device.
    """
    if device == "cpu" or not shutil.which("nvidia-smi"):
        for module in modules:
            import_module(module)


def begin(words: Sequence[str], folder: Path, output: int | None = None) -> BaseProcess:
    """Start Python with these words in a folder; its exit code is `.exitcode` after `.join()`.

    Args:
        words: of the command line, after python: a file or -m and a module, then its arguments.
        folder: that it runs in and imports from.
        output: descriptor of the file that takes what it prints; its errors are then lost.
    """
    arguments = (list(words), folder, output)
    process = multiprocessing.get_context("fork").Process(target=_run, args=arguments)
    sys.stdout.flush()
    with warnings.catch_warnings():
        # Python 3.12 warns of threads, which are those of NumPy here; it stops them before a fork.
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    return process


def printed(words: Sequence[str], folder: Path) -> str:
    """Return what a program prints; see `begin`."""
    with tempfile.TemporaryFile() as file:
        begin(words, folder, file.fileno()).join()
        file.seek(0)
        return file.read().decode(errors="replace")


def _run(words: list[str], folder: Path, output: int | None) -> None:
    """Become the program: here where PyTorch is loaded, else in a Python of its own."""
    os.chdir(folder)
    if output is not None:
        os.dup2(output, 1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
    if "torch" not in sys.modules:
        os.execv(sys.executable, [sys.executable, *words])
    sys.path[0] = str(folder)
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.modules.pop(words[1], None)  # it is executed anew, as __main__
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
