"""Names of records, and draws of them."""

from pathlib import Path

import pytest

from datasets.record import Record, balanced


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "/a", "a\nb", "a\tb", "a\0", "a\x1b[2J", "\udcff"]
)
def test_a_name_that_files_cannot_have_is_refused(name):
    with pytest.raises(ValueError, match="expected a name that files can have") as raised:
        Record(name, Path("a.png"), ())
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["a", "..a", "a b", "ä", "図1", "a.b", "a:b", "ä" * 125])
def test_other_names_are_taken(name):
    assert Record(name, Path("a.png"), ()).group == name


def test_a_balanced_draw_takes_of_each_class_in_turn():
    labels = [(0,)] * 20 + [(1,)] * 2 + [(0, 1)] * 1 + [()] * 5
    records = [Record(f"{i:02}", Path("a.png"), label) for i, label in enumerate(labels)]
    for seed in range(5):
        drawn = balanced(records, 6, seed)
        assert drawn == sorted(drawn, key=lambda record: record.name)
        assert len(drawn) == 6 == len({record.name for record in drawn})
        assert sum(not record.classes for record in drawn) == 2
        assert sum(1 in record.classes for record in drawn) >= 2
        assert drawn == balanced(records, 6, seed)
    assert len({tuple(r.name for r in balanced(records, 6, seed)) for seed in range(5)}) > 1
    assert balanced(records, 100, 0) == records
    assert balanced([], 8, 0) == []
