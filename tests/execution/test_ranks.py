"""How lists are divided among processes, and when GPUs are used; test_two_ranks.py runs them."""

import pytest
import torch

from execution import ranks


@pytest.fixture
def on_rank(monkeypatch):
    def become(rank: int, size: int) -> None:
        monkeypatch.setattr(ranks, "_world", lambda: (rank, size))

    return become


@pytest.mark.parametrize("count", [0, 1, 5, 12, 13])
@pytest.mark.parametrize("block", [1, 4])
def test_parts_in_order_are_the_list_and_begin_at_blocks(count, block, on_rank):
    items, found = list(range(count)), []
    for rank in range(3):
        on_rank(rank, 3)
        part = ranks.part(items, block)
        assert not len(part) or part[0] % block == 0
        assert len(part) <= block * -(-count // (3 * block))
        found += part
    assert found == items


def test_a_call_without_torchrun_is_one_process(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    cpu = torch.device("cpu")
    assert ranks.join(cpu) is cpu
    assert (ranks.rank(), ranks.size(), ranks.is_first()) == (0, 1, True)
    assert ranks.part([1, 2, 3]) == [1, 2, 3]
    assert ranks.gathered("mine") == ["mine"]
    with ranks.first_alone():
        ranks.wait()


@pytest.mark.parametrize(
    ("device", "gpus", "most", "processes"),
    [("auto", 4, 8, 4), ("cuda", 4, 2, 2), ("auto", 1, 8, 0), ("cpu", 4, 8, 0), ("auto", 0, 8, 0)],
)
def test_all_visible_gpus_are_used(device, gpus, most, processes, monkeypatch):
    monkeypatch.setattr(ranks.shutil, "which", lambda _: "/usr/bin/nvidia-smi" if gpus else None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    words = ranks.launcher(device, most)
    assert bool(words) == bool(processes)
    if words:
        assert words[:2] == ["-m", "torch.distributed.run"]
        assert words[-1] == f"--nproc-per-node={processes}"


def test_more_processes_than_gpus_are_refused(monkeypatch):
    for name, value in {
        "TORCHELASTIC_RUN_ID": "a",
        "LOCAL_RANK": "2",
        "LOCAL_WORLD_SIZE": "4",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="at most one process a GPU, 2 on this machine, got 4"):
        ranks.join(torch.device("cuda"))
