"""CAMs: scales and flip against a slow reference, files at native size."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import make_cams
from configs import Config, load, to_dict
from datasets.files import read_cam, read_image
from datasets.transforms import as_image, eval_transform
from inference.localise import Localised, Localiser, TileMaps, label_thresholds
from models.cam import min_max
from models.stac import build_stac, image_scores
from models.tiles import tiles_of
from runfolder.checkpoint import save_checkpoint
from runfolder.run import CamMeta, Run

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
TYPES, LABELS = ("patchcam", "fused", "pixel"), ("given", "predicted")
CPU = torch.device("cpu")


def content_of(config: Config) -> dict:
    """Return a checkpoint of the small model."""
    torch.manual_seed(0)
    return {
        "model": build_stac(config.train, 3).state_dict(),
        "config": to_dict(config),
        "class_names": ["inclusion", "patches", "scratches"],
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "progress": {"epoch": 1, "step": 2},
        "label_thresholds": [0.4, 0.5, 0.6],
    }


def small_localiser(*overrides: str) -> Localiser:
    config = load("configs/sample.toml", [*OVERRIDES, *overrides])
    return Localiser(content_of(config), config.cam, CPU)


def run_of(out: Path) -> Run:
    return Run(out, load("configs/sample.toml", [*OVERRIDES, f"data.root={out}/data"]))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run")
    save_checkpoint(out / "stac/checkpoint.pt", content_of(run_of(out).config))
    make(out)
    return out


def make(out: Path, *overrides: str, flags: tuple[str, ...] = ()) -> None:
    call = ["--config", "configs/sample.toml", "--out", str(out), "--device", "cpu", *flags]
    make_cams.main([*call, "--set", *OVERRIDES, f"data.root={out}/data", *overrides])


def records(out: Path):
    return run_of(out).data.records(["train", "test"])


def test_every_image_gets_its_labelled_maps_at_native_size(run_dir):
    images = records(run_dir)
    assert len(images) == 9
    for record in images:
        for cam_type in TYPES:
            cam = read_cam(run_dir / f"cams/{cam_type}/given/{record.name}.npz")
            assert cam.cam.shape == (len(record.classes), *read_image(record.image).shape[:2])
            assert tuple(cam.classes) == record.classes
            assert cam.scores.shape == (3,)
            assert all(m.min() == 0 and m.max() == 1 for m in cam.cam)


def test_pixel_maps_are_refused_of_a_localiser_without_the_head(tmp_path):
    without_head = load("configs/sample.toml", [*OVERRIDES, "cam.types=['fused']",
                        "train.pixel_block=0", "pseudo_label.cam_type=fused"])  # fmt: skip
    with_pixel = dataclasses.replace(without_head.cam, types=("pixel",))
    localiser = Localiser(content_of(without_head), with_pixel, CPU)
    with pytest.raises(ValueError, match=r"train\.pixel_block = 0"):
        localiser.forward([torch.zeros(1, 3, 48, 64)])
    with pytest.raises(ValueError, match=r"cam\.types: expected no pixel where train\.pixel_block"):
        make(tmp_path, "train.pixel_block=0")


def test_predicted_maps_follow_the_scores_and_what_training_learnt(run_dir):
    thresholds = [0.4, 0.5, 0.6]
    assert run_of(run_dir).read_cam_meta("fused", "predicted").label_thresholds == thresholds
    for record in records(run_dir):
        cam = read_cam(run_dir / f"cams/patchcam/predicted/{record.name}.npz")
        assert cam.classes.tolist() == np.flatnonzero(cam.scores >= thresholds).tolist()


def test_meta_says_how_the_maps_were_made(run_dir):
    run = run_of(run_dir)
    assert run.read_cam_meta("fused", "predicted") == CamMeta(
        type="fused",
        labels="predicted",
        settings=to_dict(run.config)["cam"],
        checkpoint="checkpoint.pt",
        progress={"epoch": 1, "step": 2},
        label_thresholds=[0.4, 0.5, 0.6],
    )


def test_a_threshold_of_the_config_holds_for_all_classes_and_without_one_it_is_half():
    learnt = {"class_names": ["a", "b"], "label_thresholds": [0.2, 0.9]}
    assert label_thresholds(Config().cam, learnt) == [0.2, 0.9]
    assert label_thresholds(dataclasses.replace(Config().cam, label_threshold=0.7), learnt) == [
        0.7,
        0.7,
    ]
    assert label_thresholds(Config().cam, {"class_names": ["a", "b"]}) == [0.5, 0.5]


def test_scales_and_flip_match_one_image_at_a_time():
    localiser = small_localiser('cam.types=["patchcam","fused"]', "pseudo_label.cam_type=fused")
    model = localiser.network
    generator = torch.Generator().manual_seed(1)
    images = [torch.randn(2, 3, 48, 64, generator=generator)]
    images.append(torch.randn(2, 3, 80, 96, generator=generator))
    outputs = localiser.forward(images)
    assert len(outputs) == 2
    for b, (maps, scores) in enumerate(outputs):
        assert set(maps) == {"patchcam", "fused"}
        expected_scores = []
        for s, batch in enumerate(images):
            with torch.no_grad():
                plain, mirrored = model(batch[b : b + 1]), model(batch[b : b + 1].flip(-1))
            expected_scores += [image_scores(plain)[0], image_scores(mirrored)[0]]
            patchcam = plain.patch_map.relu() + mirrored.patch_map.relu().flip(-1)
            torch.testing.assert_close(maps["patchcam"][s], patchcam[0])
            products = [o.class_attention * o.patch_map.relu() for o in (plain, mirrored)]
            fused = products[0].sqrt() + products[1].sqrt().flip(-1)
            torch.testing.assert_close(maps["fused"][s], fused[0])
        torch.testing.assert_close(scores, torch.stack(expected_scores).mean(0))


def test_a_mirrored_image_gives_mirrored_maps():
    localiser = small_localiser('cam.types=["patchcam"]', "pseudo_label.cam_type=patchcam")
    image = torch.randn(1, 3, 48, 64, generator=torch.Generator().manual_seed(2))
    (plain,), (mirrored,) = localiser.forward([image]), localiser.forward([image.flip(-1)])
    torch.testing.assert_close(mirrored.maps["patchcam"][0].flip(-1), plain.maps["patchcam"][0])


def test_native_cam_is_normalised_per_class():
    maps = torch.rand(3, 3, 4, generator=torch.Generator().manual_seed(3))
    (tile,) = tiles_of((9, 11), 0, 0)
    output = Localised((9, 11), [(tile, TileMaps({"fused": [maps]}, None))], None)
    cam = output.cam("fused", [0, 2])
    expected = min_max(F.interpolate(maps[None, [0, 2]], (9, 11), mode="bilinear")[0])
    np.testing.assert_allclose(cam, expected.numpy(), rtol=1e-6)
    assert output.cam("fused", []).shape == (0, 9, 11)


def copy_of(run_dir: Path, tmp_path: Path) -> Path:
    """Return another folder with the data and the checkpoint of the run."""
    copied = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
    (copied / "stac").mkdir(parents=True)
    for part in ("stac/checkpoint.pt", "data", "labels.csv"):
        if (run_dir / part).exists():
            (copied / part).symlink_to(run_dir / part)
    return copied


def cams_of(run_dir: Path, tmp_path: Path, *overrides: str) -> Path:
    """Write CAMs of the run's checkpoint to another folder."""
    out = copy_of(run_dir, tmp_path)
    make(out, *overrides)
    return out


def test_an_image_that_fits_a_tile_is_not_changed_by_tiling(run_dir, tmp_path):
    whole = cams_of(run_dir, tmp_path, "cam.batch_size=1")
    tiled = cams_of(run_dir, tmp_path, "cam.batch_size=1", "cam.tile=4096")
    for record in records(run_dir):
        for folder in ("patchcam/given", "fused/predicted"):
            pair = [read_cam(out / f"cams/{folder}/{record.name}.npz") for out in (whole, tiled)]
            for before, after in zip(*pair, strict=True):
                np.testing.assert_array_equal(before, after)
    assert run_of(tiled).read_cam_meta("patchcam", "given").settings["tile"] == 4096


def test_tiles_are_normalised_over_the_image_and_score_by_their_maximum(run_dir, tmp_path):
    settings = ["cam.tile=80", "cam.batch_size=2", "cam.scales=[1.5]", "cam.flip=false"]
    out = cams_of(run_dir, tmp_path, *settings)
    model = small_localiser().network
    for record in records(run_dir)[:3]:
        pixels = read_image(record.image)
        size = pixels.shape[:2]
        total, scores = torch.zeros(3, *size, dtype=torch.float64), []
        tiles = tiles_of(size, 80, 0.25)
        assert len(tiles) > 1
        for tile in tiles:
            part = as_image(pixels[tile.rows, tile.columns])
            image = eval_transform((72, 96), [0.5] * 3, [0.5] * 3)(part)
            with torch.no_grad():
                output = model(image[None])
            scores.append(image_scores(output)[0])
            maps = F.interpolate(output.patch_map.relu(), tile.size, mode="bilinear")[0]
            weights = tile.row_weights[:, None].double() * tile.column_weights
            total[:, tile.rows, tile.columns] += weights * maps
        for labels in LABELS:
            cam = read_cam(out / f"cams/patchcam/{labels}/{record.name}.npz")
            np.testing.assert_allclose(cam.scores, torch.stack(scores).amax(0), rtol=1e-4)
            expected = min_max(total[cam.classes]) if len(cam.classes) else np.zeros((0, *size))
            np.testing.assert_allclose(cam.cam, expected, atol=2e-3)  # float16 in the file


def test_folders_are_named_by_type_and_labels(run_dir):
    folders = {path.relative_to(run_dir / "cams") for path in run_dir.glob("cams/*/*")}
    assert folders == {Path(cam_type, labels) for cam_type in TYPES for labels in LABELS}
    run = run_of(run_dir)
    assert run.maps_dir("cam", "fused", "predicted") == run_dir / "cams/fused/predicted"


def test_a_folder_of_another_type_than_its_meta_says_is_refused(run_dir, tmp_path):
    out = cams_of(run_dir, tmp_path)
    (out / "cams/fused/given").rename(out / "cams/fused/moved")
    (out / "cams/patchcam/given").rename(out / "cams/fused/given")
    with pytest.raises(ValueError, match="CAMs of type fused with labels given, got patchcam with"):
        run_of(out).read_cam_meta("fused", "given")


def test_another_checkpoint_may_be_named(run_dir, tmp_path):
    out = copy_of(run_dir, tmp_path)
    (out / "stac/checkpoint.pt").unlink()
    best = tmp_path / "best.pt"
    best.symlink_to(run_dir / "stac/checkpoint.pt")
    make(out, flags=("--checkpoint", str(best), "--split", "test"))
    run = run_of(out)
    assert run.read_cam_meta("pixel", "given").checkpoint == "best.pt"
    names = {path.stem for path in (out / "cams/pixel/given").glob("*.npz")}
    assert names == {record.name for record in run.data.split("test")}
    for name in names:
        ours, theirs = (read_cam(d / f"cams/pixel/given/{name}.npz") for d in (out, run_dir))
        np.testing.assert_allclose(ours.cam, theirs.cam, atol=2e-3)


def test_missing_checkpoint_and_other_classes_are_refused(run_dir, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Run train_stac\.py first"):
        make(run_dir, flags=("--checkpoint", str(run_dir / "stac/best.pt")))
    with pytest.raises(FileNotFoundError, match=r"stac/checkpoint\.pt: .*Run train_stac\.py first"):
        make(tmp_path)
    other = content_of(run_of(run_dir).config) | {"class_names": ["dent"]}
    save_checkpoint(tmp_path / "other.pt", other)
    with pytest.raises(ValueError, match=r"expected the classes inclusion, .* got dent"):
        make(run_dir, flags=("--checkpoint", str(tmp_path / "other.pt")))
