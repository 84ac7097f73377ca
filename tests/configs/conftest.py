import pytest


@pytest.fixture
def empty_toml(tmp_path):
    path = tmp_path / "empty.toml"
    path.write_text("")
    return path
