"""CAMs: scales and flip against a slow reference, files at native size."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import localisation
import make_cams
from configs import CamConfig, Config, load, to_dict
from datasets.files import read_cam, read_image
from datasets.sources import read_data
from datasets.transforms import as_image, eval_transform
from models.cam import min_max
from runs.checkpoint import save_checkpoint
from models.stac import build_stac, image_scores
from models.tiles import tiles_of

OVERRIDES = [
    "data.sample_train=6",
    "data.sample_test=3",
    "train.backbone=deit_tiny_patch16_224",
    "train.pretrained=none",
    "train.image_size=[48,64]",
    "train.pixel_block=2",
    "train.amp=off",
    'cam.types=["patchcam","fused","pixel"]',
    'cam.labels=["given","predicted"]',
    "cam.scales=[1.0,1.5]",
    "cam.batch_size=4",
]


def small_model():
    torch.manual_seed(0)
    settings = to_dict(load("configs/sample.toml", OVERRIDES))["train"]
    return build_stac(settings, 3, "none").eval()


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run")
    config = load("configs/sample.toml", [*OVERRIDES, f"data.root={out}/data"])
    data = read_data(config.data, out / "labels.csv")
    content = {
        "model": small_model().state_dict(),
        "config": to_dict(config),
        "class_names": list(data.class_names),
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "progress": {"epoch": 1, "step": 2},
    }
    save_checkpoint(out / "stac/checkpoint.pt", content)
    run(out)
    return out


def run(out: Path, *overrides: str) -> None:
    flags = ["--config", "configs/sample.toml", "--out", str(out), "--device", "cpu", "--set"]
    make_cams.main([*flags, *OVERRIDES, f"data.root={out}/data", *overrides])


def records(out: Path):
    config = load("configs/sample.toml", [*OVERRIDES, f"data.root={out}/data"])
    data = read_data(config.data, out / "labels.csv")
    return [*data.split("train"), *data.split("test")]


def test_every_image_gets_its_labelled_maps_at_native_size(run_dir):
    found = records(run_dir)
    assert len(found) == 9
    for record in found:
        for folder in ("cams", "cams_fused", "cams_pixel"):
            cam = read_cam(run_dir / folder / f"{record.name}.npz")
            assert cam.cam.shape == (len(record.classes), *read_image(record.image).shape[:2])
            assert tuple(cam.classes) == record.classes
            assert cam.scores.shape == (3,)
            assert all(m.min() == 0 and m.max() == 1 for m in cam.cam)


def test_pixel_maps_are_refused_of_a_localiser_without_the_head(tmp_path):
    settings = to_dict(load("configs/sample.toml", [*OVERRIDES, "cam.types=['fused']"]))["train"]
    model = build_stac(settings | {"pixel_block": 0}, 3, "none").eval()
    cam = CamConfig(types=("pixel",))
    with pytest.raises(ValueError, match=r"train\.pixel_block = 0"):
        localisation.scaled_cams(model, [torch.zeros(1, 3, 48, 64)], cam, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"cam\.types: expected no pixel where train\.pixel_block"):
        run(tmp_path, "train.pixel_block=0")


def test_predicted_maps_follow_the_scores(run_dir):
    for record in records(run_dir):
        cam = read_cam(run_dir / f"cams_predicted/{record.name}.npz")
        assert cam.classes.tolist() == [k for k in range(3) if cam.scores[k] >= 0.5]


def test_meta_says_how_the_maps_were_made(run_dir):
    meta = json.loads((run_dir / "cams_fused_predicted/meta.json").read_text())
    assert meta["type"] == "fused"
    assert meta["labels"] == "predicted"
    assert meta["scales"] == [1.0, 1.5]
    assert meta["checkpoint"] == "checkpoint.pt"


def test_scales_and_flip_match_one_image_at_a_time():
    model = small_model()
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(2, 3, 48, 64, generator=generator)]
    images.append(torch.randn(2, 3, 80, 96, generator=generator))
    maps, scores = localisation.scaled_cams(
        model, images, CamConfig(types=("patchcam", "fused")), torch.device("cpu")
    )
    with torch.no_grad():
        for b in range(2):
            expected_scores = []
            for s, batch in enumerate(images):
                plain, mirrored = model(batch[b : b + 1]), model(batch[b : b + 1].flip(-1))
                expected_scores += [image_scores(plain)[0], image_scores(mirrored)[0]]
                patchcam = plain.patch_map.relu() + mirrored.patch_map.relu().flip(-1)
                torch.testing.assert_close(maps["patchcam"][s][b], patchcam[0])
                products = [o.class_attention * o.patch_map.relu() for o in (plain, mirrored)]
                fused = products[0].sqrt() + products[1].sqrt().flip(-1)
                torch.testing.assert_close(maps["fused"][s][b], fused[0])
            torch.testing.assert_close(scores[b], torch.stack(expected_scores).mean(0))


def test_a_mirrored_image_gives_mirrored_maps():
    model = small_model()
    image = torch.randn(1, 3, 48, 64, generator=torch.Generator().manual_seed(2))
    cam, device = CamConfig(types=("patchcam",)), torch.device("cpu")
    plain = localisation.scaled_cams(model, [image], cam, device)[0]["patchcam"][0]
    mirrored = localisation.scaled_cams(model, [image.flip(-1)], cam, device)[0]["patchcam"][0]
    torch.testing.assert_close(mirrored.flip(-1), plain)


def test_native_cam_is_normalised_per_class():
    maps = torch.rand(1, 2, 3, 4, generator=torch.Generator().manual_seed(3))
    tiles = tiles_of((9, 11), 0, 0)
    cam = localisation.native_cam([maps], tiles, (9, 11))
    expected = min_max(torch.nn.functional.interpolate(maps, (9, 11), mode="bilinear")[0])
    np.testing.assert_allclose(cam, expected.numpy(), rtol=1e-6)
    empty = localisation.native_cam([torch.zeros(1, 0, 3, 4)], tiles, (9, 11))
    assert empty.shape == (0, 9, 11)


def cams_of(run_dir, tmp_path, *overrides):
    """Write CAMs of the run's checkpoint to another folder."""
    copied = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
    (copied / "stac").mkdir(parents=True)
    for part in ("stac/checkpoint.pt", "data", "labels.csv"):
        (copied / part).symlink_to(run_dir / part)
    run(copied, *overrides)
    return copied


def test_an_image_that_fits_a_tile_is_not_changed_by_tiling(run_dir, tmp_path):
    whole = cams_of(run_dir, tmp_path, "cam.batch_size=1")
    tiled = cams_of(run_dir, tmp_path, "cam.batch_size=1", "cam.tile=4096")
    for record in records(run_dir):
        for folder in ("cams", "cams_fused_predicted"):
            pair = [read_cam(out / folder / f"{record.name}.npz") for out in (whole, tiled)]
            for before, after in zip(*pair, strict=True):
                np.testing.assert_array_equal(before, after)
    meta = json.loads((tiled / "cams/meta.json").read_text())
    assert (meta["tile"], meta["tile_overlap"]) == (4096, 0.25)


def test_tiles_are_normalised_over_the_image_and_score_by_their_maximum(run_dir, tmp_path):
    settings = ["cam.tile=80", "cam.tile_overlap=0.3", "cam.batch_size=2", "cam.scales=[1.5]"]
    out = cams_of(run_dir, tmp_path, *settings, "cam.flip=false")
    model = small_model()
    for record in records(run_dir)[:3]:
        pixels = read_image(record.image)
        size = pixels.shape[:2]
        total, scores = torch.zeros(3, *size, dtype=torch.float64), []
        tiles = tiles_of(size, 80, 0.3)
        assert len(tiles) > 1
        for tile in tiles:
            part = as_image(pixels[tile.rows, tile.columns])
            image = eval_transform((72, 96), [0.5] * 3, [0.5] * 3)(part)
            with torch.no_grad():
                output = model(image[None])
            scores.append(image_scores(output)[0])
            maps = torch.nn.functional.interpolate(
                output.patch_map.relu(), tile.size, mode="bilinear"
            )[0]
            weights = tile.row_weights[:, None].double() * tile.column_weights
            total[:, tile.rows, tile.columns] += weights * maps
        for folder in ("cams", "cams_predicted"):
            cam = read_cam(out / folder / f"{record.name}.npz")
            np.testing.assert_allclose(cam.scores, torch.stack(scores).amax(0), rtol=1e-4)
            expected = min_max(total[cam.classes]) if len(cam.classes) else np.zeros((0, *size))
            np.testing.assert_allclose(cam.cam, expected, atol=2e-3)  # float16 in the file


def test_folders_are_named_by_type_and_labels():
    cam = CamConfig(types=("fused", "patchcam"), labels=("given", "predicted"))
    assert make_cams.cam_folders(cam) == {
        "cams": ("fused", "given"),
        "cams_predicted": ("fused", "predicted"),
        "cams_patchcam": ("patchcam", "given"),
        "cams_patchcam_predicted": ("patchcam", "predicted"),
    }
    assert make_cams.cam_folders(Config().cam) == {"cams": ("fused", "given")}


def test_missing_checkpoint_and_other_classes_are_refused(run_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match="Run train_stac.py first"):
        run(run_dir, "cam.checkpoint=best")
    checkpoint = torch.load(run_dir / "stac/checkpoint.pt", weights_only=True)
    checkpoint["class_names"] = ["dent"]
    save_checkpoint(run_dir / "stac/best.pt", checkpoint)
    with pytest.raises(ValueError, match="expected the classes inclusion, .* got dent"):
        run(run_dir, "cam.checkpoint=best")
