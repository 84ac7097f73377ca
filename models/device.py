"""Where the tensors live and in which precision they are multiplied."""

import torch


def select_device(name: str) -> torch.device:
    """Return the device of `--device auto|cpu|cuda`.

    Raises:
        ValueError: cuda was asked for and there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: expected a CUDA GPU, found none. Use --device cpu.")
    has_gpu = torch.cuda.is_available()
    return torch.device("cuda" if name != "cpu" and has_gpu else "cpu")


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
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Return the autocast context of `amp_dtype`'s answer."""
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)
