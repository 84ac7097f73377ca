"""Any images in, masks, objects and COCO files out, without a label."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

import predict
from configs import from_dict, load, to_dict
from configs.command_line import save_config
from datasets.files import read_image, read_mask, write_image
from runs.checkpoint import save_checkpoint
from models.stac import build_stac
from segmentation.networks import build_network
from inference.models import load_trained

CLASSES = ("inclusion", "patches", "scratches")
SECTIONS = {
    "train": {
        "backbone": "deit_tiny_patch16_224",
        "pretrained": "none",
        "depth": 2,
        "image_size": [32, 32],
        "projection_width": 8,
        "attention_layers": 1,
        "amp": "off",
    },
    "cam": {"scales": [1.0], "label_threshold": 0.3},
    "segmentation": {
        "encoder": "tu-mobilenetv3_small_050",
        "pretrained": "none",
        "image_size": [32, 32],
        "batch_size": 2,
        "amp": "off",
    },
}
NAMES = ("a", "deep_b", "deep_down_c")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Write three pictures of different sizes, in folders."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    files = ("a.png", "deep/b.JPG", "deep/down/c.bmp")
    for file, size in zip(files, ((40, 50), (64, 33), (50, 50)), strict=True):
        write_image(root / file, rng.integers(0, 255, (*size, 3), np.uint8))
    (root / "notes.txt").write_text("no picture")
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Write untrained checkpoints of both stages."""
    out = tmp_path_factory.mktemp("run")
    config = to_dict(from_dict(SECTIONS))
    content = {
        "config": config,
        "class_names": list(CLASSES),
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "progress": {"epoch": 1, "step": 1},
    }
    torch.manual_seed(1)
    stac = build_stac(config["train"], len(CLASSES), "none")
    save_checkpoint(out / "stac/checkpoint.pt", content | {"model": stac.state_dict()})
    network = build_network("deeplabv3plus", "tu-mobilenetv3_small_050", "none", len(CLASSES) + 1)
    save_checkpoint(out / "segmentation/best.pt", content | {"model": network.state_dict()})
    return out


def test_what_changes_no_weights_comes_from_the_run(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/stac/best.pt").write_bytes((run / "stac/checkpoint.pt").read_bytes())
    changes = ["cam.types=['attention']", "cam.checkpoint=best", "pseudo_label.pamr_steps=3"]
    changes += ["segmentation.pamr_steps=2", "segmentation.encoder=resnet18", "train.depth=1"]
    save_config(load([], changes), tmp_path / "run")
    checkpoint = tmp_path / "run/stac/checkpoint.pt"
    checkpoint.write_bytes(b"not a checkpoint")  # best is asked for
    segmenter, localiser = load_trained(tmp_path / "run")
    assert localiser.config.cam.types == ("attention",)
    assert localiser.config.pseudo_label.pamr_steps == 3
    assert segmenter.config.segmentation.pamr_steps == 2
    trained_with = from_dict(SECTIONS)
    assert segmenter.config.segmentation.encoder == trained_with.segmentation.encoder
    assert localiser.config.train == trained_with.train


def found_in(run, to, *images, flags=()):
    predict.main([*map(str, images), "--run", str(run), "--to", str(to), "--device", "cpu", *flags])
    return {path.stem: json.loads(path.read_text()) for path in sorted((to / "json").iterdir())}


def only(run, folder, tmp_path):
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / folder).symlink_to(run / folder)
    return tmp_path / "part"


def test_masks_objects_and_coco_files_say_the_same(run, photos, tmp_path):
    to = tmp_path / "found"
    pages = found_in(run, to, photos, flags=("--format", "coco", "coco-polygons"))
    assert tuple(pages) == NAMES
    coco = COCO(to / "coco.json")
    outlined = COCO(to / "coco_polygons.json")
    assert len(coco.anns) == sum(len(page["objects"]) for page in pages.values()) >= 3
    for image in coco.imgs.values():
        name = {page["image"]: name for name, page in pages.items()}[image["file_name"]]
        page, mask = pages[name], read_mask(to / f"masks/{name}.png", len(CLASSES))
        assert mask.shape == read_image(image["file_name"]).shape[:2]
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
        np.testing.assert_array_equal(drawn, mask)
        areas = [int((mask == k + 1).sum()) for k in range(len(CLASSES))]
        assert list(page["areas_px"].values()) == areas
        assert all(0 <= score <= 1 for score in page["class_scores"].values())
    assert len(outlined.anns) == len(coco.anns)
    with (to / "summary.csv").open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert tuple(rows) == NAMES
    assert int(rows["a"]["patches_area_px"]) == pages["a"]["areas_px"]["patches"]


def test_small_objects_are_left_out_everywhere(run, photos, tmp_path):
    whole = found_in(run, tmp_path / "all", photos / "a.png")["a"]
    areas = sorted(one["area_px"] for one in whole["objects"])
    limit = areas[-1]
    large = found_in(run, tmp_path / "large", photos / "a.png", flags=("--min-area", str(limit)))
    kept = [one["area_px"] for one in large["a"]["objects"]]
    assert kept == [area for area in areas if area >= limit]
    mask = read_mask(tmp_path / "large/masks/a.png", len(CLASSES))
    assert (mask > 0).sum() == sum(kept)


def test_scores_come_from_the_localiser_and_masks_from_the_network(run, photos, tmp_path):
    both = found_in(run, tmp_path / "both", photos / "a.png")["a"]
    network = only(run, "segmentation", tmp_path)
    alone = found_in(network, tmp_path / "network", photos / "a.png")["a"]
    (network / "segmentation").unlink()
    (network / "stac").symlink_to(run / "stac")
    localiser = found_in(network, tmp_path / "localiser", photos / "a.png")["a"]
    assert both["objects"] == alone["objects"]
    assert both["class_scores"] == localiser["class_scores"] != alone["class_scores"]


def test_a_localiser_alone_cuts_at_the_thresholds_of_the_pseudo_labels(run, photos, tmp_path):
    part = only(run, "stac", tmp_path)
    areas = []
    for threshold in (0.2, 0.9):
        (part / "pseudo_labels").mkdir(exist_ok=True)
        (part / "pseudo_labels/meta.json").write_text(json.dumps({"thresholds": [threshold] * 3}))
        page = found_in(part, tmp_path / str(threshold), photos / "a.png")["a"]
        areas.append(sum(page["areas_px"].values()))
        seen = [n for n, score in page["class_scores"].items() if score >= 0.3]
        assert {one["class"] for one in page["objects"]} <= set(seen)
    assert areas[0] > areas[1]
    both = {"thresholds": [0.9] * 3, "cam_thresholds": [0.2] * 3}  # of maps with saliency; without
    (part / "pseudo_labels/meta.json").write_text(json.dumps(both))
    page = found_in(part, tmp_path / "both", photos / "a.png")["a"]
    assert sum(page["areas_px"].values()) == areas[0]
    given = found_in(part, tmp_path / "given", photos / "a.png", flags=("--threshold", "0.2"))
    assert sum(given["a"]["areas_px"].values()) == areas[0]


def test_tiles_may_be_asked_for(run, photos, tmp_path):
    whole = found_in(run, tmp_path / "whole", photos / "a.png")["a"]
    tiles = found_in(run, tmp_path / "tiles", photos / "a.png", flags=("--tile", "32"))["a"]
    assert tiles["objects"] != whole["objects"]
    assert (tiles["height"], tiles["width"]) == (40, 50)


def test_patterns_and_files_may_be_mixed(run, photos, tmp_path):
    pages = found_in(run, tmp_path / "found", f"{photos}/deep/*.JPG", photos / "a.png")
    assert tuple(pages) == ("a", "b")


def test_unreadable_pictures_are_named_after_the_others_are_done(run, photos, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"1 of 2 pictures could not be read: .*broken\.jpg"):
        found_in(run, tmp_path / "found", broken, photos / "a.png")
    assert (tmp_path / "found/json/a.json").is_file()


def test_what_cannot_be_done_is_said(run, photos, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.*: expected a picture, a folder"):
        found_in(run, tmp_path, photos / "none*.png")
    with pytest.raises(FileNotFoundError, match=r"expected segmentation/best\.pt or stac/checkp"):
        found_in(tmp_path, tmp_path, photos)
    write_image(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"expected another name than .*a\.png, both would be a"):
        found_in(run, tmp_path, photos / "a.png", tmp_path / "a.png")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--threshold", "1.5"), r"--threshold: expected a number in \[0, 1\], got 1\.5\."),
        (("--threshold", "-0.1"), r"--threshold: expected a number in \[0, 1\], got -0\.1\."),
        (("--threshold", "nan"), r"--threshold: expected a number in \[0, 1\], got nan\."),
        (("--min-area", "-1"), r"--min-area: expected 0 pixels or more, got -1\."),
        (("--threshold", "0.2"), "--threshold: expected a run with a localiser alone, got "),
    ],
)
def test_a_flag_out_of_range_or_without_use_is_refused(run, photos, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        found_in(run, tmp_path / "found", photos, flags=flags)
    assert not (tmp_path / "found").exists()


def test_what_an_earlier_call_wrote_is_no_image(run, photos, tmp_path, capsys):
    images = tmp_path / "images"
    write_image(images / "a.png", read_image(photos / "a.png"))
    for _ in range(2):
        assert tuple(found_in(run, images / "found", images)) == ("a",)
    assert "2 masks and overlays in" in capsys.readouterr().out
    with pytest.raises(ValueError, match="expected images from elsewhere, got only masks and over"):
        found_in(run, images / "found", images / "found/masks")
    assert tuple(found_in(run, images, images / "a.png")) == ("a",)  # beside its image


def test_objects_are_parts_that_touch_even_at_corners():
    mask = np.array([[1, 0, 0, 2], [0, 1, 0, 0], [0, 0, 0, 2], [1, 0, 2, 2]], np.uint8)
    confidence = np.arange(16, dtype=np.float32).reshape(4, 4) / 16
    kept, objects = predict.objects_of(mask, confidence, ("crack", "dent"), 2)
    assert kept.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 2], [0, 0, 2, 2]]
    shown = [{k: v for k, v in one.items() if k in ("class", "area_px", "box")} for one in objects]
    assert shown == [
        {"class": "crack", "area_px": 2, "box": [0, 0, 2, 2]},
        {"class": "dent", "area_px": 3, "box": [2, 2, 2, 2]},
    ]
    assert objects[0]["score"] == pytest.approx((0 + 5) / 2 / 16, abs=1e-4)
    assert sorted(map(tuple, objects[1]["contours"][0])) == [(2, 3), (3, 2), (3, 3)]
