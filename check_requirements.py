"""Say which lines of requirements files the running Python does not satisfy.

    python check_requirements.py requirements.txt requirements-dev.txt

Reads installed versions only and imports none of the packages, so it takes a moment. Exit code 0
if all are satisfied; else 1, with one line on standard output.
"""

import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

try:
    from packaging.requirements import Requirement
except ImportError:
    print("lacks packaging")
    sys.exit(1)

# Distributions that bring the same module as the one asked for.
EQUIVALENTS = {
    "opencv-python-headless": (
        "opencv-python",
        "opencv-contrib-python",
        "opencv-contrib-python-headless",
    ),
    "onnxruntime": ("onnxruntime-gpu",),
}


def unmet(requirements_path: Path) -> list[str]:
    """Return the requirements that are missing or of a wrong version, each with what is there."""
    lines = requirements_path.read_text(encoding="utf-8").splitlines()
    wanted = [line.split("#")[0].strip() for line in lines]
    installed = [(line, _installed(Requirement(line))) for line in wanted if line]
    return [
        f"{line} (has {there or 'none'})"
        for line, there in installed
        if not there or not Requirement(line).specifier.contains(there, prereleases=True)
    ]


def _installed(requirement: Requirement) -> str | None:
    for name in (requirement.name, *EQUIVALENTS.get(requirement.name, ())):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


if __name__ == "__main__":
    missing = [line for path in sys.argv[1:] for line in unmet(Path(path))]
    if missing:
        print("lacks " + ", ".join(missing))
        sys.exit(1)
