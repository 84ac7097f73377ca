"""CAM files become refined maps, and those the thresholds of their run."""

from pathlib import Path

import numpy as np
import pytest
import torch

from configs import Config, PseudoLabelConfig, changed
from datasets.files import Cam, read_cam, read_saliency, write_cam, write_image, write_saliency
from datasets.record import Record
from datasets.sources import Data
from inference.refined import RefinedCams, read_cam_of, refined
from models.pamr import pamr
from runfolder.run import Run

CPU = torch.device("cpu")
SIZE = (9, 14)
LABELS = {"a": (0, 1), "b": (1,), "free": ()}


def pixels_and_maps() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8), rng.random((2, *SIZE), np.float32)


def run_of(folder: Path, **values: object) -> Run:
    """Make a run of three images with CAMs and saliency maps."""
    settings = {f"pseudo_label.{key}": value for key, value in values.items()}
    if "cam_type" in values:
        settings["cam.types"] = [values["cam_type"]]
    run = Run(folder, changed(Config(), settings))
    rng, records = np.random.default_rng(1), []
    cam_dir = run.cam_dir(run.config.pseudo_label.cam_type, "given")
    for name, classes in LABELS.items():
        image = folder / f"images/{name}.png"
        write_image(image, rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
        write_saliency(run.saliency_dir / f"{name}.png", rng.random(SIZE))
        maps = rng.random((len(classes), *SIZE), np.float32)
        scores = np.array([float(k in classes) for k in range(2)], np.float32)
        write_cam(cam_dir / f"{name}.npz", Cam(maps, np.array(classes, np.int64), scores))
        records.append(Record(name, image, classes))
    run.data = Data(("crack", "dent"), {"train": tuple(records), "fit": tuple(records)})
    return run


def record_of(run: Run, name: str) -> Record:
    return next(record for record in run.data.split("train") if record.name == name)


def test_maps_are_refined_as_the_setting_says():
    image, maps = pixels_and_maps()
    pixels, values = torch.from_numpy(image).permute(2, 0, 1).float(), torch.from_numpy(maps)
    by_pamr = refined(image, maps, PseudoLabelConfig(pamr_steps=2), CPU)
    np.testing.assert_array_equal(by_pamr, pamr(pixels, values, 2).numpy())
    assert by_pamr.dtype == np.float32
    off = PseudoLabelConfig(pamr_steps=0)
    np.testing.assert_array_equal(refined(image, maps, off, CPU), maps)


@pytest.mark.parametrize("steps", [0, 1])
def test_no_map_stays_no_map(steps):
    image, maps = pixels_and_maps()
    none = refined(image, maps[:0], PseudoLabelConfig(pamr_steps=steps), CPU)
    assert none.shape == (0, *SIZE)


def test_maps_are_the_cams_of_the_chosen_type(tmp_path):
    run = run_of(tmp_path, cam_type="patchcam", pamr_steps=0)
    cams = RefinedCams(run, CPU, with_saliency=True)
    assert cams.cam_dir == tmp_path / "cams/patchcam/given"
    assert cams.place == ("patchcam", "refined")  # weighted by nothing
    expected = read_cam(cams.cam_dir / "a.npz").cam
    np.testing.assert_array_equal(cams.maps(record_of(run, "a")), expected)
    assert cams.maps(record_of(run, "free")).shape == (0, *SIZE)


def test_saliency_weighs_the_maps_only_where_asked(tmp_path):
    run = run_of(tmp_path, pamr_steps=0, saliency_weight=0.25)
    weighed = RefinedCams(run, CPU, with_saliency=True)
    alone = RefinedCams(run, CPU, with_saliency=False)
    assert (weighed.place.maps, alone.place.maps) == ("refined_with_saliency", "refined")
    cam = read_cam(weighed.cam_dir / "a.npz").cam
    saliency = read_saliency(run.saliency_dir / "a.png")
    record = record_of(run, "a")
    np.testing.assert_allclose(weighed.maps(record), cam**0.75 * saliency**0.25, rtol=1e-6)
    np.testing.assert_array_equal(alone.maps(record), cam)


def test_the_files_that_maps_are_made_of_are_named(tmp_path):
    run = run_of(tmp_path, saliency_weight=0.25)
    weighed = RefinedCams(run, CPU, with_saliency=True)
    record, free = record_of(run, "a"), record_of(run, "free")
    files = [record.image, weighed.cam_dir / "a.npz"]
    assert weighed.sources(record) == [*files, run.saliency_dir / "a.png"]
    assert weighed.sources(free) == [free.image, weighed.cam_dir / "free.npz"]
    assert RefinedCams(run, CPU, with_saliency=False).sources(record) == files


def test_maps_of_another_size_than_their_image_are_refused(tmp_path):
    run = run_of(tmp_path, saliency_weight=0.25)
    cams = RefinedCams(run, CPU, with_saliency=True)
    write_saliency(run.saliency_dir / "b.png", np.zeros((14, 9)))
    expected = r"saliency.b\.png: expected the image's size \(9, 14\), got \(14, 9\)\. Run make_sal"
    with pytest.raises(ValueError, match=expected):
        cams.maps(record_of(run, "b"))
    write_image(record_of(run, "b").image, np.zeros((14, 9), np.uint8))
    expected = r"b\.npz: expected the image's size \(14, 9\), got \(9, 14\)\. Run make_cams\.py ag"
    with pytest.raises(ValueError, match=expected):
        cams.maps(record_of(run, "b"))


def test_cams_of_other_classes_are_refused(tmp_path):
    run = run_of(tmp_path)
    cam_dir = run.cam_dir("fused", "given")
    with pytest.raises(ValueError, match=r"a\.npz: expected scores of 3 classes, got 2\. Run make"):
        read_cam_of(record_of(run, "a"), cam_dir, 3)
    other = Record("a", tmp_path / "images/a.png", (1,))
    expected = r"a\.npz: expected CAMs of the image's classes \[1\], got \[0, 1\]\. Run make_cams"
    with pytest.raises(ValueError, match=expected):
        read_cam_of(other, cam_dir, 2)
    assert read_cam_of(record_of(run, "a"), cam_dir, 2).classes.tolist() == [0, 1]


def test_thresholds_lie_between_the_two_values_of_the_maps(tmp_path):
    run = run_of(tmp_path, pamr_steps=0)
    cams = RefinedCams(run, CPU, with_saliency=False)
    half = np.zeros(SIZE, np.float32)
    half[:, 7:] = 0.75
    for name, classes in LABELS.items():
        maps = np.stack([half] * len(classes)) if classes else np.zeros((0, *SIZE), np.float32)
        write_cam(cams.cam_dir / f"{name}.npz", Cam(maps, np.array(classes, np.int64), np.ones(2)))
        write_saliency(run.saliency_dir / f"{name}.png", half)
    for rule in ("auto", "class"):  # half of 0.75, the levels to either side of which are equal
        assert cams.thresholds(rule) == pytest.approx([0.375, 0.375], abs=0.01)
    assert cams.thresholds("fixed") == [run.config.pseudo_label.threshold] * 2
    assert all(0 < threshold < 0.75 for threshold in cams.thresholds("agreement"))


def test_maps_of_one_value_give_no_threshold_and_name_their_folder(tmp_path):
    run = run_of(tmp_path, pamr_steps=0)
    cams = RefinedCams(run, CPU, with_saliency=False)
    for name, classes in LABELS.items():
        maps = np.full((len(classes), *SIZE), 0.5, np.float32)
        write_cam(cams.cam_dir / f"{name}.npz", Cam(maps, np.array(classes, np.int64), np.ones(2)))
    expected = r"cams.fused.given: maps: expected two or more different values, got 1"
    with pytest.raises(ValueError, match=expected):
        cams.thresholds("auto")
