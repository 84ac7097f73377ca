"""The set-up that run_STAC.sh and run_tests.sh share."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import packaging
import pytest

from configs.command_line import ROOT

SOURCE_IT = 'source ./setup_environment.sh; echo "python=$python"'
WHEEL = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


@pytest.fixture
def checkout(tmp_path):
    """Return a folder with the set-up and a requirement that only a wheel in `wheels` satisfies."""
    folder = tmp_path / "a checkout"
    (folder / "wheels").mkdir(parents=True)
    for name in ("setup_environment.sh", "check_requirements.py"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "requirements.txt").write_text("# none on any index\nstac-dummy>=1.5\npackaging\n")
    return folder


def set_up(checkout, python=sys.executable, before=":"):
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON"))}
    environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "wheels", "PIP_CONFIG_FILE": os.devnull}
    return subprocess.run(
        ["bash", "-c", f"set -euo pipefail; {before}; {SOURCE_IT}"],
        cwd=checkout,
        env=environment | {"PYTHON": str(python)},
        capture_output=True,
        text=True,
    )


def metadata(name, version):
    return f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n"


def write_wheel(folder, name, version, package=None):
    """Write a wheel of one package folder, or of none."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path in sorted(package.glob("**/*.py")) if package else ():
            wheel.write(path, path.relative_to(package.parent))
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")


def fake_python(path, *refused):
    """Write an interpreter that fails for -c code with one of the given words."""
    cases = "\n".join(f'[[ "$*" != *"{word}"* ]] || exit 1' for word in refused)
    path.write_text(f'#!/usr/bin/env bash\n{cases}\nexec {sys.executable!r} "$@"\n')
    path.chmod(0o755)
    return path


def check(tmp_path, requirements, **versions):
    """Check requirements against an environment that has just packaging and these versions."""
    return run_check(tmp_path, requirements, stub_site(tmp_path, versions))


def stub_site(tmp_path, versions):
    """Return a folder of packages that has packaging, and metadata alone of these versions."""
    site = tmp_path / "site"
    site.mkdir()
    (site / "packaging").symlink_to(Path(packaging.__file__).parent)
    for name, version in versions.items():
        info = site / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(metadata(name, version))
    return site


def run_check(tmp_path, requirements, site, *more_files):
    path = tmp_path / "requirements.txt"
    path.write_text(requirements)
    run = subprocess.run(
        [sys.executable, "-S", ROOT / "check_requirements.py", path, *more_files],
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    return run.returncode, run.stdout


def test_satisfied_requirements_pass_silently(tmp_path):
    requirements = "# a comment\n\nstac-a>=2.9  # why\nStac.B>=2.6\nstac-c>=0.9\n"

    found = check(tmp_path, requirements, stac_a="2.10", stac_b="2.6.0+cpu", stac_c="1.0rc1")
    assert found == (0, "")


def test_missing_and_old_requirements_are_all_named(tmp_path):
    requirements = "stac-a>=2.10\nstac-b>=1.0\nstac-none\n"

    found = check(tmp_path, requirements, stac_a="2.9", stac_b="1.0")
    assert found == (1, "lacks stac-a>=2.10 (has 2.9), stac-none (has none)\n")


@pytest.mark.parametrize(("version", "code"), [("4.8", 0), ("4.7", 1)])
def test_another_build_of_opencv_counts_by_its_version(tmp_path, version, code):
    assert check(tmp_path, "opencv-python-headless>=4.8\n", opencv_python=version)[0] == code


def test_a_python_without_packaging_does_not_count(tmp_path):
    assert run_check(tmp_path, "", tmp_path) == (1, "lacks packaging\n")


def test_the_shipped_requirements_have_lower_bounds_that_can_be_read(tmp_path):
    requirements = (ROOT / "requirements.txt").read_text()
    names = [line.split(">=")[0] for line in requirements.splitlines() if ">=" in line]

    assert {"torch", "timm", "scipy", "pydantic", "packaging"} <= set(names)
    assert not {"pytest", "ruff", "hypothesis"} & set(names)
    code, printed = check(tmp_path, requirements.replace(">=", ">=9999."))
    assert code == 1
    assert all(f"{name}>=9999." in printed for name in names)


ACCEPTED = {  # a user's environment: a CUDA build of PyTorch and packages of its time
    "torch": "2.5.1+cu124",
    "torchvision": "0.20.1+cu124",
    "timm": "1.0.22",
    "segmentation_models_pytorch": "0.6.0",
    "numpy": "1.26.4",
    "scipy": "1.11.4",
    "opencv_python": "4.8.1.78",
    "pillow": "10.4.0",
    "scikit_learn": "1.3.2",
    "pydantic": "2.9.2",
    "pycocotools": "2.0.8",
    "onnx": "1.17.0",
    "onnxruntime_gpu": "1.20.1",
    "onnxscript": "0.3.0",
    "safetensors": "0.4.5",
    "matplotlib": "3.8.4",
    "tensorboard": "2.19.0",
    "jinja2": "3.1.4",
    "tqdm": "4.66.5",
    "packaging": "24.1",
}


def test_an_environment_of_pytorch_2_5_is_accepted_without_test_tools(tmp_path):
    requirements = (ROOT / "requirements.txt").read_text()

    assert check(tmp_path, requirements, **ACCEPTED) == (0, "")
    path = tmp_path / "requirements-dev.txt"
    path.write_text((ROOT / "requirements-dev.txt").read_text())
    code, printed = run_check(tmp_path, requirements, tmp_path / "site", path)
    assert code == 1
    assert "pytest" in printed
    assert "torch" not in printed


def test_an_active_python_of_pytorch_2_5_is_taken_and_no_venv_is_made(checkout, tmp_path):
    shutil.copy(ROOT / "requirements.txt", checkout / "requirements.txt")
    site = stub_site(tmp_path, ACCEPTED)
    python = tmp_path / "python3"
    python.write_text(f'#!/usr/bin/env bash\nPYTHONPATH={site} exec {sys.executable} -S "$@"\n')
    python.chmod(0o755)

    run = set_up(checkout, python)
    assert (run.returncode, run.stdout) == (0, f"python={python}\n"), run.stderr
    assert not (checkout / ".venv").exists()


def test_an_active_python_that_satisfies_all_is_taken(checkout):
    (checkout / "requirements.txt").write_text("packaging\n")

    run = set_up(checkout)
    assert (run.returncode, run.stdout) == (0, f"python={sys.executable}\n"), run.stderr
    assert not (checkout / ".venv").exists()


def test_a_failed_install_is_told_and_the_next_call_completes_it(checkout):
    failed = set_up(checkout)
    assert failed.returncode == 1
    assert "No matching distribution found for stac-dummy" in failed.stderr
    assert f"{checkout}/.venv/pip.log" in failed.stderr
    assert "expected a complete environment, the installation failed" in failed.stderr
    assert "python=" not in failed.stdout

    write_wheel(checkout / "wheels", "stac_dummy", "1.5")
    write_wheel(checkout / "wheels", "packaging", "99.0", Path(packaging.__file__).parent)
    completed = set_up(checkout)
    assert completed.returncode == 0, completed.stderr
    assert "lacks stac-dummy>=1.5 (has none)" in completed.stdout
    assert completed.stdout.endswith(f"python={checkout}/.venv/bin/python\n")

    log_time = (checkout / ".venv/pip.log").stat().st_mtime_ns
    again = set_up(checkout)
    assert again.stdout == f"python={checkout}/.venv/bin/python\n"
    assert (checkout / ".venv/pip.log").stat().st_mtime_ns == log_time

    write_wheel(checkout / "wheels", "stac_dummy", "2.0")
    (checkout / "requirements.txt").write_text("stac-dummy>=2.0\npackaging\n")
    upgraded = set_up(checkout)
    assert upgraded.returncode == 0, upgraded.stderr
    assert [*checkout.glob(".venv/lib/*/site-packages/stac_dummy-2.0.dist-info")]


def test_a_python_that_is_too_old_is_refused(checkout, tmp_path):
    old = fake_python(tmp_path / "python3", "sys.version_info")

    run = set_up(checkout, old)
    assert run.returncode == 1
    assert f"error: {old}: expected Python 3.11 or newer, got Python 3." in run.stderr
    assert not (checkout / ".venv").exists()


def test_a_python_without_the_venv_module_names_the_package(checkout, tmp_path):
    bare = fake_python(tmp_path / "python3", "import ensurepip")

    run = set_up(checkout, bare)
    assert run.returncode == 1
    assert f"error: {bare}: expected the venv module, found none." in run.stderr
    assert "sudo apt-get install python3-venv" in run.stderr
    assert not (checkout / ".venv").exists()


def test_further_files_are_asked_for_too_and_the_venv_is_completed(checkout):
    write_wheel(checkout / "wheels", "stac_dummy", "1.5")
    write_wheel(checkout / "wheels", "stac_tool", "3.0")
    write_wheel(checkout / "wheels", "packaging", "99.0", Path(packaging.__file__).parent)
    (checkout / "requirements-dev.txt").write_text("stac-tool>=3.0\n")
    both = "requirement_files=(requirements.txt requirements-dev.txt)"

    assert set_up(checkout).returncode == 0
    site = ".venv/lib/*/site-packages/stac_tool-3.0.dist-info"
    assert not [*checkout.glob(site)]
    completed = set_up(checkout, before=both)
    assert completed.returncode == 0, completed.stderr
    assert "Setting up" in completed.stdout
    assert [*checkout.glob(site)]
    assert "Setting up" not in set_up(checkout, before=both).stdout
    assert "Setting up" not in set_up(checkout).stdout


@pytest.mark.parametrize("script", ["run_tests.sh", "run_STAC.sh"])
def test_scripts_explain_themselves_without_setting_up(script):
    run = subprocess.run(
        ["bash", ROOT / script, "--help"],
        env=os.environ | {"PYTHON": "/no/such/python"},
        capture_output=True,
        text=True,
        check=True,
    )

    assert run.stdout.startswith(f"usage: bash {script} [")
