"""Masks cut at thresholds, and thresholds found without masks, against loops and hand counts."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datasets.record import Record
from scoring import thresholds
from scoring.thresholds import (
    MapCounts,
    auto_threshold,
    count_maps,
    counted_images,
    levelled,
    salient_level,
    seed_mask,
)


def test_seed_is_the_highest_class_above_the_threshold_and_ties_go_to_background():
    cam = np.array([[[0.2, 0.6, 0.7, 0.9]], [[0.1, 0.5, 0.8, 0.9]]], np.float32)
    # 0.2 lies below; 0.6 is a tie with the background; 0.8 wins; 0.9 twice: the first class.
    assert seed_mask(cam, np.array([0, 4]), 0.6).tolist() == [[0, 0, 5, 1]]
    assert seed_mask(cam, np.array([0, 4]), 0.6).dtype == np.uint8
    assert seed_mask(cam[:0], np.zeros(0, np.int64), 0.6).tolist() == [[0, 0, 0, 0]]
    with pytest.raises(ValueError, match=r"cam: expected shape \(1, H, W\), got \(2, 1, 4\)"):
        seed_mask(cam, np.array([0]), 0.6)


def test_values_and_threshold_are_compared_as_float32():
    cam = np.array([[[0.7, 0.3, np.nextafter(np.float32(0.7), 1, dtype=np.float32)]]])
    # As float64, 0.7 lies above float32(0.7), and 0.3 below float32(0.3).
    assert seed_mask(cam, np.array([0]), 0.7).tolist() == [[0, 0, 1]]
    assert seed_mask(cam, np.array([0]), 0.3).tolist() == [[1, 0, 1]]


def slow_otsu(histogram: np.ndarray) -> float:
    """Try every cut: the first with the largest variance between its sides, in plain loops."""
    best, cut = -1.0, None
    for level in range(len(histogram) - 1):
        sides = ([], [])
        for i, count in enumerate(histogram):
            sides[i > level].append((i, float(count)))
        sizes = [sum(c for _, c in side) for side in sides]
        if min(sizes) == 0:
            continue
        means = [sum(i * c for i, c in side) / n for side, n in zip(sides, sizes, strict=True)]
        variance = sizes[0] * sizes[1] * (means[0] - means[1]) ** 2
        if variance > best * (1 + 1e-12):
            best, cut = variance, level
    below = max(i for i in range(cut + 1) if histogram[i])
    above = min(i for i in range(cut + 1, len(histogram)) if histogram[i])
    return (below + above) / 2 / (len(histogram) - 1)


@pytest.mark.parametrize("seed", range(4))
def test_auto_threshold_matches_a_loop_over_all_cuts(seed):
    rng = np.random.default_rng(seed)
    histogram = rng.integers(0, 1000, 256) * (rng.random(256) < (0.05, 0.3, 0.9, 1)[seed])
    assert auto_threshold(histogram) == pytest.approx(slow_otsu(histogram), abs=1e-12)


def test_auto_threshold_lies_halfway_between_two_values():
    histogram = np.zeros(256, np.int64)
    histogram[[51, 204]] = 900, 100
    assert auto_threshold(histogram) == pytest.approx(127.5 / 255)


@pytest.mark.parametrize("occupied", [[], [7]])
def test_auto_threshold_needs_two_values(occupied):
    histogram = np.zeros(256, np.int64)
    histogram[occupied] = 5
    with pytest.raises(ValueError, match=f"two or more different values, got {len(occupied)}"):
        auto_threshold(histogram)


def test_counts_pool_the_maxima_of_images_with_classes():
    counts = MapCounts(2)
    counts.add(np.array([[[0.0, 0.2]], [[1.0, 0.1]]]), (0, 1))
    counts.add(np.zeros((0, 4, 4)), ())
    counts.add(np.array([[[0.2]]]), (0,))
    # Maxima .2, .2 and 1, levels 51 and 255; class 0 holds 0, .2, .2, class 1 holds 1 and .1.
    assert counts.auto() == pytest.approx((51 + 255) / 2 / 255)
    expected = [(0 + 51) / 2 / 255, (26 + 255) / 2 / 255]
    assert counts.by_class() == pytest.approx(expected)
    assert not counts.say_nothing()


def test_the_highest_map_of_each_pixel_counts_for_the_common_threshold():
    counts = MapCounts(2)
    counts.add(np.array([[[0.8, 0.8, 0.2]], [[0.2, 0.6, 0.8]]]), (0, 1))
    assert counts.say_nothing()


def test_a_class_without_two_values_gets_the_threshold_of_all():
    counts = MapCounts(3)
    counts.add(np.array([[[0.2, 0.8]], [[0.4, 0.4]]]), (0, 2))
    assert counts.by_class() == [counts.by_class()[0], counts.auto(), counts.auto()]


@pytest.mark.parametrize("seed", range(4))
def test_agreement_matches_a_loop_over_all_thresholds(seed):
    rng = np.random.default_rng(seed)
    counts, images = MapCounts(3, 0.45), []
    for classes in ((0,), (1,), (0, 2), (2,)):
        saliency = rng.integers(0, 256, (7, 5)) / 255
        maps = np.clip(saliency + rng.normal(0, 0.3, (len(classes), 7, 5)), 0, 1)
        counts.add(maps, classes, saliency)
        images.append((np.rint(255 * maps), classes, saliency))
    for k, threshold in enumerate(counts.agreement()):
        best, chosen = -1.0, None
        for level in range(1, 256):
            total = 0.0
            for maps, classes, saliency in images:
                if k not in classes:
                    continue
                i, both, either = classes.index(k), 0, 0
                for y in range(7):
                    for x in range(5):
                        if maps[:, y, x].argmax() == i:
                            found, salient = maps[i, y, x] >= level, saliency[y, x] > 0.45
                            both, either = both + (found and salient), either + (found or salient)
                total += both / max(either, 1)
            if total > best:
                best, chosen = total, level
        assert threshold == pytest.approx((chosen - 0.5) / 255)


def test_an_image_that_is_salient_all_over_does_not_decide_for_the_others():
    counts = MapCounts(1, 0.5)
    narrow = np.zeros((1, 10, 10))
    narrow[0, 3:7, 3:7] = 0.3
    narrow[0, 4:6, 4:6] = 0.9
    for _ in range(3):
        counts.add(narrow, (0,), narrow[0])
    counts.add(np.full((1, 100, 100), 0.3), (0,), np.ones((100, 100)))  # more pixels than all else
    assert counts.agreement() == pytest.approx([(76 + 0.5) / 255])  # 0.3 is level 76


def test_agreement_of_a_class_without_salient_pixels_is_that_of_all():
    counts = MapCounts(2, 0.5)
    maps = np.array([[[0.2, 0.8, 0.8]]])
    counts.add(maps, (0,), np.array([[0.0, 1.0, 0.0]]))
    counts.add(maps, (1,), np.zeros((1, 3)))
    assert counts.agreement() == pytest.approx([(51 + 0.5) / 255, counts.auto()])


def test_maps_that_say_nothing_are_told_and_have_no_threshold():
    counts = MapCounts(1)
    assert counts.say_nothing()
    counts.add(np.full((1, 2, 2), 0.3), (0,), np.zeros((2, 2)))
    assert counts.say_nothing()
    for rule in (counts.auto, counts.by_class, counts.agreement):
        with pytest.raises(ValueError, match="two or more different values, got 1"):
            rule()


def test_without_salient_pixels_there_is_nothing_to_agree_with():
    assert salient_level([np.zeros((1, 2)), np.zeros((3, 1))], np.asarray) is None
    for level in (None, 0.5):
        counts = MapCounts(2, level)
        counts.add(np.array([[[0.2, 0.8]]]), (0,), np.zeros((1, 2)))
        assert counts.agreement() == [counts.auto()] * 2


def test_salient_is_what_is_above_a_level():
    maps, saliency = np.array([[[0.1, 0.4, 0.9]]]), np.array([[0.0, 0.4, 0.8]])
    # Otsu's cut of 0, 0.4 and 0.8, the lowest of equals, is 0.2: the upper two are salient
    assert salient_level([saliency[:, :1], saliency[:, 1:]], np.asarray) == pytest.approx(0.2)
    thresholds = {}
    for level in (0.2, 0.3, 0.4, 0.5):
        counts = MapCounts(1, level)
        counts.add(maps, (0,), saliency)
        (thresholds[level],) = counts.agreement()
    assert thresholds[0.2] == thresholds[0.3] == pytest.approx((26 + 0.5) / 255)
    counts = MapCounts(1, 0.997)  # 254.2 of 255
    counts.add(maps, (0,), np.array([[0.0, 0.4, 1.0]]))
    assert counts.agreement() == [thresholds[0.5]]
    # 0.4 is not above 0.4
    assert thresholds[0.4] == thresholds[0.5] == pytest.approx((102 + 0.5) / 255)


def test_each_map_has_its_class():
    for classes in ((0,), (0, 1, 1)):
        with pytest.raises(ValueError, match="zip"):
            MapCounts(2).add(np.zeros((2, 2, 3)), classes)


def test_saliency_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"saliency map of the size \(2, 3\), got \(3, 2\)"):
        MapCounts(1).add(np.zeros((1, 2, 3)), (0,), np.zeros((3, 2)))


def test_the_rules_give_a_threshold_for_each_class():
    counts = MapCounts(2, 0.5)
    counts.add(np.array([[[0.2, 0.8]], [[0.4, 0.1]]]), (0, 1), np.array([[0.0, 1.0]]))
    assert counts.thresholds("auto") == [counts.auto()] * 2
    assert counts.thresholds("class") == counts.by_class()
    assert counts.thresholds("agreement") == counts.agreement()


def records_of(*classes: tuple[int, ...]) -> list[Record]:
    return [Record(str(i), Path(f"{i}.png"), k) for i, k in enumerate(classes)]


def test_maps_are_counted_as_they_are_read():
    records = records_of((0,), (), (0, 1))
    rng = np.random.default_rng(0)
    maps = {r.name: rng.random((len(r.classes), 5, 4)) for r in records}
    saliency = {r.name: rng.random((5, 4)) for r in records}

    def read(record: Record) -> tuple[np.ndarray, tuple[int, ...]]:
        return maps[record.name], record.classes

    labelled = [saliency["0"], saliency["2"]]  # the defect-free image does not set the level
    for salient_from, level in ((0.0, salient_level(labelled, np.asarray)), (0.75, 0.75)):
        expected = MapCounts(2, level)
        for record in records:
            expected.add(*read(record), saliency[record.name])
        counts = count_maps(records, read, 2, lambda r: saliency[r.name], salient_from)
        for rule in ("auto", "class", "agreement"):
            assert counts.thresholds(rule) == expected.thresholds(rule)

    alone = count_maps(records, read, 2)
    assert alone.thresholds("class") == expected.thresholds("class")
    assert alone.agreement() == [alone.auto()] * 2  # there is nothing to agree with


def test_maps_that_do_not_fit_name_their_image():
    def read(record: Record) -> tuple[np.ndarray, tuple[int, ...]]:
        return np.zeros((1, 2, 3)), record.classes

    with pytest.raises(
        ValueError, match=r"CAMs of 0: expected a saliency map of the size \(2, 3\)"
    ):
        count_maps(records_of((0,)), read, 1, lambda record: np.eye(4))


def test_few_images_are_all_counted_but_for_those_without_label():
    records = records_of((0,), (), (1,), (0, 1))
    for rule in ("auto", "class", "agreement"):
        chosen = counted_images(records, 2, rule)
        assert sorted(record.name for record in chosen) == ["0", "2", "3"]
    assert counted_images(records_of((), ()), 2, "class") == []


def test_of_many_images_each_class_has_its_share(monkeypatch):
    monkeypatch.setattr(thresholds, "MAX_IMAGES", 6)
    records = records_of(*[(0,)] * 20, (), *[(1,)] * 4)
    assert [r.name for r in counted_images(records, 2, "auto")] == ["0", "4", "8", "12", "16", "21"]
    # Three of each class: every seventh of 20, every second of 4.
    expected = ["0", "7", "14", "21", "23"]
    assert [r.name for r in counted_images(records, 2, "class")] == expected


def test_levelled_maps_have_their_thresholds_at_a_half():
    maps = np.array([[[0.0, 0.1, 0.2, 0.6, 1.0]], [[0.0, 0.4, 0.8, 0.9, 1.0]]])
    found = levelled(maps, [0.2, 0.8])
    expected = [[[0, 0.25, 0.5, 0.75, 1]], [[0, 0.25, 0.5, 0.75, 1]]]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert levelled(maps[:0], []).shape == (0, 1, 5)


def assert_levelled_maps_agree(cam, threshold):
    classes = np.arange(len(cam))
    plain = seed_mask(cam, classes, threshold)
    levels = levelled(cam, [threshold] * len(cam))
    assert np.array_equal(seed_mask(levels, classes, 0.5), plain)
    assert levels.min() >= 0 and levels.max() <= 1


@pytest.mark.parametrize(
    "threshold", [0.0, -0.0, 1e-45, 1e-8, 0.3, 0.5, 0.6, 0.99, 1 - 2**-24, 1.0]
)
def test_levelled_maps_agree_with_one_threshold_next_to_it(threshold):
    """Values up to 40 float32 steps away from the threshold, each paired with each."""
    bits = np.float32(threshold).view(np.int32) + np.arange(-40, 41, dtype=np.int32)
    near = np.clip(bits, 0, np.float32(1).view(np.int32)).view(np.float32)
    assert_levelled_maps_agree(np.stack(np.meshgrid(near, near)), threshold)


def test_levelled_maps_agree_with_one_threshold_everywhere():
    """Neighbouring float32 of all sizes, in either order, at thresholds of all sizes."""
    rng = np.random.default_rng(0)
    highest = int(np.float32(1).view(np.int32))
    for i in range(40):
        threshold = rng.random() if i % 2 else 2.0 ** -rng.integers(0, 150)
        bits = rng.integers(0, highest, (1, 40, 40), dtype=np.int32)
        bits = bits + rng.integers(0, 2, (3, 40, 40), dtype=np.int32)
        assert_levelled_maps_agree(bits.view(np.float32), threshold)


FLOAT32 = st.floats(0, 1, width=32)


@settings(max_examples=60, deadline=None)
@given(FLOAT32, st.lists(st.tuples(FLOAT32, FLOAT32, FLOAT32), min_size=1, max_size=5))
def test_levelled_maps_agree_with_one_threshold_for_any_values(threshold, values):
    assert_levelled_maps_agree(np.array(values, np.float32).T[:, None], threshold)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(FLOAT32, FLOAT32), min_size=1, max_size=4))
def test_foreground_is_what_lies_above_the_threshold_of_a_class(pairs):
    cam, thresholds = np.array(pairs, np.float32).T[:, :, None, None]
    mask = seed_mask(levelled(cam, thresholds.ravel()), np.arange(len(cam)), 0.5)
    assert (mask > 0).all() == (cam > thresholds).any()
