"""thresholds.json: found once without masks, kept, and found anew when what they depend on is."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from configs import Config, changed
from datasets.record import Record
from datasets.sources import Data
from runfolder.run import CamMeta, Run, SaliencyMeta, write_meta
from runfolder.thresholds import (
    MAPS,
    Place,
    mask_free_thresholds,
    rule_for_new_images,
    thresholds_for_new_images,
)
from scoring.thresholds import MapCounts

RAW = Place("fused", "raw")


class Counter:
    """Counts maps whose values are 0 and `high`, and how often it was asked to."""

    def __init__(self, high: float = 0.8):
        self.high, self.calls = high, 0

    def __call__(self) -> MapCounts:
        self.calls += 1
        counts = MapCounts(2, salient_from=0.5)
        for k in range(2):
            maps = np.array([[[0.0, self.high]]])
            counts.add(maps, (k,), np.array([[0.0, 1.0]]))
        return counts


def run_of(folder: Path, **values: object) -> Run:
    run = Run(folder, changed(Config(), values))
    records = tuple(Record(name, folder / f"{name}.png", (0,)) for name in "ab")
    run.data = data_of(records)
    return run


def data_of(records: tuple[Record, ...]) -> Data:
    """Return data with one image of each class held out."""
    val = tuple(Record(f"val_{k}", Path(f"val_{k}.png"), (k,)) for k in range(2))
    splits = {"train": (*records, *val), "fit": records, "val": val}
    return Data(("dent", "scratch"), splits)


def cam_meta(cam_type: str = "fused", epoch: int = 1) -> CamMeta:
    return CamMeta(cam_type, "given", {}, "checkpoint.pt", {"epoch": epoch})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = run_of(tmp_path)
    for cam_type in ("fused", "patchcam"):
        write_meta(run.cam_dir(cam_type, "given"), cam_meta(cam_type))
    return run


def test_new_maps_of_the_same_meta_and_new_labels_are_counted_anew(run):
    count = Counter()
    mask_free_thresholds(run, RAW, ["auto"], count)
    mask_free_thresholds(run, RAW, ["auto"], count)
    assert count.calls == 1

    meta = run.cam_dir("fused", "given") / "meta.json"
    os.utime(meta, ns=(0, meta.stat().st_mtime_ns + 10**9))  # written again by make_cams.py
    mask_free_thresholds(run, RAW, ["auto"], count)
    assert count.calls == 2

    records = tuple(Record(name, run.folder / f"{name}.png", (1,)) for name in "ab")
    run.data = data_of(records)
    mask_free_thresholds(run, RAW, ["auto"], count)
    assert count.calls == 3


def test_missing_thresholds_of_new_images_are_said(run, capsys):
    assert thresholds_for_new_images(run, ["dent", "scratch"]) == [0.6, 0.6]
    assert "warning: " in capsys.readouterr().out
    fixed = run_of(run.folder, **{"pseudo_label.threshold_rule": "fixed"})
    assert thresholds_for_new_images(fixed, ["dent", "scratch"]) == [0.6, 0.6]
    assert capsys.readouterr().out == ""


def kept(run: Run) -> dict:
    return json.loads(run.thresholds_path.read_text())


# Of the levels 0 and 204 (0.8) of 255.
OTSU, LOWEST_ABOVE = 0.4, 0.5 / 255


def test_thresholds_are_kept_and_taken_from_the_file(run):
    count = Counter()
    for _ in range(3):
        thresholds = mask_free_thresholds(run, RAW, ["agreement", "auto"], count)
        assert thresholds["auto"] == pytest.approx([OTSU, OTSU])
        assert thresholds["agreement"] == pytest.approx([LOWEST_ABOVE, LOWEST_ABOVE])
        assert list(thresholds) == ["agreement", "auto"]
    assert count.calls == 1

    content = kept(run)
    made_with = content["fused"]["raw"].pop("made_with")
    assert content == {"fused": {"raw": thresholds}}
    assert len(made_with) == 12

    content["fused"]["raw"] |= {"auto": [0.1, 0.2], "made_with": made_with}
    run.thresholds_path.write_text(json.dumps(content))
    assert mask_free_thresholds(run, RAW, ["auto"], count) == {"auto": [0.1, 0.2]}
    assert count.calls == 1


def test_a_rule_that_is_missing_is_added(run):
    count = Counter()
    mask_free_thresholds(run, RAW, ["auto"], count)
    first = kept(run)["fused"]["raw"]
    mask_free_thresholds(run, RAW, ["class", "auto"], count)

    assert count.calls == 2
    assert kept(run)["fused"]["raw"] == {**first, "class": pytest.approx([OTSU, OTSU])}


@pytest.mark.parametrize("what", ["cams", "saliency", "settings", "images"])
def test_thresholds_are_found_anew_when_what_they_depend_on_has_changed(run, tmp_path, what):
    mask_free_thresholds(run, RAW, ["auto", "class"], Counter())
    before = kept(run)["fused"]["raw"]["made_with"]
    if what == "cams":
        write_meta(run.cam_dir("fused", "given"), cam_meta(epoch=2))
    elif what == "saliency":
        write_meta(run.saliency_dir, SaliencyMeta({}, {}, ["train"]))
    elif what == "settings":
        run = run_of(tmp_path, **{"pseudo_label.salient_from": 0.25})
    else:
        run.data.splits["fit"] = run.data.splits["fit"][:1]

    count = Counter(high=0.6)
    assert mask_free_thresholds(run, RAW, ["auto"], count)["auto"] == pytest.approx([0.3, 0.3])
    assert count.calls == 1
    assert set(kept(run)["fused"]["raw"]) == {"auto", "made_with"}  # the old class is gone
    assert kept(run)["fused"]["raw"]["made_with"] != before


def test_settings_of_other_stages_and_held_out_images_do_not_matter(run, tmp_path):
    mask_free_thresholds(run, RAW, ["auto"], Counter())
    count = Counter()
    other = run_of(tmp_path, **{"segmentation.epochs": 3, "data.workers": 2})
    other.data.splits["train"] = other.data.splits["fit"]
    del other.data.splits["val"]
    mask_free_thresholds(other, RAW, ["auto"], count)
    assert count.calls == 0


def test_maps_that_say_nothing_of_their_making_are_counted_every_time(run):
    (run.cam_dir("fused", "given") / "meta.json").unlink()
    count = Counter()
    for calls in (1, 2):
        mask_free_thresholds(run, RAW, ["auto"], count)
        assert count.calls == calls
    assert kept(run)["fused"]["raw"]["made_with"] == ""


def test_every_type_and_kind_of_map_has_its_own_thresholds(run):
    places = [Place(cam_type, maps) for cam_type in ("fused", "patchcam") for maps in MAPS]
    highs = dict(zip(places, (0.2, 0.4, 0.6, 0.8, 0.9, 1.0), strict=True))
    for place, high in highs.items():
        mask_free_thresholds(run, place, ["auto"], Counter(high))

    made_with = {kept(run)[p.cam_type][p.maps]["made_with"] for p in places}
    assert len(made_with) == len(places)
    for place, high in highs.items():
        count = Counter()
        (threshold, _) = mask_free_thresholds(run, place, ["auto"], count)["auto"]
        assert threshold == pytest.approx(high / 2, abs=1 / 255)
        assert count.calls == 0


def test_the_fixed_rule_is_the_setting_and_counts_nothing(tmp_path):
    run, count = run_of(tmp_path, **{"pseudo_label.threshold": 0.7}), Counter()
    assert mask_free_thresholds(run, RAW, ["fixed"], count) == {"fixed": [0.7, 0.7]}
    assert count.calls == 0
    assert not run.thresholds_path.exists()


def test_maps_of_one_value_leave_no_thresholds(run):
    with pytest.raises(ValueError, match="expected two or more different values, got 1"):
        mask_free_thresholds(run, RAW, ["auto"], Counter(high=0))
    assert not run.thresholds_path.exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"fused": 3}'])
def test_a_damaged_file_is_named_with_its_remedy(run, text):
    run.thresholds_path.write_text(text)
    expected = r"thresholds\.json: expected thresholds by CAM type, got: .*\. Remove the file\."
    with pytest.raises(ValueError, match=expected):
        mask_free_thresholds(run, RAW, ["auto"], Counter())
    with pytest.raises(ValueError, match=expected):
        thresholds_for_new_images(run, ("dent", "scratch"))


def test_new_images_are_cut_at_the_thresholds_of_refined_maps(run, tmp_path):
    names = ("dent", "scratch")
    mask_free_thresholds(run, RAW, ["agreement", "auto"], Counter())
    assert thresholds_for_new_images(run, names) == [0.6, 0.6]  # pseudo_label.threshold: no refined

    refined = Place("fused", "refined")
    found = mask_free_thresholds(run, refined, ["agreement", "auto"], Counter(high=0.6))
    assert rule_for_new_images(run) == "agreement"
    assert thresholds_for_new_images(run, names) == found["agreement"]
    auto = run_of(tmp_path, **{"pseudo_label.threshold_rule": "auto"})
    assert thresholds_for_new_images(auto, names) == found["auto"]
    fixed = run_of(tmp_path, **{"pseudo_label.threshold_rule": "fixed"})
    assert thresholds_for_new_images(fixed, names) == [0.6, 0.6]
    other_type = run_of(
        tmp_path, **{"cam.types": ["fused", "patchcam"], "pseudo_label.cam_type": "patchcam"}
    )
    assert thresholds_for_new_images(other_type, names) == [0.6, 0.6]


@pytest.mark.parametrize("rule", ["agreement", "class", "auto", "fixed"])
def test_where_cams_are_weighted_by_saliency_new_images_take_the_agreement(tmp_path, rule):
    settings = {"pseudo_label.threshold_rule": rule, "pseudo_label.saliency_weight": 0.5}
    assert rule_for_new_images(run_of(tmp_path, **settings)) == "agreement"
    assert rule_for_new_images(run_of(tmp_path, **{"pseudo_label.threshold_rule": rule})) == rule


def test_thresholds_of_other_classes_are_refused(run):
    mask_free_thresholds(run, Place("fused", "refined"), ["agreement"], Counter())
    expected = r"thresholds\.json: expected thresholds of 3 classes, got 2\. Run make_pseudo_labels"
    with pytest.raises(ValueError, match=expected):
        thresholds_for_new_images(run, ("dent", "scratch", "fray"))
