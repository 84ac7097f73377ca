"""Where the tensors live and in which precision they are multiplied."""

import shutil
from pathlib import Path

import torch


def select_device(name: str) -> torch.device:
    """Return the device of `--device auto|cpu|cuda`.

    Raises:
        ValueError: cuda was asked for and there is none.
    """
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        reason = unused_gpu() or "found none"
        raise ValueError(f"--device cuda: expected a CUDA GPU, {reason}. Use --device cpu.")
    if name == "auto" and not has_cuda and (reason := unused_gpu()):
        print(f"warning: running on the CPU: {reason}.")
    return torch.device("cuda" if name != "cpu" and has_cuda else "cpu")


def processes_for(device: torch.device) -> int:
    """Return how many processes may use a device at a time: as many as the CPU has threads."""
    return torch.get_num_threads() if device.type == "cpu" else 1


def unused_gpu() -> str:
    """Say why an NVIDIA GPU of this machine cannot be used; empty where there is none."""
    if not (Path("/proc/driver/nvidia/version").is_file() or shutil.which("nvidia-smi")):
        return ""
    if torch.version.cuda is None:
        return (
            f"an NVIDIA GPU is there, but this PyTorch ({torch.__version__}) has no CUDA; install "
            "a CUDA build of PyTorch"
        )
    return (
        f"an NVIDIA GPU is there, but CUDA {torch.version.cuda} cannot reach it; check its driver"
    )


def amp_dtype(device: torch.device, mode: str) -> torch.dtype | None:
    """Return the autocast type of an amp mode, or None where autocast stays off.

    Args:
        device: a GPU or the CPU.
        mode: bf16; fp16 (GPU only; needs a GradScaler); off; or auto: bf16 where the hardware
            multiplies it, else fp16 on a GPU and off on a CPU, where emulated bf16 is several
            times slower than float32.

    Raises:
        ValueError: the mode does not exist on this device.
    """
    on_gpu = device.type == "cuda"
    if mode == "off":
        return None
    if mode == "fp16" and not on_gpu:
        raise ValueError("amp: expected bf16, auto or off on a CPU, got 'fp16'.")
    if mode == "fp16":
        return torch.float16
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else _cpu_bf16()
    if mode == "bf16" and on_gpu and not has_bf16:
        raise ValueError("amp: expected fp16, auto or off on this GPU, got 'bf16'.")
    if mode == "bf16" or has_bf16:
        return torch.bfloat16
    return torch.float16 if on_gpu else None


def _cpu_bf16() -> bool:
    """Tell whether the CPU has bfloat16 instructions (AMX, AVX-512, Arm)."""
    if hasattr(torch.cpu, "get_capabilities"):
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    cpu_info = Path("/proc/cpuinfo")  # PyTorch before 2.6 does not tell
    flags = cpu_info.read_text(encoding="utf-8").split() if cpu_info.is_file() else []
    return "avx512_bf16" in flags or "amx_bf16" in flags


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Return the autocast context of `amp_dtype`'s answer."""
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)


def full_precision(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor in float32, or unchanged where it is float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
