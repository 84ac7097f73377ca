"""From CAM files to mask files: what is written, when it is made anew, and what is refused."""

import fcntl
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import make_pseudo_labels
from configs import load
from datasets.files import voc_palette, write_cam, write_image, write_mask
from execution import cores
from runfolder.run import CamMeta, write_meta


@pytest.mark.parametrize("few", [64, 0])  # 0: in processes
def test_a_stopped_call_goes_on(cam_run, few, monkeypatch):
    monkeypatch.setattr(cores, "FEW", few)
    monkeypatch.setattr(make_pseudo_labels, "processes_for", lambda _: 2)

    def make() -> None:
        cam_run.make_fixed(0.5, flags=("--split", "train"))

    cam = cam_run.cam_path("e")
    good = cam.read_bytes()
    cam.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"e\.npz"):
        make()
    assert cam_run.meta() == {"unfinished": True}
    assert cam_run.mask_path("a").exists()

    cam.write_bytes(good)
    write_mask(cam_run.mask_path("a"), np.full(cam_run.size, 3, np.uint8))
    make()
    assert (cam_run.mask("a") == 3).all()  # was not made again
    assert (cam_run.mask("e")[0:2, :5] == 1).all()

    make()  # complete: begins anew
    assert (cam_run.mask("a")[0:2, :5] == 1).all()
    assert not cam_run.meta_path().with_name("begun.json").exists()


def killed_while_writing(path: Path) -> None:
    def kill(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    Path.replace = kill  # in this process alone
    write_mask(path, np.zeros((6, 10), np.uint8))


def test_what_a_killed_call_left_half_written_goes_with_the_next_one(cam_run):
    path = cam_run.mask_path("a")
    writer = multiprocessing.get_context("fork").Process(target=killed_while_writing, args=(path,))
    writer.start()
    writer.join()
    assert writer.exitcode == -signal.SIGKILL
    (left,) = path.parent.iterdir()
    cam_run.make_fixed(0.5)
    assert not left.exists()
    assert cam_run.names() == set(cam_run.labels)


def test_a_folder_that_another_call_writes_to_is_left_alone(cam_run):
    with (cam_run.folder / ".pseudo_labels.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="pseudo_labels: expected to write here alone"):
            cam_run.make_fixed(0.5)
    assert cam_run.names() == set()


def test_masks_of_other_settings_are_made_again(cam_run):
    cam = cam_run.cam_path("e")
    good = cam.read_bytes()
    cam.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"e\.npz"):
        cam_run.make_fixed(0.9)
    assert not (cam_run.mask("a") == 1).any()
    cam.write_bytes(good)
    cam_run.make_fixed(0.5)
    assert (cam_run.mask("a")[0:2, :5] == 1).all()


def test_train_and_test_get_palette_masks_without_any_ground_truth(cam_run, capsys):
    cam_run.make_fixed(0.5)

    expected = np.zeros(cam_run.size, np.uint8)
    expected[2:4, :5], expected[4:6, :5] = 2, 3
    assert np.array_equal(cam_run.mask("b"), expected)
    assert not cam_run.mask("c").any()
    assert cam_run.names() == set(cam_run.labels)
    picture = Image.open(cam_run.mask_path("b"))
    assert picture.mode == "P"
    assert picture.getpalette()[:12] == voc_palette()[:4].reshape(-1).tolist()
    settings = {"cam_type": "fused", "threshold_rule": "fixed", "threshold": 0.5}
    settings |= {"salient_from": 0.0, "saliency_weight": 0.0, "pamr_steps": 0}
    made_from = {"thresholds": [0.5] * 3}
    assert cam_run.meta() == {"settings": settings, "made_from": made_from, "masked": []}

    printed = capsys.readouterr().out
    # Train: 5 images of 60 pixels; blocks of 10: class 0 twice, 1 once, 2 twice. 10 / 300 = 3.33 %
    shares = "background 83.33 %, inclusion 6.67 %, patches 3.33 %, scratches 6.67 %, ignored 0.00"
    assert shares in printed
    assert "test: wrote 2 pseudo labels" in printed
    assert "without any foreground: 0 images\n" in printed
    assert "next: python -m segmentation.train" in printed


def test_saliency_weighs_the_cams_as_a_geometric_mean(cam_run):
    # sqrt(.875 * .5) = .661 and sqrt(.875 * .25) = .468, so .55 keeps the left part alone.
    saliency = np.full(cam_run.size, 0.25)
    saliency[:, :3] = 0.5
    for name in cam_run.labels:
        cam_run.write_saliency(name, saliency)

    cam_run.make_fixed(0.55, "pseudo_label.saliency_weight=0.5")

    expected = np.zeros(cam_run.size, np.uint8)
    expected[4:6, :3] = 3
    assert np.array_equal(cam_run.mask("d"), expected)


def test_saliency_of_another_size_is_refused(cam_run):
    for name in cam_run.labels:
        cam_run.write_saliency(name, np.zeros((3, 4)))

    expected = r"a\.png: expected the image's size \(6, 10\), got \(3, 4\)\. Run make_saliency\.py"
    with pytest.raises(ValueError, match=expected):
        cam_run.make("pseudo_label.saliency_weight=0.5", "pseudo_label.threshold_rule=class")
    expected = r"CAMs of a: expected a saliency map of the size \(6, 10\), got \(3, 4\)"
    with pytest.raises(ValueError, match=expected):
        cam_run.make("pseudo_label.threshold_rule=agreement")


def test_refinement_moves_the_border_to_the_edge_of_the_image(cam_run):
    # The CAM of class 0 ends at row 2; the bright part of the image ends at row 3.
    picture = np.zeros((*cam_run.size, 3), np.uint8)
    picture[:3] = 200
    write_image(cam_run.image_path("a"), picture)

    cam_run.make_fixed(0.3, "pseudo_label.pamr_steps=10")

    rows = (cam_run.mask("a") == 1).any(axis=1)
    assert rows.tolist() == [True, True, True, False, False, False]


def test_labelled_images_that_lost_their_foreground_are_counted_and_named(cam_run, capsys):
    cam_run.make_fixed(0.9, flags=("--split", "train"))

    assert "labelled, but without any foreground: 4 images (a, b, d, e)" in capsys.readouterr().out


def test_evaluation_split_without_cams_is_left_out(cam_run):
    for name in ("1t", "2t"):
        cam_run.cam_path(name).unlink()

    cam_run.make_fixed(0.5)

    assert cam_run.names() == {"a", "b", "c", "d", "e"}


def test_missing_cams_are_counted_and_named_before_anything_is_written(cam_run):
    for name in ("a", "d", "e"):
        cam_run.cam_path(name).unlink()

    expected = r"of 5 images, 3 are missing: a\.npz, d\.npz, e\.npz\. Run make_cams\.py"
    with pytest.raises(FileNotFoundError, match=expected):
        cam_run.make()
    assert not cam_run.meta_path().parent.exists()


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda run: run.cam_of((0,))._replace(scores=np.ones(5, np.float32)), "3 classes, got 5"),
        (lambda run: run.cam_of((1,)), r"of the image's classes \[0\], got \[1\]"),
        (lambda run: run.cam_of((0,), (10, 6)), r"image's size \(6, 10\), got \(10, 6\)"),
    ],
    ids=["class count", "labels", "size"],
)
def test_cams_that_do_not_fit_are_refused_by_name(cam_run, damage, expected):
    write_cam(cam_run.cam_path("a"), damage(cam_run))

    with pytest.raises(ValueError, match=rf"a\.npz: expected .*{expected}"):
        cam_run.make("pseudo_label.threshold_rule=class")
    assert cam_run.meta() == {"unfinished": True}


def test_cams_are_those_of_the_chosen_type(cam_run):
    chosen = ['cam.types=["fused","patchcam"]', "pseudo_label.cam_type=patchcam"]
    folder = cam_run.folder / "cams/patchcam/given"
    with pytest.raises(FileNotFoundError, match=r"cams/patchcam/given: expected the CAMs"):
        cam_run.make_fixed(0.5, *chosen)
    folder.parent.mkdir()
    cam_run.cam_path("a").parent.rename(folder)
    cam_run.make_fixed(0.5, *chosen)
    assert (cam_run.mask("a")[0:2, :5] == 1).all()
    write_meta(folder, CamMeta("fused", "given", {}, "checkpoint.pt", {}))
    with pytest.raises(ValueError, match="CAMs of type patchcam with labels given, got fused"):
        cam_run.make_fixed(0.5, *chosen)


def test_config_of_the_run_is_saved(cam_run):
    cam_run.make_fixed(0.25)

    assert load(cam_run.folder / "config.toml").pseudo_label.threshold == 0.25


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit, match="0"):
        make_pseudo_labels.main(["--help"])
    printed = capsys.readouterr().out
    assert all(flag in printed for flag in ("--config", "--out", "--set", "--device", "--split"))
