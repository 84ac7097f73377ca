import pytest
import torch

from models.device import amp_dtype, autocast, select_device

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def set_gpu(monkeypatch: pytest.MonkeyPatch, *, there: bool = True, bf16: bool = True) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)


@pytest.mark.parametrize(
    ("name", "there", "expected"),
    [("auto", True, GPU), ("auto", False, CPU), ("cpu", True, CPU), ("cuda", True, GPU)],
)
def test_device_is_chosen_by_name_and_by_what_is_there(monkeypatch, name, there, expected):
    set_gpu(monkeypatch, there=there)
    assert select_device(name) == expected


def test_cuda_without_a_gpu_is_refused(monkeypatch):
    set_gpu(monkeypatch, there=False)
    expected = "--device cuda: expected a CUDA GPU, found none. Use --device cpu."
    with pytest.raises(ValueError, match=expected):
        select_device("cuda")


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
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert amp_dtype(CPU, mode) is expected


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
