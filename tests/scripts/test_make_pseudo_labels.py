import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import make_pseudo_labels
from configs.loading import load
from datasets.files import (
    Cam,
    read_mask,
    voc_palette,
    write_cam,
    write_image,
    write_mask,
    write_saliency,
)

LABELS = {
    "a": (0,), "b": (1, 2), "c": (), "d": (2,), "e": (0,),
    "1t": (1,), "2t": (),
}  # fmt: skip
SIZE = (6, 10)
PLAIN = ["--set", "pseudo_label.saliency_weight=0", "pseudo_label.pamr_steps=0"]
CLASSES = ("inclusion", "patches", "scratches")
HALF = (0.5, 0.5, 0.5)


@pytest.fixture
def run(tmp_path: Path) -> list[str]:
    """A run on images of the NEU-Seg layout with image labels and CAMs, without any mask.

    Every CAM is 0.125 but for a 2 x 5 block (columns of its class) of 0.875.
    """
    for name in LABELS:
        split = "test" if name.endswith("t") else "training"
        path = tmp_path / f"data/images/{split}/{name.removesuffix('t')}.png"
        write_image(path, np.zeros((*SIZE, 3), np.uint8))
        write_cam(tmp_path / f"run/cams/fused/given/{name}.npz", cam_of(LABELS[name]))
    rows = [f"{n},{'|'.join(CLASSES[k] for k in ks)}" for n, ks in LABELS.items()]
    (tmp_path / "run/labels.csv").write_text("\n".join(["name,classes", *rows]) + "\n")
    config = tmp_path / "config.toml"
    config.write_text(f'[data]\nsource = "neu_seg"\nroot = "{tmp_path / "data"}"\n')
    return ["--config", str(config), "--out", str(tmp_path / "run"), *PLAIN]


def cam_of(classes: tuple[int, ...], size: tuple[int, int] = SIZE) -> Cam:
    maps = np.full((len(classes), *size), 0.125, np.float32)
    for i, k in enumerate(classes):
        maps[i, 2 * k : 2 * k + 2, :5] = 0.875
    scores = np.array([float(k in classes) for k in range(3)], np.float32)
    return Cam(maps, np.array(classes, np.int64), scores)


def fixed(threshold: float) -> list[str]:
    return ["--set", "pseudo_label.threshold_rule=fixed", f"pseudo_label.threshold={threshold}"]


def thresholds_in(tmp_path: Path, maps: str = "refined") -> dict:
    """Return what thresholds.json keeps of a kind of map."""
    return json.loads((tmp_path / "run/thresholds.json").read_text())["fused"][maps]


def meta_in(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "run/pseudo_labels/meta.json").read_text())


def mask_in(tmp_path: Path, name: str) -> np.ndarray:
    return read_mask(tmp_path / f"run/pseudo_labels/{name}.png", 3)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stopped_call_goes_on(run, tmp_path, monkeypatch, workers):
    call = [*run, *fixed(0.5), f"data.workers={workers}"]
    cam = tmp_path / "run/cams/fused/given/e.npz"
    good = cam.read_bytes()
    cam.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"e\.npz"):
        make_pseudo_labels.main(call)
    assert not (tmp_path / "run/pseudo_labels/meta.json").exists()
    assert (tmp_path / "run/pseudo_labels/a.png").exists()

    cam.write_bytes(good)
    write_mask(tmp_path / "run/pseudo_labels/a.png", np.full(SIZE, 3, np.uint8))
    make_pseudo_labels.main(call)
    assert (mask_in(tmp_path, "a") == 3).all()  # was not made again
    assert (mask_in(tmp_path, "e")[0:2, :5] == 1).all()

    make_pseudo_labels.main(call)  # complete: begins anew
    assert (mask_in(tmp_path, "a")[0:2, :5] == 1).all()
    assert not (tmp_path / "run/pseudo_labels/begun.json").exists()


def test_masks_of_other_settings_are_made_again(run, tmp_path):
    cam = tmp_path / "run/cams/fused/given/e.npz"
    good = cam.read_bytes()
    cam.write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"e\.npz"):
        make_pseudo_labels.main([*run, *fixed(0.9)])
    cam.write_bytes(good)
    make_pseudo_labels.main([*run, *fixed(0.5)])
    assert (mask_in(tmp_path, "a")[0:2, :5] == 1).all()


def test_the_crf_is_an_option(run, tmp_path):
    picture = np.zeros((*SIZE, 3), np.uint8)
    picture[:3] = 200
    write_image(tmp_path / "data/images/training/a.png", picture)
    crf = ["pseudo_label.refine=crf", "pseudo_label.pamr_steps=5"]
    make_pseudo_labels.main([*run, *fixed(0.4), *crf])
    rows = (mask_in(tmp_path, "a") == 1).any(axis=1)
    assert rows.tolist()[3:] == [False, False, False]
    assert rows[0]


def test_train_and_test_get_palette_masks_without_any_ground_truth(run, tmp_path, capsys):
    make_pseudo_labels.main([*run, *fixed(0.5)])

    expected = np.zeros(SIZE, np.uint8)
    expected[2:4, :5], expected[4:6, :5] = 2, 3
    assert np.array_equal(mask_in(tmp_path, "b"), expected)
    assert not mask_in(tmp_path, "c").any()
    assert {p.stem for p in (tmp_path / "run/pseudo_labels").glob("*.png")} == set(LABELS)
    picture = Image.open(tmp_path / "run/pseudo_labels/b.png")
    assert picture.mode == "P"
    assert picture.getpalette()[:12] == voc_palette()[:4].reshape(-1).tolist()
    settings = {"cam_type": "fused", "threshold_rule": "fixed", "threshold": 0.5}
    settings |= {"salient_from": 0.0, "saliency_weight": 0.0, "refine": "pamr", "pamr_steps": 0}
    assert meta_in(tmp_path) == {"settings": settings, "made_from": {"thresholds": [0.5] * 3}}

    printed = capsys.readouterr().out
    # Train: 5 images of 60 pixels; blocks of 10: class 0 twice, 1 once, 2 twice. 10 / 300 = 3.33 %
    shares = "background 83.33 %, inclusion 6.67 %, patches 3.33 %, scratches 6.67 %, ignored 0.00"
    assert shares in printed
    assert "test: wrote 2 pseudo labels" in printed
    assert "without any foreground: 0 images\n" in printed
    assert "next: python -m segmentation.train" in printed


def test_saliency_weighs_the_cams_as_a_geometric_mean(run, tmp_path):
    # sqrt(.875 * .5) = .661 and sqrt(.875 * .25) = .468, so .55 keeps the left part alone.
    saliency = np.full(SIZE, 0.25)
    saliency[:, :3] = 0.5
    for name in LABELS:
        write_saliency(tmp_path / f"run/saliency/{name}.png", saliency)

    make_pseudo_labels.main([*run, *fixed(0.55), "pseudo_label.saliency_weight=0.5"])

    expected = np.zeros(SIZE, np.uint8)
    expected[4:6, :3] = 3
    assert np.array_equal(mask_in(tmp_path, "d"), expected)


def test_saliency_of_another_size_is_refused(run, tmp_path):
    for name in LABELS:
        write_saliency(tmp_path / f"run/saliency/{name}.png", np.zeros((3, 4)))

    with pytest.raises(
        ValueError, match=r"a\.png: expected the image's size \(6, 10\), got \(3, 4\)"
    ):
        make_pseudo_labels.main([*run, *fixed(0.5), "pseudo_label.saliency_weight=0.5"])


def test_refinement_moves_the_border_to_the_edge_of_the_image(run, tmp_path):
    # The CAM of class 0 ends at row 2; the bright part of the image ends at row 3.
    picture = np.zeros((*SIZE, 3), np.uint8)
    picture[:3] = 200
    write_image(tmp_path / "data/images/training/a.png", picture)

    make_pseudo_labels.main([*run, *fixed(0.4), "pseudo_label.pamr_steps=10"])

    rows = (mask_in(tmp_path, "a") == 1).any(axis=1)
    assert rows.tolist() == [True, True, True, False, False, False]


def test_labelled_images_that_lost_their_foreground_are_counted_and_named(run, capsys):
    make_pseudo_labels.main([*run, "--split", "train", *fixed(0.9)])

    assert "labelled, but without any foreground: 4 images (a, b, d, e)" in capsys.readouterr().out


def test_automatic_threshold_separates_the_training_cams(run, tmp_path):
    # The pooled maxima are .125 and .875; counted in levels of 1/255 (32 and 223) their middle
    # is 127.5 / 255. The CAM of the test split, much lower, has no part in it.
    low = cam_of((1,))
    write_cam(tmp_path / "run/cams/fused/given/1t.npz", low._replace(cam=low.cam * 0.1))

    make_pseudo_labels.main([*run, "pseudo_label.threshold_rule=class"])

    meta = meta_in(tmp_path)
    assert meta["made_from"]["thresholds"] == pytest.approx([0.5] * 3)
    assert meta["settings"]["threshold_rule"] == "class"
    assert (mask_in(tmp_path, "d")[4:6, :5] == 3).all()
    assert (mask_in(tmp_path, "1t") == 255).all()  # labelled, but nothing reaches the threshold


@pytest.mark.parametrize(("rule", "expected"), [("class", [0.5, 0.5, 0.25]), ("auto", [0.657] * 3)])
def test_a_faint_class_gets_a_threshold_of_its_own(run, tmp_path, rule, expected):
    # Class 2: .0625 and .4375, in levels 16 and 112, so 64 / 255. The maxima of all classes
    # together are .0625, .125, .4375 and .875, levels 112 and 223 the best cut: 167.5 / 255.
    for name in ("b", "d"):
        cam = cam_of(LABELS[name])
        maps = np.where(np.array(cam.classes)[:, None, None] == 2, cam.cam / 2, cam.cam)
        write_cam(tmp_path / f"run/cams/fused/given/{name}.npz", cam._replace(cam=maps))

    make_pseudo_labels.main([*run, f"pseudo_label.threshold_rule={rule}"])

    meta = meta_in(tmp_path)
    assert meta["made_from"]["thresholds"] == pytest.approx(expected, abs=0.01)
    found = (mask_in(tmp_path, "d")[4:6, :5] == 3).all()
    assert found == (rule == "class")


def test_a_class_without_two_values_gets_the_threshold_of_all(run, tmp_path):
    for name in ("b", "1t"):
        cam = cam_of(LABELS[name])
        maps = np.where(np.array(cam.classes)[:, None, None] == 1, 0, cam.cam)
        write_cam(tmp_path / f"run/cams/fused/given/{name}.npz", cam._replace(cam=maps))

    make_pseudo_labels.main([*run, "pseudo_label.threshold_rule=class"])

    meta = meta_in(tmp_path)
    assert meta["made_from"]["thresholds"] == pytest.approx([0.5] * 3)


def test_by_default_seeds_agree_with_the_saliency_maps(run, tmp_path):
    # The CAM of class 2 is .4375 in its left part, of 4 columns, and .875 in the rest; salient is
    # all of its block. Otsu's method would leave the left part out.
    for name in LABELS:
        cam = cam_of(LABELS[name])
        maps = cam.cam.copy()
        saliency = maps.max(axis=0, initial=0.125)
        maps[np.array(cam.classes) == 2, 4:6, :4] = 0.4375
        write_cam(tmp_path / f"run/cams/fused/given/{name}.npz", cam._replace(cam=maps))
        write_saliency(tmp_path / f"run/saliency/{name}.png", saliency)

    make_pseudo_labels.main(run)

    meta = meta_in(tmp_path)
    assert meta["settings"]["threshold_rule"] == "agreement"
    assert meta["made_from"]["thresholds"] == pytest.approx(
        [32.5 / 255] * 3
    )  # the lowest above .125
    assert (mask_in(tmp_path, "d")[4:6, :5] == 3).all()


def test_automatic_threshold_needs_a_defect(run, tmp_path):
    for name in LABELS:
        write_cam(tmp_path / f"run/cams/fused/given/{name}.npz", cam_of(()))
    rows = "".join(f"{name},\n" for name in LABELS)
    (tmp_path / "run/labels.csv").write_text(f"name,classes\n{rows}")

    with pytest.raises(ValueError, match=r"cams: .* two or more different values, got 0\. Check"):
        make_pseudo_labels.main(run)


def test_evaluation_split_without_cams_is_left_out(run, tmp_path):
    for name in ("1t", "2t"):
        (tmp_path / f"run/cams/fused/given/{name}.npz").unlink()

    make_pseudo_labels.main([*run, *fixed(0.5)])

    written = {p.stem for p in (tmp_path / "run/pseudo_labels").glob("*.png")}
    assert written == {"a", "b", "c", "d", "e"}


def test_missing_cams_are_counted_and_named_before_anything_is_written(run, tmp_path):
    for name in ("a", "d", "e"):
        (tmp_path / f"run/cams/fused/given/{name}.npz").unlink()

    expected = r"CAMs of 5 images, 3 are missing: a, d, e\. Run make_cams\.py"
    with pytest.raises(FileNotFoundError, match=expected):
        make_pseudo_labels.main(run)
    assert not (tmp_path / "run/pseudo_labels").exists()


@pytest.mark.parametrize(
    ("cam", "expected"),
    [
        (cam_of((0,))._replace(scores=np.ones(5, np.float32)), r"of 3 classes, got 5"),
        (cam_of((1,)), r"of the image's classes \[0\], got \[1\]"),
        (cam_of((0,), size=(10, 6)), r"image's size \(6, 10\), got \(10, 6\)"),
    ],
    ids=["class count", "labels", "size"],
)
def test_cams_that_do_not_fit_are_refused_by_name(run, tmp_path, cam, expected):
    write_cam(tmp_path / "run/cams/fused/given/a.npz", cam)

    with pytest.raises(ValueError, match=rf"a\.npz: expected .*{expected}"):
        make_pseudo_labels.main([*run, "--set", "pseudo_label.threshold_rule=class"])
    assert not (tmp_path / "run/pseudo_labels/meta.json").exists()


def test_config_of_the_run_is_saved(run, tmp_path):
    make_pseudo_labels.main([*run, *fixed(0.25)])

    assert load(tmp_path / "run/config.toml").pseudo_label.threshold == 0.25


def test_help_names_every_flag(capsys):
    with pytest.raises(SystemExit, match="0"):
        make_pseudo_labels.main(["--help"])
    printed = capsys.readouterr().out
    assert all(flag in printed for flag in ("--config", "--out", "--set", "--device", "--split"))


def test_maps_weighted_by_saliency_do_not_hide_the_thresholds_of_the_cams(run, tmp_path):
    for name in LABELS:
        values = cam_of(LABELS[name]).cam.max(axis=0, initial=0.125)
        write_saliency(tmp_path / f"run/saliency/{name}.png", np.where(values > 0.5, 0.25, 0))

    make_pseudo_labels.main([*run, "pseudo_label.saliency_weight=0.5"])

    meta = meta_in(tmp_path)
    assert meta["made_from"]["thresholds"] == pytest.approx(
        [0.5 / 255] * 3
    )  # all but the maps' zeros
    kept = thresholds_in(tmp_path, "refined_with_saliency")["agreement"]
    assert kept == meta["made_from"]["thresholds"]
    of_cams = thresholds_in(tmp_path)["agreement"]
    assert of_cams == pytest.approx([32.5 / 255] * 3)  # the lowest above .125
