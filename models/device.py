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
        device: CPUs always take bf16, GPUs where `torch.cuda.is_bf16_supported`.
        mode: auto, bf16, fp16 (GPU only; needs a GradScaler) or off.
    """
    if mode == "off":
        return None
    if mode == "fp16":
        if device.type != "cuda":
            raise ValueError("amp: expected bf16, auto or off on a CPU, got 'fp16'.")
        return torch.float16
    bf16 = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    if mode == "bf16" and not bf16:
        raise ValueError("amp: expected fp16, auto or off on this GPU, got 'bf16'.")
    return torch.bfloat16 if bf16 else torch.float16


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Return the autocast context of `amp_dtype`'s answer."""
    return torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)
