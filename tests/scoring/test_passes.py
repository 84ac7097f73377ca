"""What a pass over files hands to the counters."""

import numpy as np
import pytest

from datasets.files import Cam, write_cam, write_mask, write_saliency
from datasets.record import Record
from scoring.detailed import DetailedScores
from scoring.passes import count_details


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
