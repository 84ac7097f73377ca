"""A record refuses names that files cannot have, or that lead out of a folder."""

from pathlib import Path

import pytest

from datasets.record import Record


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
