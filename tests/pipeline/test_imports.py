"""Who may import whom: library code forms layers, scripts wire it, nothing imports a script.

Tests, studies and benchmarks stand outside: they call scripts to check and to measure them.
"""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import datasets
from configs.command_line import ROOT

MAY_IMPORT = {
    "configs": set(),
    "released": set(),
    "execution": set(),
    "datasets": {"configs", "execution", "released"},
    "models": {"configs", "execution"},
    "losses": {"configs", "models"},
    "scoring": {"datasets", "execution", "released"},
    "saliency": {"configs", "datasets", "models", "execution"},
    "segmentation": {"configs", "datasets", "models", "execution"},
    "runfolder": {"configs", "datasets", "execution", "scoring"},
    "reporting": {"configs", "datasets", "execution", "runfolder", "scoring"},
    "inference": {
        "configs", "datasets", "models", "runfolder", "saliency", "scoring", "segmentation",
    },
    "exporting": {
        "configs", "datasets", "models", "runfolder", "scoring", "segmentation", "inference",
    },
    "demonstration": {"datasets", "inference", "reporting"},
    "pipeline": {"configs", "datasets", "execution", "runfolder"},
}  # fmt: skip
OUTSIDE = {"tests", "studies", "benchmarks"}
SHIPPED = "exporting/shipped"  # runs elsewhere, without this project
SCRIPTS_IN_PACKAGES = {  # and what they may import; None for everything but scripts
    "datasets/inspect.py": {"configs"},
    "segmentation/train.py": None,
    "segmentation/infer.py": None,
    "inference/expected.py": None,
    "inference/preflight.py": None,
}


def test_every_import_follows_the_direction_rule():
    assert violations(ROOT) == []


def test_every_package_is_covered_by_the_rule():
    packages = {path.parent.name for path in ROOT.glob("*/*.py")} - OUTSIDE

    assert packages | {"pipeline"} == set(MAY_IMPORT)
    assert all((ROOT / script).is_file() for script in SCRIPTS_IN_PACKAGES)


def test_the_rule_itself_has_no_circle():
    TopologicalSorter(MAY_IMPORT).prepare()  # raises CycleError


def test_what_is_shipped_needs_two_packages_beside_numpy():
    files = sorted((ROOT / SHIPPED).glob("*.py"))
    imported = {name.split(".")[0] for path in files for _, name in imported_names(path, ROOT)}

    others = imported - sys.stdlib_module_names - {path.stem for path in files}
    assert others == {"numpy", "onnxruntime", "PIL"}


def test_planted_violations_are_found(tmp_path):
    planted = {
        "configs/loading.py": "import tomllib, pydantic\nimport numpy as np\nimport runfolder.run",
        "datasets/checks.py": "import configs\nfrom datasets import inspect\nimport scoring.lines",
        "datasets/inspect.py": "import inspect\nimport configs\nimport models.cam",
        "evaluation.py": "from datasets import files\nimport segmentation.infer, pipeline",
        "inference/sheets.py": "from runfolder.run import Run\nimport pipeline, studies.oracle",
        "losses/stac.py": "def late():\n    from losses.token import t\n    import scoring.lines",
        "make_cams.py": "import torch\nimport evaluation\nfrom inference import localise",
        "models/vit.py": "import timm, configs\nfrom datasets.record import Record",
        "pipeline.py": "import runfolder.run, datasets.files\nimport models.cam\nimport make_cams",
        "released/arrays.py": "import numpy as np\nfrom configs import load",
        "runfolder/scores.py": "from scoring import lines\nfrom models import cam",
        "saliency/contrast.py": "from ..datasets import files\nfrom . import normal\nimport losses",
        "scoring/passes.py": "from released import arrays\nimport configs",
        "segmentation/networks.py": "from segmentation import train\nimport saliency.contrast",
        "segmentation/train.py": "import pipeline, inference.segment\nimport segmentation.infer",
        "studies/ablation.py": "import evaluation, train_stac",
        "train_stac.py": "from make_cams import folders\nimport scoring.confusion, models.vit",
    }
    plant(tmp_path, planted)

    assert violations(tmp_path) == [
        "configs/loading.py:2 imports numpy",
        "configs/loading.py:3 imports runfolder.run",
        "datasets/checks.py:2 imports datasets.inspect",
        "datasets/checks.py:3 imports scoring.lines",
        "datasets/inspect.py:3 imports models.cam",
        "evaluation.py:2 imports segmentation.infer",
        "inference/sheets.py:2 imports pipeline",
        "inference/sheets.py:2 imports studies.oracle",
        "losses/stac.py:3 imports scoring.lines",
        "make_cams.py:2 imports evaluation",
        "models/vit.py:2 imports datasets.record.Record",
        "pipeline.py:2 imports models.cam",
        "pipeline.py:3 imports make_cams",
        "released/arrays.py:2 imports configs.load",
        "runfolder/scores.py:2 imports models.cam",
        "saliency/contrast.py:3 imports losses",
        "scoring/passes.py:2 imports configs",
        "segmentation/networks.py:1 imports segmentation.train",
        "segmentation/networks.py:2 imports saliency.contrast",
        "segmentation/train.py:2 imports segmentation.infer",
        "train_stac.py:1 imports make_cams.folders",
    ]


def test_no_files_import_each_other_in_a_circle():
    assert circle(ROOT) == []


def test_a_planted_circle_is_found(tmp_path):
    planted = {
        "models/__init__.py": "",
        "models/a.py": "from models import b\nimport torch",
        "models/b.py": "import configs\nif configs:\n    from models.c import part",
        "models/c.py": "def late():\n    import models.a",
        "configs/__init__.py": "from configs.loading import load",
        "configs/loading.py": "import tomllib",
    }
    plant(tmp_path, planted)
    assert circle(tmp_path) == []

    (tmp_path / "models/c.py").write_text("from .a import x\n")
    (tmp_path / "configs/loading.py").write_text("import tomllib\n")
    assert sorted(set(circle(tmp_path))) == ["models/a.py", "models/b.py", "models/c.py"]

    (tmp_path / "models/c.py").write_text("")
    (tmp_path / "configs/loading.py").write_text("from configs import to_dict\n")
    assert sorted(set(circle(tmp_path))) == ["configs/__init__.py", "configs/loading.py"]


def test_datasets_is_the_package_of_this_repository():
    assert Path(datasets.__file__).parent == ROOT / "datasets"


def test_no_script_warns_when_it_is_loaded():
    scripts = [path.stem for path in ROOT.glob("*.py") if path.name != "check_requirements.py"]
    modules = [*scripts, *(name[:-3].replace("/", ".") for name in SCRIPTS_IN_PACKAGES)]
    code = f"import {', '.join(modules)}"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_datasets_is_ours_for_a_module_run_from_the_root():
    code = "import datasets; print(datasets.__file__)"
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout

    assert Path(printed.strip()).parent == ROOT / "datasets"


def plant(root: Path, files: dict[str, str]) -> None:
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(source + "\n")


def violations(root: Path) -> list[str]:
    """Return "file:line imports module" for each forbidden import of library code and scripts."""
    scripts = [(path.stem,) for path in root.glob("*.py") if path.stem not in MAY_IMPORT]
    scripts += [tuple(name.removesuffix(".py").split("/")) for name in SCRIPTS_IN_PACKAGES]
    wrong = []
    for path in source_files(root):
        name = path.relative_to(root).as_posix()
        package = name.removesuffix(".py").split("/")[0]
        may_import = SCRIPTS_IN_PACKAGES.get(name, MAY_IMPORT.get(package))
        for line, module in imported_names(path, root):
            parts = tuple(module.split("."))
            allowed = not any(parts[: len(script)] == script for script in scripts)
            if package == "configs":
                allowed &= parts[0] in {"configs", "pydantic", *sys.stdlib_module_names}
            elif may_import is not None and parts[0] in set(MAY_IMPORT) - {package}:
                allowed &= parts[0] in may_import
            allowed &= parts[0] not in OUTSIDE
            if not allowed:
                wrong.append(f"{name}:{line} imports {module}")
    return wrong


def circle(root: Path) -> list[str]:
    """Return files of which each imports the next one when it is loaded; none if there are none."""
    graph = {}
    for path in source_files(root):
        imported = [name for _, name in imported_names(path, root, late=False)]
        files = [file_of(name, root) for name in imported]
        graph[path.relative_to(root).as_posix()] = {f for f in files if f}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def file_of(module: str, root: Path) -> str | None:
    """Return the file of a dotted name, which may end with what the file defines."""
    parts = module.split(".")
    for end in range(len(parts), 0, -1):
        stem = "/".join(parts[:end])
        for name in (f"{stem}.py", f"{stem}/__init__.py"):
            if (root / name).is_file():
                return name
    return None


def imported_names(path: Path, root: Path, late: bool = True) -> list[tuple[int, str]]:
    """Return (line, absolute dotted name) of all that a file imports.

    With `late`, what functions import when they are called too.
    """
    package = path.relative_to(root).parent.parts
    names, nodes = [], [ast.parse(path.read_text(encoding="utf-8"))]
    for node in nodes:  # grows
        if late or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            nodes += ast.iter_child_nodes(node)
        if isinstance(node, ast.Import):
            names += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = (*above, *([node.module] if node.module else []))
            names += [(node.lineno, ".".join((*module, alias.name))) for alias in node.names]
    return sorted(names)


def source_files(root: Path) -> list[Path]:
    packages = [path for name in MAY_IMPORT for path in root.glob(f"{name}/**/*.py")]
    return sorted([*root.glob("*.py"), *packages])
