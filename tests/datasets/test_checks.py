"""What is wrong with a data set is named, and what its pictures hold is counted."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets.checks import area_quantiles, check_data, copies_in, count_labels
from datasets.files import write_image, write_mask
from datasets.record import NO_DEFECT, Record
from datasets.record_checks import Facts, read_mode
from datasets.sources import Data

SIZE = (37, 50)


def checked(data: Data) -> tuple[list[Facts], list[tuple[str, str]]]:
    """Return the facts, and kind and text of each problem."""
    facts, problems = check_data(data)
    return facts, [(problem.kind, problem.text) for problem in problems]


def records_of(folder: Path, *names: str) -> tuple[Record, ...]:
    random = np.random.default_rng(len(names))
    for name in names:
        write_image(folder / f"{name}.png", random.integers(0, 255, (*SIZE, 3), dtype=np.uint8))
    return tuple(Record(name, folder / f"{name}.png", (0,)) for name in names)


def test_defect_free_images_without_a_mask_are_no_problem(tmp_path):
    defective, good = records_of(tmp_path, "a", "b")
    defective = replace(defective, mask=tmp_path / "mask.png")
    write_mask(defective.mask, np.ones(SIZE, np.uint8))
    good = replace(good, classes=(), mask=good.image, mask_level=NO_DEFECT)
    facts, problems = checked(Data(("hole",), {"train": (defective, good)}))
    assert len(facts) == 2 and not problems


def test_one_name_in_two_splits_is_found(tmp_path):
    a, b, c = records_of(tmp_path / "x", "a", "b", "c")
    other = records_of(tmp_path / "y", "a")  # of another picture
    splits = {"train": (a, b, c), "fit": (a, b), "val": (c,), "test": other}
    facts, problems = checked(Data(("hole",), splits))
    assert sorted(found.split for found in facts) == ["fit", "fit", "test", "val"]
    expected = f"a: {a.image} (fit) = {other[0].image} (test)"
    assert problems == [("duplicate name", expected)]


def test_one_record_in_two_splits_is_found(tmp_path):
    a, b, c = records_of(tmp_path, "a", "b", "c")
    splits = {"train": (a, b, c), "fit": (a,), "val": (b,), "test": (a,)}
    facts, problems = checked(Data(("hole",), splits))
    assert [found.split for found in facts] == ["fit", "val", "test", "train"]
    kinds = [kind for kind, _ in problems]
    assert kinds == ["duplicate name", "identical images in different splits"]


def test_pictures_of_one_group_in_two_splits_are_leakage(tmp_path):
    records = [replace(r, group="tile 7") for r in records_of(tmp_path, *"abcd")]
    a, b, c, d = (*records[:3], replace(records[3], group="tile 8"))
    facts, problems = checked(Data(("hole",), {"train": (a, b, d), "test": (c,)}))
    text = f"{c.image} (test) = {a.image} (train) = {b.image} (train)"
    assert problems == [("near copies in different splits", text)]
    assert [[one.record.name for one in group] for group in copies_in(facts)] == [["c", "a", "b"]]


def test_large_group_of_copies_is_one_problem_that_names_five(tmp_path):
    records = records_of(tmp_path, *"abcdefgh")
    for record in records:
        write_image(record.image, np.full((4, 5, 3), 7, np.uint8))
    facts, problems = checked(Data(("hole",), {"train": records}))
    assert {found.mode for found in facts} == {"grey stored as RGB"}
    assert len(problems) == 1
    text = problems[0][1]
    assert text.count(" = ") == 4 and text.endswith(" and 3 more")


def test_pictures_of_equal_pixels_but_other_shape_differ(tmp_path):
    a, b = records_of(tmp_path, "a", "b")
    write_image(a.image, np.full((4, 6, 3), 7, np.uint8))
    write_image(b.image, np.full((6, 4, 3), 7, np.uint8))
    assert checked(Data(("hole",), {"train": (a, b)}))[1] == []


def test_grey_mask_of_a_defect_free_image_must_be_empty(tmp_path):
    write_image(tmp_path / "free.jpg", np.full(SIZE, 90, np.uint8))
    mask = np.zeros(SIZE, np.uint8)
    mask[0, :10] = 200
    write_image(tmp_path / "free.png", mask)
    free = Record("free", tmp_path / "free.jpg", (), mask=tmp_path / "free.png", mask_level=128)
    facts, problems = checked(Data((), {"train": (free,)}))
    # 10 of 37 * 50 pixels.
    expected = f"{free.mask}: 0.541 % of a defect-free image"
    assert problems == [("mask content without label", expected)]
    assert facts[0].areas == {} and facts[0].mode == "grey"
    write_image(tmp_path / "free.png", mask // 2)  # faint noise under the level is no defect
    assert checked(Data((), {"train": (free,)}))[1] == []


def test_class_that_no_training_image_has_is_a_problem(tmp_path):
    train, test = records_of(tmp_path, "a", "b")
    for level, record in enumerate((train, test)):
        write_image(record.image, np.full(SIZE, level, np.uint8))
    data = Data(
        ("hole", "dent", "crack"), {"train": (train,), "test": (replace(test, classes=(1,)),)}
    )
    assert checked(data)[1] == [
        ("class without training images", "dent: none in train, 1 in test"),
        ("class without training images", "crack: none in train, none in any split"),
    ]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("Scratch", "scratch"), ["Scratch and scratch"]),
        (("dent", "scratch", "scrath"), ["scratch and scrath"]),  # 2 * 6 / 13 letters = 0.92
        (("Class1", "Class10"), []),  # numbers tell classes apart
        (("patches", "pitted"), []),
    ],
)
def test_class_names_that_differ_by_little_are_a_problem(tmp_path, names, expected):
    (record,) = records_of(tmp_path, "a")
    write_image(record.image, np.zeros(SIZE, np.uint8))
    record = replace(record, classes=tuple(range(len(names))))
    problems = checked(Data(names, {"train": (record,)}))[1]
    assert problems == [("similar class names", text) for text in expected]


def test_defect_free_image_without_a_mask_file_has_no_problem(tmp_path):
    image = tmp_path / "free.jpg"
    write_image(image, np.full(SIZE, 90, np.uint8))
    free = Record("free", image, (), mask=image, mask_level=NO_DEFECT)
    facts, problems = checked(Data((), {"train": (free,)}))
    assert (facts[0].areas, problems) == ({}, [])


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("L", "grey"),
        ("RGB", "RGB"),
        ("P", "palette"),
        ("I;16", "16-bit grey"),
        ("1", "1-bit grey"),
        ("RGBA", "RGB with transparency"),
    ],
)
def test_picture_mode_is_named(tmp_path, mode, expected):
    Image.new(mode, (5, 4)).save(tmp_path / "a.png")
    assert read_mode(tmp_path / "a.png") == expected


def test_counts_and_quantiles_match_a_hand_calculation():
    def found(*classes: int, **areas: float) -> Facts:
        record = Record("a", Path("a.png"), classes)
        return Facts(record, "train", areas={int(k[1:]): share for k, share in areas.items()})

    facts = [found(0, k0=0.1), found(0, 1, k0=0.2, k1=0.5), found(0, k0=0.4), found()]
    assert count_labels([f.record for f in facts], 3) == ([3, 1, 0], 1, 1)
    count, shares = area_quantiles(facts, 0)
    # 0.1, 0.2, 0.4: quartiles lie half-way between neighbours.
    assert count == 3 and shares == pytest.approx([0.1, 0.15, 0.2, 0.3, 0.4])
    assert area_quantiles(facts, 2) == (0, [])
