"""A list of very many images takes memory in proportion, and little of it (docs/distributed.md)."""

import gc
import tracemalloc
from pathlib import Path

from configs import DataConfig
from datasets.sources import read_data

NUM_ROWS = 4000
BYTES_A_RECORD = 2000


def test_a_record_of_a_table_takes_less_than_two_kilobytes(tmp_path: Path):
    rows = ["image,classes"]
    for number in range(NUM_ROWS):
        name = f"{number // 1000}/{number:07d}.png"
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
        rows.append(f"{name},{('', 'dent', 'scratch')[number % 3]}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    settings = DataConfig(source="csv", root=str(tmp_path), table="table.csv", group="none")
    read_data(settings, tmp_path / "run/labels.csv")  # what is imported late is no record
    gc.collect()
    tracemalloc.start()
    data = read_data(settings, tmp_path / "run/labels.csv")
    held, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert sum(len(data.split(name)) for name in ("train", "test")) == NUM_ROWS
    assert held / NUM_ROWS < BYTES_A_RECORD / 2
    assert most / NUM_ROWS < BYTES_A_RECORD
