"""Any images in, masks, objects and COCO files out, without a label."""

import csv
import json
import os
import shutil
import sys

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

import predict
from configs import load
from datasets.files import read_image, read_mask, write_image, write_json
from inference.models import load_trained, localiser_of, run_in, segmenter_of
from inference.objects import objects_of
from runfolder.held_out import HELD_OUT_NAME, HeldOut
from runfolder.run import Run

CLASSES = ("inclusion", "patches", "scratches")
NAMES = ("a", "deep_b", "deep_down_c")


@pytest.fixture(scope="module")
def run(untrained_run):
    return untrained_run


def test_what_changes_no_weights_comes_from_the_run(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    changes = ["cam.types=['attention']", "pseudo_label.cam_type=attention", "train.depth=1"]
    changes += ["pseudo_label.pamr_steps=3", "segmentation.pamr_steps=2"]
    changes += ["segmentation.encoder=resnet18", "segmentation.image_size=[64,64]"]
    Run(tmp_path / "run", load([], changes)).begin_stage()
    changed_run, cpu = run_in(tmp_path / "run"), torch.device("cpu")
    assert changed_run.config.pseudo_label.pamr_steps == 3
    trained = load_trained(changed_run)
    segmenter = segmenter_of(changed_run, trained.segmentation, cpu)
    localiser = localiser_of(changed_run, trained.localiser, cpu)
    assert localiser.settings.types == ("attention",)
    assert len(localiser.network.encoder.blocks) == 2
    assert segmenter.settings.pamr_steps == 2
    assert segmenter.transform.transforms[0].size == [32, 32]


def test_the_best_localiser_stands_in_for_the_last_one(run, tmp_path):
    shutil.copytree(run / "stac", tmp_path / "run/stac")
    (tmp_path / "run/stac/checkpoint.pt").rename(tmp_path / "run/stac/best.pt")
    trained = load_trained(run_in(tmp_path / "run"))
    assert trained.localiser.path.name == "best.pt"
    assert trained.segmentation is None


def predicted(run, to, *images, flags=()):
    predict.main([*map(str, images), "--run", str(run), "--to", str(to), "--device", "cpu", *flags])
    return {path.stem: json.loads(path.read_text()) for path in sorted((to / "json").iterdir())}


def only(run, folder, tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / folder).symlink_to(run / folder)
    return tmp_path / "part"


def test_masks_objects_and_coco_files_say_the_same(run, photos, tmp_path):
    to = tmp_path / "to"
    pages = predicted(run, to, photos, flags=("--format", "coco", "coco-polygons"))
    assert tuple(pages) == NAMES
    coco = COCO(to / "coco.json")
    outlined = COCO(to / "coco_polygons.json")
    assert len(coco.anns) == sum(len(page["objects"]) for page in pages.values()) >= 3
    below = ["a.png", "deep/b.JPG", "deep/down/c.bmp"]
    assert [image["file_name"] for image in coco.imgs.values()] == below
    for image in coco.imgs.values():
        name = image["file_name"].split(".")[0].replace("/", "_")
        page, mask = pages[name], read_mask(to / f"masks/{name}.png", len(CLASSES))
        assert mask.shape == read_image(photos / image["file_name"]).shape[:2]
        assert mask.shape == (page["height"], page["width"])
        assert read_image(to / f"overlays/{name}.jpg").shape[:2] == mask.shape
        drawn = np.zeros_like(mask)
        for one in coco.imgToAnns[image["id"]]:
            pixels = coco.annToMask(one).astype(bool)
            assert pixels.sum() == one["area"]
            rows, columns = np.nonzero(pixels)
            x, y, width, height = one["bbox"]
            assert (x, x + width - 1) == (columns.min(), columns.max())
            assert (y, y + height - 1) == (rows.min(), rows.max())
            assert not drawn[pixels].any()
            drawn[pixels] = one["category_id"]
            np.testing.assert_array_equal(outlined.annToMask(outlined.anns[one["id"]]), pixels)
        np.testing.assert_array_equal(drawn, mask)
        areas = [int((mask == k + 1).sum()) for k in range(len(CLASSES))]
        assert list(page["areas_px"].values()) == areas
        assert all(0 <= score <= 1 for score in page["class_scores"].values())
    assert len(outlined.anns) == len(coco.anns)
    with (to / "summary.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert tuple(rows) == NAMES
    assert int(rows["a"]["patches_area_px"]) == pages["a"]["areas_px"]["patches"]


def test_verdicts_follow_limits_that_are_learnt_from_held_out_images(run, photos, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "run")
    pages = predicted(tmp_path / "run", tmp_path / "no_file", photos)
    assert {page["verdict"] for page in pages.values()} == {"defective"}  # each mask shows one
    assert pages["a"]["defect_score"] is None and pages["a"]["class_probabilities"] is None
    assert pages["a"]["reason"] == "the mask shows a defect"
    assert "3 defective, 0 unsure, 0 ok" in capsys.readouterr().out

    def with_limits(good: float, bad: float, *flags: str) -> dict:
        images = [
            HeldOut(
                name=f"{i}", defective=d, labels=[d, False, d], segmenter=[s] * 3,
                localiser=[s] * 3,
            ).model_dump()
            for i, (d, s) in enumerate([(False, good), (True, bad)])
        ]  # fmt: skip
        write_json(tmp_path / "run/predictions" / HELD_OUT_NAME, images)
        return predicted(tmp_path / "run", tmp_path / "to", photos, flags=flags)

    pages = with_limits(0.0, 0.001)
    score = pages["a"]["defect_score"]
    assert 0.001 < score <= 1
    assert pages["a"]["defective_from"] == pytest.approx(0.002 / 3)
    assert {page["verdict"] for page in pages.values()} == {"defective"}
    assert pages["a"]["reason"] == f"score {score:.3f}, defective from 0.001"
    probabilities = pages["a"]["class_probabilities"]
    assert probabilities["inclusion"] > 0.5 > probabilities["patches"]
    pages = with_limits(0.999, 1.0)
    assert {page["verdict"] for page in pages.values()} == {"ok"}
    assert not any(any(page["areas_px"].values()) or page["objects"] for page in pages.values())
    assert not read_mask(tmp_path / "to/masks/a.png", len(CLASSES)).any()
    printed = capsys.readouterr().out
    assert "0 defective, 0 unsure, 3 ok" in printed
    assert "ok below a score of 0.999: wrong for 0 of 1 defective images held out" in printed
    with (tmp_path / "to/summary.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert {row["verdict"] for row in rows.values()} == {"ok"}
    assert rows["a"]["reason"].endswith(", ok below 0.999")
    assert float(rows["a"]["patches_probability"]) == pages["a"]["class_probabilities"]["patches"]
    pages = with_limits(0.999, 1.0, "--keep-all")
    assert all(any(page["areas_px"].values()) for page in pages.values())
    pages = with_limits(1.0, 0.0, "--max-false-alarm", "0")  # the wrong way round
    assert {page["verdict"] for page in pages.values()} == {"unsure"}


def test_a_lower_threshold_of_a_class_gives_it_more_of_the_background(run, photos, tmp_path):
    def areas(*flags):
        flags = ("--min-area", "0", *flags)
        return predicted(run, tmp_path / "to", photos / "a.png", flags=flags)["a"]["areas_px"]

    plain = areas()
    assert areas("--threshold", "0.5") == plain
    small, *_, large = sorted(plain, key=plain.get)
    low = areas("--threshold", f"{small}=0.05", f"{large}=0.5")
    assert low[small] > plain[small] and low[large] <= plain[large]
    high = areas("--threshold", f"{large}=0.95")
    assert high[large] < plain[large] and high[small] >= plain[small]


def test_a_share_above_one_is_refused(run, photos, tmp_path, capsys):
    with pytest.raises(SystemExit):
        predicted(run, tmp_path, photos, flags=("--min-recall", "99"))
    assert "expected a share in [0, 1], got 99" in capsys.readouterr().err


def test_small_objects_are_left_out_everywhere(run, photos, tmp_path):
    whole = predicted(run, tmp_path / "all", photos / "a.png")["a"]
    areas = sorted(one["area_px"] for one in whole["objects"])
    limit = areas[-1]
    large = predicted(run, tmp_path / "large", photos / "a.png", flags=("--min-area", str(limit)))
    kept = [one["area_px"] for one in large["a"]["objects"]]
    assert kept == [area for area in areas if area >= limit]
    mask = read_mask(tmp_path / "large/masks/a.png", len(CLASSES))
    assert (mask > 0).sum() == sum(kept)


def test_scores_come_from_the_localiser_and_masks_from_the_network(run, photos, tmp_path):
    both = predicted(run, tmp_path / "both", photos / "a.png")["a"]
    network = only(run, "segmentation", tmp_path)
    alone = predicted(network, tmp_path / "network", photos / "a.png")["a"]
    (network / "segmentation").unlink()
    (network / "stac").symlink_to(run / "stac")
    localiser = predicted(network, tmp_path / "localiser", photos / "a.png")["a"]
    assert both["objects"] == alone["objects"]
    assert both["class_scores"] == localiser["class_scores"] != alone["class_scores"]


@pytest.fixture
def localiser_alone(run, photos, tmp_path, sections):
    """Return how much of a.png is predicted, by thresholds.json, settings and flags."""
    part = only(run, "stac", tmp_path)

    def area(thresholds, *settings, flags=()):
        (part / "thresholds.json").write_text(json.dumps({"fused": thresholds}))
        changed = [f"{section}.{key}={json.dumps(value)}" for section, values in sections.items()
                   for key, value in values.items()]  # fmt: skip
        Run(part, load([], [*changed, *settings])).begin_stage()
        page = predicted(part, tmp_path / "to", photos / "a.png", flags=flags)["a"]
        seen = [n for n, score in page["class_scores"].items() if score >= 0.3]
        assert {one["class"] for one in page["objects"]} <= set(seen)
        return sum(page["areas_px"].values())

    return area


def test_a_localiser_alone_cuts_at_the_thresholds_of_the_pseudo_labels(localiser_alone):
    low, high = [0.2] * 3, [0.9] * 3
    large = localiser_alone({"refined": {"agreement": low, "made_with": ""}})
    small = localiser_alone({"refined": {"agreement": high, "made_with": ""}})
    assert large > small
    # Those of other maps and of other rules are not meant.
    others = {"raw": {"agreement": high}, "refined_with_saliency": {"agreement": high}}
    others["refined"] = {"agreement": low, "class": high}
    assert localiser_alone(others) == large
    assert localiser_alone(others, "pseudo_label.threshold_rule=class") == small
    # New images have no saliency map, so nothing is weighted, whatever the rule.
    weighted = ["pseudo_label.threshold_rule=class", "pseudo_label.saliency_weight=0.5"]
    assert localiser_alone(others, *weighted) == large
    assert localiser_alone(others, flags=("--threshold", "0.9")) == small


def test_without_kept_thresholds_that_of_the_config_is_taken(localiser_alone):
    kept = {"refined": {"agreement": [0.2] * 3}}
    fixed = ["pseudo_label.threshold_rule=fixed", "pseudo_label.threshold=0.9"]
    small = localiser_alone(kept, *fixed)
    assert small == localiser_alone({}, "pseudo_label.threshold=0.9") < localiser_alone(kept)
    with pytest.raises(ValueError, match=r"json: expected thresholds of 3 classes, got 2\. Run"):
        localiser_alone({"refined": {"agreement": [0.2] * 2}})


@pytest.mark.parametrize("folders", [("stac", "segmentation"), ("stac",), ("segmentation",)])
@pytest.mark.parametrize("flags", [(), ("--tile", "32")])
def test_each_picture_is_decoded_once(run, photos, tmp_path, monkeypatch, folders, flags):
    for folder in folders:
        (tmp_path / "part").mkdir(exist_ok=True)
        (tmp_path / "part" / folder).symlink_to(run / folder)
    decoded = []

    def watched(path):
        decoded.append(path.name)
        return read_image(path)

    for module in list(sys.modules.values()):
        if getattr(module, "read_image", None) is read_image and module.__name__ != __name__:
            monkeypatch.setattr(module, "read_image", watched)
    call = ["--run", str(tmp_path / "part"), "--to", str(tmp_path / "to"), "--device", "cpu"]
    predict.main([str(photos), *call, *flags])
    assert sorted(decoded) == ["a.png", "b.JPG", "c.bmp"]


def test_what_is_said_of_a_picture_does_not_depend_on_the_others(run, photos, tmp_path):
    together = predicted(run, tmp_path / "all", photos)  # in batches of two
    for name, file in zip(NAMES, ("a.png", "deep/b.JPG", "deep/down/c.bmp"), strict=True):
        (alone,) = predicted(run, tmp_path / name, photos / file).values()
        assert alone["areas_px"] == together[name]["areas_px"]
        assert list(alone["class_scores"].values()) == pytest.approx(
            list(together[name]["class_scores"].values()), abs=2e-4
        )


def test_tiles_may_be_asked_for(run, photos, tmp_path):
    whole = predicted(run, tmp_path / "whole", photos / "a.png")["a"]
    tiles = predicted(run, tmp_path / "tiles", photos / "a.png", flags=("--tile", "32"))["a"]
    assert tiles["objects"] != whole["objects"]
    assert (tiles["height"], tiles["width"]) == (40, 50)


def test_patterns_and_files_may_be_mixed(run, photos, tmp_path):
    pages = predicted(run, tmp_path / "to", f"{photos}/deep/*.JPG", photos / "a.png")
    assert tuple(pages) == ("a", "b")


def test_without_to_the_run_folder_takes_the_files(run, photos, tmp_path):
    part = only(run, "segmentation", tmp_path)
    predict.main([str(photos / "a.png"), "--run", str(part), "--device", "cpu"])
    written = {str(f.relative_to(part / "predicted")) for f in part.glob("predicted/**/*.*")}
    assert written == {"masks/a.png", "overlays/a.jpg", "json/a.json", "summary.csv"}


def test_unreadable_pictures_are_named_after_the_others_are_done(run, photos, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"1 of 2 pictures could not be read: .*broken\.jpg"):
        predicted(run, tmp_path / "to", broken, photos / "a.png")
    assert (tmp_path / "to/json/a.json").is_file()


def test_a_name_that_no_file_can_have_is_one_pictures_problem(run, photos, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    shutil.copy(photos / "a.png", folder / "a.png")
    shutil.copy(photos / "a.png", folder / f"{'b' * 240}.png")
    shutil.copy(photos / "a.png", os.fsencode(folder) + b"/c\xff.png")
    (folder / "deep").mkdir()
    shutil.copy(photos / "a.png", folder / f"deep/{'d' * 248}.png")
    with pytest.raises(
        ValueError, match="2 of 4 pictures could not be read: .*file.* can have"
    ) as e:
        predicted(run, tmp_path / "to", folder)
    assert "\n" not in str(e.value)
    with (tmp_path / "to/summary.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["a", "b" * 240]
    assert (tmp_path / f"to/masks/{'b' * 240}.png").is_file()


def test_what_cannot_be_done_is_said(run, photos, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.*: expected a picture, a folder"):
        predicted(run, tmp_path, photos / "none*.png")
    with pytest.raises(FileNotFoundError, match=r"expected a run folder with .*found none of them"):
        predicted(tmp_path, tmp_path, photos)
    Run(tmp_path, load([])).begin_stage()
    with pytest.raises(FileNotFoundError, match=r"expected segmentation/checkpoint\.pt or stac"):
        predicted(tmp_path, tmp_path, photos)
    write_image(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"expected another name than .*a\.png, both would be a"):
        predicted(run, tmp_path, photos / "a.png", tmp_path / "a.png")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--threshold", "1.5"), r"threshold: expected a number in \[0, 1\], got 1\.5\."),
        (("--threshold", "-0.1"), r"threshold: expected a number in \[0, 1\], got -0\.1\."),
        (("--threshold", "nan"), r"threshold: expected a number in \[0, 1\], got nan\."),
        (("--min-area", "-1"), r"min_area: expected 0 pixels or more, got -1\."),
        (("--threshold", "0.2", "0.3"), r"--threshold: expected a number, or CLASS=NUMBER .* 0\.3"),
        (("--threshold", "patches=x"), r"--threshold: expected a number, or CLASS=.*patches=x"),
        (("--threshold", "crack=0.2"), "threshold: expected classes among .*patches.*, got crack"),
        (("--tile", "8"), r"tile: expected 0 \(off\) or 32 or more pixels, got 8\."),
    ],
)
def test_a_flag_out_of_range_or_without_use_is_refused(run, photos, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        predicted(run, tmp_path / "to", photos, flags=flags)
    assert not (tmp_path / "to").exists()


def test_what_an_earlier_call_wrote_is_no_image(run, photos, tmp_path, capsys):
    images = tmp_path / "images"
    write_image(images / "a.png", read_image(photos / "a.png"))
    for _ in range(2):
        assert tuple(predicted(run, images / "to", images)) == ("a",)
    assert "2 masks and overlays in" in capsys.readouterr().out
    with pytest.raises(ValueError, match="expected images from elsewhere, got only masks and over"):
        predicted(run, images / "to", images / "to/masks")
    assert tuple(predicted(run, images, images / "a.png")) == ("a",)  # next to its image


def test_objects_are_parts_that_touch_even_at_corners():
    mask = np.array([[1, 0, 0, 2], [0, 1, 0, 0], [0, 0, 0, 2], [1, 0, 2, 2]], np.uint8)
    confidence = np.arange(16, dtype=np.float32).reshape(4, 4) / 16
    kept, objects = objects_of(mask, confidence, ("crack", "dent"), 2)
    assert kept.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 2], [0, 0, 2, 2]]
    shown = [{k: v for k, v in one.items() if k in ("class", "area_px", "box")} for one in objects]
    assert shown == [
        {"class": "crack", "area_px": 2, "box": [0, 0, 2, 2]},
        {"class": "dent", "area_px": 3, "box": [2, 2, 2, 2]},
    ]
    assert objects[0]["score"] == pytest.approx((0 + 5) / 2 / 16, abs=1e-4)
    assert sorted(map(tuple, objects[1]["contours"][0])) == [(2, 3), (3, 2), (3, 3)]
