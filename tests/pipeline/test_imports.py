"""Who may import whom: library code forms layers, scripts wire it, nothing imports a script.

Tests and benchmarks stand outside: they call scripts to check and to measure them.
"""

import ast
import subprocess
import sys
from pathlib import Path

import datasets

ROOT = Path(__file__).resolve().parents[2]
MAY_IMPORT = {
    "configs": set(),
    "datasets": set(),
    "inspection": {"datasets", "metrics"},
    "localisation": {"configs", "datasets", "models"},
    "losses": set(),
    "metrics": {"datasets", "seeds"},
    "models": set(),
    "results": {"configs"},
    "saliency": {"datasets", "metrics", "models", "seeds", "segmentation"},
    "seeds": {"datasets"},
    "segmentation": {"configs", "datasets", "metrics", "models"},
    "trained": {"configs", "models"},
}
SCRIPTS_IN_PACKAGES = (
    ("datasets", "__main__"),
    ("datasets", "inspect"),
    ("segmentation", "train"),
    ("segmentation", "infer"),
)


def test_every_import_follows_the_direction_rule():
    assert violations(ROOT) == []


def test_every_package_is_covered_by_the_rule():
    packages = {path.parent.name for path in ROOT.glob("*/*.py")} - {"tests", "benchmarks"}

    modules = {"inspection", "localisation", "metrics", "results", "seeds", "trained"}
    assert packages | modules == set(MAY_IMPORT)


def test_planted_violations_are_found(tmp_path):
    planted = {
        "models/vit.py": "import timm\nfrom datasets.record import Record",
        "losses/stac.py": "def late():\n    from losses.token import t\n    import models.cam",
        "configs/loading.py": "import tomllib\nimport numpy as np",
        "datasets/checks.py": "import configs\nfrom datasets import inspect",
        "datasets/inspect.py": "import inspect\nimport configs\nimport models.cam",
        "segmentation/networks.py": "from segmentation import train\nimport saliency.contrast",
        "saliency/contrast.py": "from ..datasets import files\nfrom . import normal\nimport losses",
        "train_stac.py": "from make_cams import folders\nimport scoring.confusion as metrics, models.vit",
        "make_cams.py": "import torch\nimport evaluation",
        "metrics.py": "from datasets import record\nimport models.cam",
        "evaluation.py": "from datasets import files\nimport segmentation.infer",
    }
    for name, source in planted.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(source + "\n")

    assert violations(tmp_path) == [
        "configs/loading.py:2 imports numpy",
        "datasets/checks.py:1 imports configs",
        "datasets/checks.py:2 imports datasets.inspect",
        "datasets/inspect.py:3 imports models.cam",
        "evaluation.py:2 imports segmentation.infer",
        "losses/stac.py:3 imports models.cam",
        "make_cams.py:2 imports evaluation",
        "metrics.py:2 imports models.cam",
        "models/vit.py:2 imports datasets.record.Record",
        "saliency/contrast.py:3 imports losses",
        "segmentation/networks.py:1 imports segmentation.train",
        "segmentation/networks.py:2 imports saliency.contrast",
        "train_stac.py:1 imports make_cams.folders",
    ]


def test_datasets_is_the_package_of_this_repository():
    assert Path(datasets.__file__).parent == ROOT / "datasets"


def test_datasets_is_ours_for_a_module_run_from_the_root():
    code = "import datasets; print(datasets.__file__)"
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout

    assert Path(printed.strip()).parent == ROOT / "datasets"


def violations(root: Path) -> list[str]:
    """Return "file:line imports module" for each forbidden import of library code and scripts."""
    scripts = [(path.stem,) for path in root.glob("*.py") if path.stem not in MAY_IMPORT]
    scripts += SCRIPTS_IN_PACKAGES
    found = []
    for path in sorted([*root.glob("*.py"), *_package_files(root)]):
        name = path.relative_to(root).as_posix()
        place = tuple(name.removesuffix(".py").split("/"))
        package = place[0]
        may_import = MAY_IMPORT.get(package, set())
        if place in SCRIPTS_IN_PACKAGES:
            may_import = may_import | {"configs"}
        for line, module in imported_names(path, root):
            parts = tuple(module.split("."))
            allowed = not any(parts[: len(script)] == script for script in scripts)
            if package == "configs":
                allowed &= parts[0] == "configs" or parts[0] in sys.stdlib_module_names
            elif package in MAY_IMPORT and parts[0] in set(MAY_IMPORT) - {package}:
                allowed &= parts[0] in may_import
            if not allowed:
                found.append(f"{name}:{line} imports {module}")
    return found


def imported_names(path: Path, root: Path) -> list[tuple[int, str]]:
    """Return (line, absolute dotted name) of all that a file imports, functions included."""
    package = path.relative_to(root).parent.parts
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = (*above, *([node.module] if node.module else []))
            names += [(node.lineno, ".".join((*module, alias.name))) for alias in node.names]
    return sorted(names)


def _package_files(root: Path) -> list[Path]:
    return [path for package in MAY_IMPORT for path in root.glob(f"{package}/**/*.py")]
