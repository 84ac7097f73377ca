"""Thresholds of pseudo labels that are learnt from the training CAMs, and those that are kept."""

import json

import numpy as np
import pytest

from datasets.files import write_cam
from runfolder.run import CamMeta, write_meta


def thresholds_of(cam_run) -> list[float]:
    return cam_run.meta()["made_from"]["thresholds"]


def scale_class(cam_run, name: str, k: int, factor: float) -> None:
    """Multiply the map of a class."""
    cam = cam_run.cam_of(cam_run.labels[name])
    factors = np.where(np.array(cam.classes)[:, None, None] == k, factor, 1)
    write_cam(cam_run.cam_path(name), cam._replace(cam=factors * cam.cam))


def test_automatic_threshold_separates_the_training_cams(cam_run):
    # The pooled maxima are .125 and .875; counted in levels of 1/255 (32 and 223) their middle
    # is 127.5 / 255. The CAM of the test split, much lower, has no part in it.
    scale_class(cam_run, "1t", 1, 0.1)

    cam_run.make("pseudo_label.threshold_rule=class")

    assert thresholds_of(cam_run) == pytest.approx([0.5] * 3)
    assert cam_run.meta()["settings"]["threshold_rule"] == "class"
    assert (cam_run.mask("d")[4:6, :5] == 3).all()
    assert (cam_run.mask("1t") == 255).all()  # labelled, but nothing reaches the threshold


@pytest.mark.parametrize(
    ("rule", "expected"), [("class", [0.5, 0.5, 0.151]), ("auto", [0.569] * 3)]
)
def test_a_faint_class_gets_a_threshold_of_its_own(cam_run, rule, expected):
    # Class 2: .0375 and .2625, in levels 10 and 67, so 38.5 / 255. The maxima of all classes
    # together, of one image of class 0, are in levels 10, 32, 67 and 223, in 50, 90, 20 and 20
    # pixels: the best cut is the last one, 145 / 255.
    for name in ("b", "d"):
        scale_class(cam_run, name, 2, 0.3)

    cam_run.make(f"pseudo_label.threshold_rule={rule}")

    assert thresholds_of(cam_run) == pytest.approx(expected, abs=0.01)
    is_seen = (cam_run.mask("d")[4:6, :5] == 3).all()
    assert is_seen == (rule == "class")


def test_a_class_without_two_values_gets_the_threshold_of_all(cam_run):
    for name in ("b", "1t"):
        scale_class(cam_run, name, 1, 0)

    cam_run.make("pseudo_label.threshold_rule=class")

    assert thresholds_of(cam_run) == pytest.approx([0.5] * 3)


def test_by_default_seeds_agree_with_the_saliency_maps(cam_run):
    # The CAM of class 2 is .4375 in its left part, of 4 columns, and .875 in the rest; salient is
    # all of its block. Otsu's method would leave the left part out.
    for name, classes in cam_run.labels.items():
        cam = cam_run.cam_of(classes)
        maps = cam.cam.copy()
        cam_run.write_saliency(name, maps.max(axis=0, initial=0.125))
        maps[np.array(classes) == 2, 4:6, :4] = 0.4375
        write_cam(cam_run.cam_path(name), cam._replace(cam=maps))

    cam_run.make()

    assert cam_run.meta()["settings"]["threshold_rule"] == "agreement"
    assert thresholds_of(cam_run) == pytest.approx([32.5 / 255] * 3)  # the lowest above .125
    assert (cam_run.mask("d")[4:6, :5] == 3).all()


def test_automatic_threshold_needs_a_defect(cam_run):
    for name in cam_run.labels:
        write_cam(cam_run.cam_path(name), cam_run.cam_of(()))
    rows = "".join(f"{name},\n" for name in cam_run.labels)
    (cam_run.folder / "labels.csv").write_text(f"name,classes\n{rows}")

    expected = r"cams/fused/given: .* two or more different values, got 0\. Check"
    with pytest.raises(ValueError, match=expected):
        cam_run.make()


def test_maps_weighted_by_saliency_do_not_hide_the_thresholds_of_the_cams(cam_run):
    for name, classes in cam_run.labels.items():
        values = cam_run.cam_of(classes).cam.max(axis=0, initial=0.125)
        cam_run.write_saliency(name, np.where(values > 0.5, 0.25, 0))

    cam_run.make("pseudo_label.saliency_weight=0.5")

    weighted, alone = (cam_run.kept(m)["agreement"] for m in ("refined_with_saliency", "refined"))
    assert weighted == pytest.approx([0.5 / 255] * 3)  # all but the maps' zeros
    assert thresholds_of(cam_run) == weighted
    assert alone == pytest.approx([32.5 / 255] * 3)  # the lowest above .125


def test_kept_thresholds_are_taken_until_settings_or_maps_change(cam_run):
    folder, rule = cam_run.cam_path("a").parent, "pseudo_label.threshold_rule=class"
    write_meta(folder, CamMeta("fused", "given", {}, "checkpoint.pt", {"epoch": 1}))
    cam_run.make(rule)
    path = cam_run.folder / "thresholds.json"
    content = json.loads(path.read_text())
    assert content["fused"]["refined"]["class"] == thresholds_of(cam_run)
    content["fused"]["refined"]["class"] = [0.25] * 3  # so that it is seen where they come from

    def made_again(*changes: str) -> list[float]:
        path.write_text(json.dumps(content))
        cam_run.make(rule, *changes)
        return thresholds_of(cam_run)

    assert made_again() == [0.25] * 3
    assert made_again("pseudo_label.threshold=0.3") == pytest.approx([0.5] * 3)
    write_meta(folder, CamMeta("fused", "given", {}, "checkpoint.pt", {"epoch": 2}))
    assert made_again() == pytest.approx([0.5] * 3)


def test_thresholds_of_cams_without_meta_are_counted_anew(cam_run):
    cam_run.make("pseudo_label.threshold_rule=class")
    for name in cam_run.labels:
        scale_class(cam_run, name, 0, 0.5)
    cam_run.make("pseudo_label.threshold_rule=class")
    assert thresholds_of(cam_run) == pytest.approx([64 / 255, 0.5, 0.5])
