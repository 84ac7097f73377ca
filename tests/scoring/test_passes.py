"""What a pass over files hands to the counters, and how maps become masks on the way."""

import numpy as np
import pytest

from datasets.files import Cam, write_cam, write_mask, write_saliency
from datasets.record import Record
from scoring.confusion import LevelledSeeds, ThresholdSweep
from scoring.detailed import DetailedScores
from scoring.passes import (
    count_cams,
    count_details,
    count_masks,
    count_saliency,
    find_maps,
    paint,
    read_map,
)
from scoring.saliency import SaliencyHistogram

MAPS = np.array([[[0.75, 0.25, 0.5]], [[0.25, 0.5, 0.125]]], np.float32)  # of classes 0 and 2
TRUTH = np.array([[1, 3, 0]], np.uint8)


def half(shift=0):
    mask = np.zeros((6, 10), np.uint8)
    mask[:, 4 + shift :] = 1
    return mask


@pytest.mark.parametrize("threshold", [None, 0.5])
def test_images_of_one_group_are_drawn_together(tmp_path, threshold):
    wanted, records, paths = DetailedScores(1), [], []
    for i, group in enumerate(("part a", "part a", "", "", "part b", "part a")):
        truth, path = tmp_path / f"{i}_truth.png", tmp_path / f"{i}.png"
        write_mask(truth, half())
        if threshold is None:
            write_mask(path, half(i))
        else:
            write_saliency(path, half(i).astype(np.float32))
        records.append(Record(str(i), truth, (0,), truth, group=group))
        paths.append(path)
        wanted.update(half(), half(i), group=group)
    found = count_details(records, paths, 1, threshold).scores(rounds=50)
    assert found["miou_interval"] == wanted.scores(rounds=50)["miou_interval"]


LABEL_FREE = ("pixel_auroc", "aupro", "max_f1", "image_auroc")


def noise_scores(folder, labelled, kind, maps_see_labels):
    """Score noise as maps of images of which only those labelled True have a defect."""
    rng, records, paths = np.random.default_rng(0), [], []
    for i, has_defect in enumerate(labelled):
        truth, path = folder / f"{i}_truth.png", folder / f"{i}{kind}"
        write_mask(truth, half() if has_defect else 0 * half())
        classes = (0,) if has_defect else ()
        noise = rng.uniform(0.1, 1, (len(classes), 6, 10)).astype(np.float32)
        if kind == ".npz":
            write_cam(path, Cam(noise, np.array(classes, np.int64), np.float32([0.5])))
        elif kind == ".npy":
            np.save(path, dict(zip(classes, noise, strict=True)), allow_pickle=True)
        elif maps_see_labels:
            write_saliency(path, noise[0] if has_defect else np.zeros((6, 10)))
        else:
            write_saliency(path, rng.uniform(0, 1, (6, 10)))
        records.append(Record(str(i), truth, classes, truth))
        paths.append(path)
    return count_details(records, paths, 1, 0.5, maps_see_labels).scores(rounds=2)


@pytest.mark.parametrize("kind", [".npz", ".npy", ".png"])
def test_maps_that_see_labels_have_no_scores_beside_defect_free_images(tmp_path, kind):
    scores = noise_scores(tmp_path, (True, False, True, False), kind, maps_see_labels=True)
    assert {name: scores[name] for name in LABEL_FREE} == dict.fromkeys(LABEL_FREE)
    assert scores["pixel_accuracy"] > 0 and scores["dice"][1] > 0


@pytest.mark.parametrize("kind", [".npz", ".npy", ".png"])
def test_maps_of_defective_images_alone_do_not_see_labels(tmp_path, kind):
    scores = noise_scores(tmp_path, (True, True), kind, maps_see_labels=True)
    assert 30 < scores["pixel_auroc"] < 70 and scores["aupro"] < 70 and scores["max_f1"] < 80
    assert scores["image_auroc"] is None


def test_maps_that_know_no_label_are_scored_with_defect_free_images(tmp_path):
    scores = noise_scores(tmp_path, (True, False, True, False), ".png", maps_see_labels=False)
    assert 30 < scores["pixel_auroc"] < 70
    assert all(scores[name] is not None for name in LABEL_FREE)


@pytest.fixture
def image(tmp_path):
    """A record of an image of 1 x 3 pixels with classes 0 and 2, and a folder for its maps."""
    write_mask(tmp_path / "truth.png", TRUTH)
    return Record("a", tmp_path / "a.jpg", (0, 2), tmp_path / "truth.png"), tmp_path / "maps"


def write_maps(folder, name="a", scores=(0.5, 0.0, 0.25)):
    write_cam(folder / f"{name}.npz", Cam(MAPS, np.array([0, 2]), np.float32(scores)))
    write_saliency(folder / f"{name}.png", np.array([[51, 204, 102]]) / 255)
    released = dict(zip((2, 0), MAPS[::-1], strict=True))
    np.save(folder / f"{name}.npy", released, allow_pickle=True)


def test_maps_are_found_by_the_first_suffix_that_is_there(tmp_path):
    for name in ("a.npz", "a.npy", "b.npy", "c.npz", "d.png"):
        (tmp_path / name).touch()
    found = find_maps(tmp_path, ["a", "b", "c"], (".npz", ".npy"), "Make it.")
    assert [path.name for path in found] == ["a.npz", "b.npy", "c.npz"]
    assert {path.parent for path in found} == {tmp_path}
    message = rf"{tmp_path}: expected a \.npz or \.npy file for each of 7 images, 6 are missing: "
    with pytest.raises(FileNotFoundError, match=message + "d, e, f, g, h. Make it."):
        find_maps(tmp_path, list("adefghi"), (".npz", ".npy"), "Make it.")
    with pytest.raises(FileNotFoundError, match="each of 1 images, 1 are missing: a"):
        find_maps(tmp_path / "none", ["a"], (".npz",), "Make it.")


def test_each_kind_of_file_gives_maps_and_their_classes(image):
    _, folder = image
    write_maps(folder)
    for suffix in (".npz", ".npy"):
        maps, classes = read_map(folder / f"a{suffix}", (1,))
        assert np.array_equal(maps, MAPS) and classes.tolist() == [0, 2]
    maps, classes = read_map(folder / "a.png", (2, 3))  # painted with the first label
    np.testing.assert_allclose(maps, [[[0.2, 0.8, 0.4]]], rtol=1e-6)
    assert classes.tolist() == [2]


def test_saliency_of_an_image_without_classes_is_painted_with_none():
    maps, classes = paint(np.ones((4, 5), np.float32), ())
    assert maps.shape == (0, 4, 5) and classes.shape == (0,) and classes.dtype == np.int64


def test_masks_cams_and_saliency_are_counted_against_their_truth(image):
    record, folder = image
    write_maps(folder)
    write_mask(folder / "mask.png", np.array([[1, 2, 255]], np.uint8))
    counted = count_masks([record], [folder / "mask.png"], 3)
    # Truth 1, 3, 0; 255 counts as background.
    assert np.argwhere(counted.counts).tolist() == [[0, 0], [1, 1], [3, 2]]

    sweep, seeds = ThresholdSweep([0.25], 3), LevelledSeeds((0.6, 0.5, 0.25))
    count_cams([sweep, seeds], [record, record], [folder / "a.npz", folder / "a.npy"], 3)
    # Above 0.25: 0.75 of class 0, 0.5 of class 2, 0.5 of class 0; its own threshold is 0.6.
    assert np.argwhere(sweep.confusion(0.25).counts == 2).tolist() == [[0, 1], [1, 1], [3, 3]]
    assert np.argwhere(seeds.counts == 2).tolist() == [[0, 0], [1, 1], [3, 3]]

    sweep, histogram = ThresholdSweep([0.3], 3), SaliencyHistogram(3)
    count_saliency(sweep, histogram, [record], [folder / "a.png"], 3)
    assert np.argwhere(sweep.confusion(0.3).counts).tolist() == [[0, 1], [1, 0], [3, 1]]
    assert np.argwhere(histogram.counts).tolist() == [[0, 102], [1, 51], [3, 204]]
    unlabelled = Record("b", folder / "b.jpg", (), record.mask)
    count_saliency(sweep, histogram, [unlabelled], [folder / "a.png"], 3)
    assert histogram.counts.sum() == 3 and histogram.defect_free_images == 1


def test_an_error_names_the_file_and_its_mask(image):
    record, folder = image
    write_mask(folder / "mask.png", TRUTH.T)
    message = rf"{folder}/mask\.png against {record.mask}: expected the size"
    with pytest.raises(ValueError, match=message):
        count_masks([record], [folder / "mask.png"], 3)
    for paths in ([], [record.mask] * 2):
        with pytest.raises(ValueError, match="zip"):
            count_masks([record], paths, 3)


@pytest.mark.parametrize("suffix", [".npz", ".npy", ".png"])
@pytest.mark.parametrize("threshold", [0.25, (0.6, 0.5, 0.25)])
def test_details_are_of_maps_cut_at_one_threshold_or_at_one_for_each_class(
    image, suffix, threshold
):
    record, folder = image
    write_maps(folder)
    maps, classes = read_map(folder / f"a{suffix}", record.classes)
    sweep, seeds = ThresholdSweep([0.25], 3), LevelledSeeds((0.6, 0.5, 0.25))
    for counter in (sweep, seeds):
        counter.update(TRUTH, maps, classes)
    expected = seeds if isinstance(threshold, tuple) else sweep.confusion(0.25)
    scores = count_details([record], [folder / f"a{suffix}"], 3, threshold).scores(rounds=2)
    hits, total = np.diag(expected.counts), expected.counts.sum(0) + expected.counts.sum(1)
    dice = [100 * 2 * h / t if t else None for h, t in zip(hits, total, strict=True)]
    assert scores["dice"] == pytest.approx(dice)
    # Values of the defects and the background: of CAMs the highest, 0.75, 0.5 and 0.5; of
    # saliency 0.2, 0.8 and 0.4.
    assert scores["pixel_auroc"] == pytest.approx(50 if suffix == ".png" else 75)


def test_details_take_image_scores_from_the_localiser_or_from_the_map(tmp_path):
    records, folder = [], tmp_path / "maps"
    for name, classes, score in (("a", (0, 2), 0.25), ("b", (), 0.5)):
        truth = TRUTH if classes else 0 * TRUTH
        write_mask(tmp_path / f"{name}.png", truth)
        write_maps(folder, name, scores=(0.0, score, 0.125))
        records.append(Record(name, tmp_path / f"{name}.jpg", classes, tmp_path / f"{name}.png"))
    write_saliency(folder / "b.png", np.array([[0.1, 0.2, 0.3]]))
    np.save(folder / "b.npy", {}, allow_pickle=True)  # without classes, whatever the size
    expected = {".npz": 0, ".png": 100, ".npy": 100}
    for suffix, image_auroc in expected.items():
        paths = [folder / f"{record.name}{suffix}" for record in records]
        assert count_details(records, paths, 3, 0.5).scores(rounds=2)["image_auroc"] == image_auroc


def test_details_of_masks_have_no_scores_of_maps(image):
    record, folder = image
    write_mask(folder / "mask.png", TRUTH)
    counted = count_details([record], [folder / "mask.png"], 3, None)
    scores = counted.scores(rounds=2)
    assert scores["dice"] == [100, 100, None, 100]
    assert not set(LABEL_FREE) & set(scores)
