import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import datasets.decoding
import make_saliency
import saliency.auto
import saliency.contrast
import saliency.normal
import saliency.student
from configs.command_line import ROOT, run_stage
from datasets.files import read_image, read_saliency, write_image, write_mask, write_saliency

HEIGHT, WIDTH = 46, 61
BLOB = (slice(12, 22), slice(30, 44))
NUM_EACH = 6  # images of inclusion (dark), of scratches (bright) and of nothing


@pytest.fixture
def release(tmp_path: Path) -> Path:
    """A NEU-Seg folder: a_* dark inclusions, b_* bright scratches, c_* defect-free."""
    root = tmp_path / "neu"
    rng = np.random.default_rng(0)
    for kind, level, value in (("a", 60, 1), ("b", 210, 3), ("c", None, 0)):
        for index in range(NUM_EACH):
            image = np.repeat(rng.integers(120, 130, (HEIGHT, WIDTH, 1)), 3, axis=2)
            mask = np.zeros((HEIGHT, WIDTH), np.uint8)
            if level:
                image[BLOB] = level
                mask[BLOB] = value
            name = f"{kind}_{index}"
            write_image(root / f"images/training/{name}.jpg", image.astype(np.uint8))
            write_mask(root / f"annotations/training/{name}.png", mask)
    return root


TINY = ["saliency.backbone=test_vit", "saliency.weights=none", "saliency.image_size=256"]
REFINE = [*TINY, "refinement.image_size=[64,64]", "refinement.steps=2"]


@pytest.fixture
def small(monkeypatch) -> None:
    """Networks that see little, and few defect-free images that are enough for `auto`."""
    monkeypatch.setattr(saliency.auto, "AUTO_DEFECT_FREE", NUM_EACH - 1)  # one is held out
    monkeypatch.setattr(saliency.normal, "CORESET", 200)
    monkeypatch.setattr(saliency.student, "FEATURE_SIZE", 64)
    monkeypatch.setattr(saliency.student, "BATCH_SIZE", 2)


def run(release: Path, out: Path, *more: str) -> None:
    settings = ["data.source=neu_seg", f"data.root={release}", "data.eval_split=val"]
    make_saliency.main(["--out", str(out), *more, "--set", *settings])


def write_maps(folder: Path, suffix: str = ".png") -> None:
    for kind in "ab":
        for index in range(NUM_EACH):
            saliency = np.full((HEIGHT, WIDTH), 51, np.uint8)
            saliency[BLOB] = 255
            write_image(folder / f"{kind}_{index}{suffix}", saliency)


def test_every_training_image_gets_its_map(release, tmp_path, capsys):
    out = tmp_path / "run"
    run(release, out)
    names = sorted(path.name for path in (out / "saliency").iterdir())
    kinds = [f"{kind}_{i}.png" for kind in "abc" for i in range(NUM_EACH)]
    assert names == [*kinds, "meta.json"]
    for name in ("a_0", "b_3"):
        saliency = read_saliency(out / f"saliency/{name}.png")
        assert saliency.shape == (HEIGHT, WIDTH)
        assert saliency[BLOB].mean() > 0.9
        assert np.median(saliency) < 0.2
    assert not read_saliency(out / "saliency/c_1.png").any()
    printed = capsys.readouterr().out
    assert "18 maps of train, 6 of them of defect-free images" in printed
    assert "inclusion: dark" in printed
    assert "patches: both (set, or no training image" in printed
    assert "scratches: bright" in printed
    assert f"next: python train_stac.py --config {out / 'config.toml'} --out {out}" in printed


def test_a_config_of_a_large_data_set_refines_the_maps_of_few_images(release, tmp_path, small):
    out = tmp_path / "run"
    (out / ".refinement").mkdir(parents=True)
    config = ["--config", str(ROOT / "configs/neu_seg.toml"), "--device", "cpu"]
    run(release, out, *config, "--set", *REFINE)
    assert len(list((out / "saliency").glob("*.png"))) == 3 * NUM_EACH
    meta = json.loads((out / "saliency/meta.json").read_text())
    assert meta["refinement"]["rounds"] == 1
    assert not (out / ".refinement").exists()


def test_meta_holds_polarities_and_settings(release, tmp_path):
    run(release, tmp_path / "run")
    meta = json.loads((tmp_path / "run/saliency/meta.json").read_text())
    sides = {name: polarity["side"] for name, polarity in meta["learnt"]["polarities"].items()}
    assert sides == {"inclusion": "dark", "patches": "both", "scratches": "bright"}
    assert meta["learnt"]["polarities"]["inclusion"]["num_images"] == NUM_EACH
    assert meta["settings"]["generator"] == "contrast"
    assert meta["splits"] == ["train"]  # a validation part that is drawn lies in it


def test_polarity_is_learnt_from_the_training_split_only(release, tmp_path):
    for path in sorted((release / "images/training").glob("a_*")):
        # Test images of class inclusion are bright: learnt from, they would give `both`.
        for kind in ("images", "annotations"):
            (release / kind / "test").mkdir(exist_ok=True)
        write_image(release / f"images/test/{path.name}", 255 - read_image(path))
        mask = release / f"annotations/training/{path.stem}.png"
        shutil.copy(mask, release / f"annotations/test/{path.stem}.png")
    run(release, tmp_path / "run", "--split", "test")
    maps = sorted(path.name for path in (tmp_path / "run/saliency").glob("*.png"))
    assert maps == [f"a_{index}t.png" for index in range(NUM_EACH)]
    meta = json.loads((tmp_path / "run/saliency/meta.json").read_text())
    assert meta["learnt"]["polarities"]["inclusion"]["side"] == "dark"
    assert read_saliency(tmp_path / "run/saliency/a_0t.png")[BLOB].mean() < 0.2


def test_configured_polarity_overrides_the_learnt_one(release, tmp_path):
    run(release, tmp_path / "run", "--split", "train", "--set", "saliency.polarity=bright")
    assert read_saliency(tmp_path / "run/saliency/a_0.png")[BLOB].mean() < 0.2
    assert read_saliency(tmp_path / "run/saliency/b_0.png")[BLOB].mean() > 0.9


def test_votes_are_limited_and_spread_over_the_split(release, tmp_path, monkeypatch):
    monkeypatch.setattr(saliency.contrast, "MAX_VOTES", 5)
    run(release, tmp_path / "run")
    meta = json.loads((tmp_path / "run/saliency/meta.json").read_text())
    # 6 images, at most 5: every second one, 3 votes, which is too few to decide
    assert meta["learnt"]["polarities"]["inclusion"]["num_images"] == 3
    assert meta["learnt"]["polarities"]["inclusion"]["side"] == "both"


def test_no_mask_is_needed_once_the_labels_are_written(release, tmp_path):
    out = tmp_path / "run"
    run(release, out)
    before = {p.name: p.read_bytes() for p in (out / "saliency").glob("*.png")}
    shutil.rmtree(release / "annotations")
    shutil.rmtree(out / "saliency")
    run(release, out)
    assert {p.name: p.read_bytes() for p in (out / "saliency").glob("*.png")} == before


def test_no_mask_is_read_for_the_maps(release, tmp_path, monkeypatch):
    out = tmp_path / "run"
    run(release, out)

    def refuse(path, what):
        raise AssertionError(f"a mask was opened: {path}")

    monkeypatch.setattr(datasets.decoding, "read_single_channel", refuse)
    run(release, out)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_external_maps_are_written_through(release, tmp_path, suffix):
    maps, out = tmp_path / "maps", tmp_path / "run"
    write_maps(maps, suffix)
    write_saliency(maps / "c_0.png", np.ones((HEIGHT, WIDTH)))
    run(release, out, "--from-dir", str(maps))
    saliency = read_saliency(out / "saliency/a_0.png")
    tolerance = 0 if suffix == ".png" else 0.05
    assert np.abs(saliency[BLOB] - 1).mean() <= tolerance
    assert abs(saliency[0, 0] - 0.2) <= tolerance + 1e-6
    assert not read_saliency(out / "saliency/c_0.png").any()
    meta = json.loads((out / "saliency/meta.json").read_text())
    assert meta["settings"]["generator"] == "external"
    assert "polarities" not in meta["learnt"]


def test_maps_of_a_folder_are_refined_only_where_asked(release, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        make_saliency.learned,
        "prepare",
        lambda config, generator, *_: asked.append(config.refinement.rounds) or generator,
    )
    write_maps(tmp_path / "maps")
    refined = ["--set", "refinement.rounds=1"]
    run(release, tmp_path / "run", "--from-dir", str(tmp_path / "maps"), *refined)
    assert asked == []
    run(release, tmp_path / "run", "--from-dir", str(tmp_path / "maps"), "--refine", "2", *refined)
    assert asked == [2, 2]
    run(release, tmp_path / "run", *refined)
    assert asked == [2, 2, 1]


def test_configured_folder_is_taken_like_from_dir(release, tmp_path):
    write_maps(tmp_path / "maps")
    external = ["saliency.generator=external", f"saliency.folder={tmp_path / 'maps'}"]
    run(release, tmp_path / "run", "--set", *external)
    assert read_saliency(tmp_path / "run/saliency/b_0.png")[BLOB].min() == 1


def test_external_map_of_another_size_is_refused(release, tmp_path):
    write_maps(tmp_path / "maps")
    write_saliency(tmp_path / "maps/a_2.png", np.zeros((10, 20)))
    message = r"1 could not be made.*a_2.png: expected the size of its image, 46 x 61, got 10 x 20"
    with pytest.raises(ValueError, match=message):
        run(release, tmp_path / "run", "--from-dir", str(tmp_path / "maps"))


def test_unreadable_images_are_collected_and_the_rest_is_written(release, tmp_path):
    out = tmp_path / "run"
    run(release, out)
    for path in (out / "saliency").glob("*.png"):
        path.unlink()
    for kind in "abc":
        for index in range(2):
            (release / f"images/training/{kind}_{index}.jpg").write_bytes(b"no picture")
    with pytest.raises(
        ValueError, match=r"for every image, 6 could not be made.*a_0\.jpg"
    ) as error:
        run(release, out)
    assert str(error.value).count("Replace or remove") == 5
    assert len(list((out / "saliency").glob("*.png"))) == 3 * NUM_EACH - 6
    assert json.loads((out / "saliency/meta.json").read_text()) == {"unfinished": True}
    # As a script: one line and exit code 1.
    arguments = ["--out", str(out), "--set", "data.source=neu_seg", f"data.root={release}"]
    with pytest.raises(SystemExit, match="^error: .*6 could not be made"):
        run_stage(lambda _: make_saliency.main([*arguments, "data.eval_split=val"]))


def test_wrong_split_is_named(release, tmp_path):
    with pytest.raises(
        ValueError, match="split 'test': expected one of train, val, fit|train, fit"
    ):
        run(release, tmp_path / "run", "--split", "test")


@pytest.mark.parametrize("generator", ["feature", "normal", "variation", "auto"])
def test_every_generator_writes_maps_that_beat_chance(release, tmp_path, small, generator):
    torch.manual_seed(0)
    run(
        release,
        tmp_path / "run",
        "--device",
        "cpu",
        "--set",
        *TINY,
        f"saliency.generator={generator}",
    )
    for name in ("a_0", "a_5", "b_2"):
        saliency = read_saliency(tmp_path / f"run/saliency/{name}.png")
        assert saliency.shape == (HEIGHT, WIDTH)
        surface = np.ones((HEIGHT, WIDTH), bool)
        surface[BLOB] = False
        assert (saliency[BLOB].reshape(-1, 1) > saliency[surface]).mean() > 0.75
    assert not read_saliency(tmp_path / "run/saliency/c_0.png").any()


def test_meta_of_auto_holds_what_each_part_learnt(release, tmp_path, small):
    run(release, tmp_path / "run", "--device", "cpu", "--set", *TINY, "saliency.generator=auto")
    meta = json.loads((tmp_path / "run/saliency/meta.json").read_text())
    assert meta["learnt"]["normal"]["images"] == NUM_EACH - 1  # one is held out
    assert meta["learnt"]["variation"]["inclusion"]["share"] > 0
    assert set(meta["learnt"]["auto"]) == {"inclusion", "patches", "scratches"}
    seen, free = meta["seen_defect_free"], {f"c_{i}" for i in range(NUM_EACH)}
    assert seen == sorted(seen) and len(seen) == NUM_EACH - 1 and set(seen) < free


@pytest.mark.parametrize("generator", ["contrast", "feature", "normal"])
def test_defect_free_images_get_real_maps_where_asked(release, tmp_path, small, capsys, generator):
    chosen = [f"saliency.generator={generator}", "saliency.empty_defect_free=false"]
    run(release, tmp_path / "run", "--device", "cpu", "--set", *TINY, *chosen)
    maps = [read_saliency(tmp_path / f"run/saliency/c_{i}.png") for i in range(NUM_EACH)]
    assert all(saliency.any() for saliency in maps)
    assert "6 of them of defect-free images." in capsys.readouterr().out


def test_normal_without_defect_free_images_is_refused(release, tmp_path):
    for path in release.glob("*/training/c_*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"saliency\.generator=normal: .*Set saliency\.generator"):
        run(release, tmp_path / "run", "--set", *TINY, "saliency.generator=normal")


def test_masks_are_used_only_where_asked_and_never_silently(release, tmp_path, small, capsys):
    more = ["--device", "cpu", "--masks", "2", "--set", *REFINE]
    with pytest.raises(ValueError, match=r"refinement\.masks=2: .* Add --refine 1"):
        run(release, tmp_path / "run", *more)
    run(release, tmp_path / "run", "--refine", "1", *more)
    assert "made with 2 pixel masks: no longer image labels alone" in capsys.readouterr().out
    meta = json.loads((tmp_path / "run/saliency/meta.json").read_text())
    assert len(meta["masked"]) == 2
    for name in meta["masked"]:
        saliency = read_saliency(tmp_path / f"run/saliency/{name}.png")
        truth = np.zeros((HEIGHT, WIDTH))
        truth[BLOB] = 1
        np.testing.assert_array_equal(saliency, truth)
    run(release, tmp_path / "other", "--refine", "1", "--device", "cpu", "--set", *REFINE)
    meta = json.loads((tmp_path / "other/saliency/meta.json").read_text())
    assert meta["masked"] == []
    assert meta["refinement"]["rounds"] == 1
