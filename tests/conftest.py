from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def two_threads() -> Iterator[None]:
    """Keep torch from taking every core of a shared machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(2, before))
    yield
    torch.set_num_threads(before)
