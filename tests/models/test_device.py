import re
import shutil
from pathlib import Path

import pytest
import torch

from models import device
from models.device import amp_dtype, autocast, full_precision, select_device

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def set_gpu(monkeypatch: pytest.MonkeyPatch, *, there: bool = True, bf16: bool = True) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)


def hide_driver(monkeypatch: pytest.MonkeyPatch, path: Path, *, tool: str | None) -> None:
    """Let the machine look as if `path` were its NVIDIA driver and `tool` its nvidia-smi."""
    places = {"/proc/driver/nvidia/version": path}
    monkeypatch.setattr(device, "Path", lambda name: places.get(name) or Path(name))
    monkeypatch.setattr(shutil, "which", lambda name: tool)


@pytest.fixture(autouse=True)
def no_driver(monkeypatch, tmp_path):
    hide_driver(monkeypatch, tmp_path / "no_driver", tool=None)


@pytest.mark.parametrize(
    ("name", "there", "expected"),
    [("auto", True, GPU), ("auto", False, CPU), ("cpu", True, CPU), ("cuda", True, GPU)],
)
def test_device_is_chosen_by_name_and_by_what_is_there(monkeypatch, capsys, name, there, expected):
    set_gpu(monkeypatch, there=there)
    assert select_device(name) == expected
    assert capsys.readouterr().out == ""


def test_cuda_without_a_gpu_is_refused(monkeypatch):
    set_gpu(monkeypatch, there=False)
    expected = "--device cuda: expected a CUDA GPU, found none. Use --device cpu."
    with pytest.raises(ValueError, match=expected):
        select_device("cuda")


@pytest.mark.parametrize("seen_by", ["driver", "nvidia-smi"])
@pytest.mark.parametrize(
    ("cuda", "reason"),
    [
        (None, r"this PyTorch \(.*\) has no CUDA; install a CUDA build of PyTorch"),
        ("12.8", r"CUDA 12\.8 cannot reach it; check its driver"),
    ],
)
def test_a_gpu_that_is_not_used_says_why(monkeypatch, tmp_path, capsys, seen_by, cuda, reason):
    set_gpu(monkeypatch, there=False)
    (tmp_path / "version").touch()
    path, tool = (tmp_path / "version", None) if seen_by == "driver" else (tmp_path / "none", "smi")
    hide_driver(monkeypatch, path, tool=tool)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert select_device("auto") == CPU
    printed = capsys.readouterr().out
    warning = f"warning: running on the CPU: an NVIDIA GPU is there, but {reason}\\.\n"
    assert re.fullmatch(warning, printed)
    expected = (
        rf"--device cuda: expected a CUDA GPU, .* is there, but {reason}\. Use --device cpu\."
    )
    with pytest.raises(ValueError, match=expected):
        select_device("cuda")
    assert select_device("cpu") == CPU
    assert capsys.readouterr().out == ""  # asked for


@pytest.mark.parametrize(
    ("mode", "bf16", "expected"),
    [
        ("auto", True, torch.bfloat16),
        ("auto", False, torch.float16),
        ("bf16", True, torch.bfloat16),
        ("fp16", True, torch.float16),
        ("off", True, None),
    ],
)
def test_amp_mode_on_a_gpu(monkeypatch, mode, bf16, expected):
    set_gpu(monkeypatch, bf16=bf16)
    assert amp_dtype(GPU, mode) is expected


@pytest.mark.parametrize(
    ("mode", "capabilities", "expected"),
    [
        ("auto", {"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ("auto", {"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        ("auto", {"bf16": True}, torch.bfloat16),  # Arm
        ("auto", {"avx512_bf16": False, "avx512_f": True}, None),
        ("bf16", {"avx512_bf16": False}, torch.bfloat16),  # asked for, so emulated
        ("off", {"avx512_bf16": True}, None),
    ],
)
def test_amp_mode_on_a_cpu(monkeypatch, mode, capabilities, expected):
    set_gpu(monkeypatch, bf16=True)  # a GPU that is not used decides nothing
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert amp_dtype(CPU, mode) is expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu sse2 avx512_bf16 avx512f", torch.bfloat16),
        ("fpu amx_bf16 amx_tile", torch.bfloat16),
        ("fpu sse2 avx512f avx512_bf16_not", None),
        (None, None),  # no such file: macOS, Windows
    ],
)
def test_before_pytorch_2_6_bf16_is_read_from_the_cpu_flags(monkeypatch, tmp_path, flags, expected):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    cpu_info = tmp_path / "cpuinfo"
    if flags:
        cpu_info.write_text(f"model name\t: some CPU\nflags\t\t: {flags}\nbogomips\t: 5000\n")
    monkeypatch.setattr(device, "Path", {"/proc/cpuinfo": cpu_info}.__getitem__)
    assert amp_dtype(CPU, "auto") is expected


def test_amp_modes_a_device_lacks_are_refused(monkeypatch):
    set_gpu(monkeypatch, bf16=False)
    with pytest.raises(ValueError, match="amp: expected bf16, auto or off on a CPU, got 'fp16'"):
        amp_dtype(CPU, "fp16")
    with pytest.raises(ValueError, match="amp: expected fp16, auto or off on this GPU, got 'bf16'"):
        amp_dtype(GPU, "bf16")


@pytest.mark.parametrize(
    ("dtype", "expected"), [(torch.bfloat16, torch.bfloat16), (None, torch.float32)]
)
def test_autocast_multiplies_in_its_type(dtype, expected):
    layer = torch.nn.Linear(3, 2)
    with autocast(CPU, dtype):
        result = layer(torch.ones(1, 3))
    assert result.dtype is expected
    assert layer(torch.ones(1, 3)).dtype is torch.float32


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_full_precision_is_at_least_float32(dtype, expected):
    assert full_precision(torch.ones(1, dtype=dtype)).dtype is expected
