"""No draw divides a group, loses a class, or depends on more than seed, names and groups."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.command_line import ROOT
from datasets.record import Record
from datasets.splits import draw, folds, single_groups

# Labels of up to two of three classes and the group, of each image.
IMAGES = st.lists(
    st.tuples(st.sets(st.integers(0, 2), max_size=2), st.integers(0, 12)), min_size=1, max_size=60
)


def records_of(images: list[tuple[set[int], int]]) -> list[Record]:
    return [
        Record(f"{i:03}", Path(f"{i:03}.png"), tuple(sorted(classes)), group=f"part {group}")
        for i, (classes, group) in enumerate(images)
    ]


def groups_of(records) -> set[str]:
    return {record.group for record in records}


def groups_by_class(records) -> dict[tuple[int, ...] | int, set[str]]:
    found: dict = {}
    for record in records:
        for k in record.classes or ("free",):
            found.setdefault(k, set()).add(record.group)
    return found


@settings(max_examples=300, deadline=None)
@given(IMAGES, st.floats(0.01, 0.9), st.integers(0, 5))
def test_a_draw_divides_no_group_and_loses_no_class(images, share, seed):
    records = records_of(images)
    rest, drawn = draw(records, share, seed)
    assert not groups_of(rest) & groups_of(drawn)
    assert sorted([*rest, *drawn], key=lambda r: r.name) == records
    assert [*rest] == sorted(rest, key=lambda r: r.name)
    everywhere, left = groups_by_class(records), groups_by_class(rest)
    assert left.keys() == everywhere.keys()  # each class is still trained on
    for k, groups in everywhere.items():
        if len(groups) == 1:  # whole in the rest
            assert left[k] == groups


@settings(max_examples=100, deadline=None)
@given(IMAGES, st.floats(0.01, 0.9), st.randoms(use_true_random=False))
def test_a_draw_does_not_depend_on_the_order_of_files(images, share, random):
    records = records_of(images)
    _, drawn = draw(records, share, 0)
    shuffled = random.sample(records, len(records))
    assert groups_of(draw(shuffled, share, 0)[1]) == groups_of(drawn)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_share_of_each_label_is_drawn_to_half_a_group(size):
    records = [
        Record(
            f"{i:04}", Path("a"), ((), (0,), (1,), (0, 1))[i % 4], group=f"{i % 4}/{i // 4 // size}"
        )
        for i in range(400)
    ]
    _, drawn = draw(records, 0.3, 0)
    for label in ((), (0,), (1,), (0, 1)):
        assert abs(sum(r.classes == label for r in drawn) - 30) <= max(1, size)
    assert abs(len(drawn) - 120) <= max(1, size / 2)


def test_a_class_that_is_owed_an_image_is_among_the_drawn():
    images = [({0}, i) for i in range(12)] + [({1}, 20), ({1}, 21), ({2}, 30), ({2}, 30)]
    records = records_of(images)
    _, drawn = draw(records, 0.5, 0)  # owed an image of two; one group of the last class
    assert {k for record in drawn for k in record.classes} == {0, 1}
    assert single_groups(records, ("a", "b", "c")) == ["c"]
    _, drawn = draw(records, 0.1, 0)
    assert len(drawn) <= 2  # rare classes are left to train on


def test_something_is_drawn_wherever_a_class_has_two_groups():
    records = records_of([({0}, 0), ({0}, 1), ({1}, 2)])
    _, drawn = draw(records, 0.01, 0)
    assert len(drawn) == 1 and drawn[0].classes == (0,)


def test_other_seeds_draw_others_and_share_0_nothing():
    records = records_of([({0}, i) for i in range(12)])
    draws = {tuple(sorted(groups_of(draw(records, 0.3, seed)[1]))) for seed in range(20)}
    assert len(draws) > 5
    assert draw(records, 0.0, 0) == (tuple(records), ())


def test_a_draw_is_the_same_in_every_process():
    code = (
        "import json\nfrom pathlib import Path\nfrom datasets.record import Record\n"
        "from datasets.splits import draw\n"
        "records = [Record(f'n{i}', Path('a'), (i % 3,), group=f'g{i // 2}') for i in range(60)]\n"
        "print(json.dumps([r.name for r in draw(records, 0.3, 7)[1]]))"
    )
    found = []
    for hash_seed in ("0", "1"):
        environment = {"PYTHONHASHSEED": hash_seed, "PATH": ""}
        call = [sys.executable, "-c", code]
        done = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True)
        found.append(json.loads(done.stdout))
    assert found[0] == found[1]


@settings(max_examples=100, deadline=None)
@given(IMAGES, st.integers(2, 4))
def test_folds_divide_no_group_and_are_of_about_one_size(images, count):
    records = records_of(images)
    fold_of = folds(records, count)
    assert fold_of.keys() == {record.name for record in records}
    assert all(
        len({fold_of[r.name] for r in records if r.group == g}) == 1 for g in groups_of(records)
    )
    sizes = [list(fold_of.values()).count(fold) for fold in range(count)]
    largest = max(sum(r.group == g for r in records) for g in groups_of(records))
    assert max(sizes) - min(sizes) <= largest
