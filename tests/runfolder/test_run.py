"""Where the files of a run lie, and what its folders say of them."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import make_pseudo_labels
from configs import Config, changed, load, to_dict, to_toml
from configs.command_line import stage_parser
from inference.models import run_in
from runfolder.checkpoint import save_checkpoint
from runfolder.run import (
    CamMeta,
    MaskMeta,
    Run,
    SaliencyMeta,
    begin_folder,
    open_run,
    read_meta,
    write_meta,
)

METAS = (
    SaliencyMeta({"generator": "auto"}, {"rounds": 1}, ["train"], {"cut": 0.5}, ["a"], ["b", "c"]),
    SaliencyMeta({"generator": "contrast"}, {"rounds": 0}, ["train", "test"]),
    CamMeta("fused", "given", {"scales": [1.0, 2.0]}, "best.pt", {"epoch": 2, "best": 0.5}, ["a"]),
    MaskMeta({"pamr_steps": 10}, {"thresholds": [0.25, 0.5]}, ["a", "b"]),
)

FACTS = {"class_names": ["dent"], "mean": [0.5] * 3, "std": [0.5] * 3, "progress": {"step": 3}}


def write_checkpoint(path: Path, **values: object) -> None:
    config = changed(Config(), values)
    save_checkpoint(path, FACTS | {"model": {"a": torch.zeros(1)}, "config": to_dict(config)})


@pytest.mark.parametrize("meta", METAS, ids=lambda meta: type(meta).__name__)
def test_meta_comes_back_as_it_was_written(tmp_path, meta):
    assert read_meta(tmp_path, type(meta)) is None

    write_meta(tmp_path / "new", meta)
    assert read_meta(tmp_path / "new", type(meta)) == meta
    assert json.loads((tmp_path / "new/meta.json").read_text()) == asdict(meta)

    begin_folder(tmp_path / "new")
    with pytest.raises(ValueError, match="new: expected complete files, got those of a call that"):
        read_meta(tmp_path / "new", type(meta))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "Expecting property name"),
        ("[]", "Input should be"),
        ('{"type": "fused", "labels": "given"}', "Field required"),
        ('{"type": 3, "labels": "", "settings": {}, "checkpoint": "", "progress": {}}', "string"),
        ("\xff", "utf-8"),
    ],
)
def test_a_damaged_meta_is_named_with_its_remedy(tmp_path, text, reason):
    (tmp_path / "meta.json").write_bytes(text.encode("latin1"))

    expected = rf"meta\.json: expected what this version writes, got: .*{reason}.* Make the folder"
    with pytest.raises(ValueError, match=expected) as error:
        read_meta(tmp_path, CamMeta)
    assert "\n" not in str(error.value)


def test_cams_of_another_type_or_other_labels_are_refused(tmp_path):
    run = Run(tmp_path, Config())
    assert run.read_cam_meta("fused", "given") is None  # brought from elsewhere

    for cam_type, labels in (("fused", "given"), ("patchcam", "given"), ("fused", "predicted")):
        write_meta(run.cam_dir("fused", "given"), replace(METAS[2], type=cam_type, labels=labels))
        if (cam_type, labels) == ("fused", "given"):
            assert run.read_cam_meta("fused", "given") == METAS[2]
            continue
        expected = (
            r"cams/fused/given/meta\.json: expected CAMs of type fused with labels given, got "
            rf"{cam_type} with labels {labels}\. Move them back, or run make_cams\.py\."
        )
        with pytest.raises(ValueError, match=expected):
            run.read_cam_meta("fused", "given")


def test_pseudo_labels_are_not_made_of_cams_of_another_type(tmp_path, neu_root):
    data = {"data.source": "neu_seg", "data.root": str(neu_root), "data.eval_split": "train"}
    run = Run(tmp_path / "run", changed(Config(), data))
    run.begin_stage()
    write_meta(run.cam_dir("fused", "given"), replace(METAS[2], type="patchcam"))

    with pytest.raises(ValueError, match="expected CAMs of type fused .* got patchcam"):
        make_pseudo_labels.main(["--out", str(run.folder)])
    assert not run.pseudo_label_dir.exists()


def test_every_kind_of_map_has_its_folder(tmp_path):
    run = Run(tmp_path, Config())
    folders = {
        ("saliency",): "saliency",
        ("cam", "attention", "predicted"): "cams/attention/predicted",
        ("pseudo_label",): "pseudo_labels",
        ("segmentation",): "predictions",
    }
    for what, folder in folders.items():
        assert run.maps_dir(*what) == tmp_path / folder


def test_the_last_weights_of_both_trainings_are_taken_first(tmp_path):
    run = Run(tmp_path, Config())
    assert run.stac_checkpoint() == tmp_path / "stac/checkpoint.pt"  # to be named in an error
    assert run.segmentation_checkpoint() == tmp_path / "segmentation/checkpoint.pt"
    for path in (tmp_path / "stac/best.pt", tmp_path / "segmentation/best.pt"):
        path.parent.mkdir()
        path.touch()
    assert run.stac_checkpoint() == tmp_path / "stac/best.pt"
    assert run.segmentation_checkpoint() == tmp_path / "segmentation/best.pt"
    (tmp_path / "stac/checkpoint.pt").touch()
    (tmp_path / "segmentation/checkpoint.pt").touch()
    assert run.stac_checkpoint() == tmp_path / "stac/checkpoint.pt"
    assert run.segmentation_checkpoint() == tmp_path / "segmentation/checkpoint.pt"


def test_a_run_is_opened_with_the_config_and_folder_of_the_command_line(tmp_path):
    (tmp_path / "mine.toml").write_text("[train]\nepochs = 3\n")
    words = ["--config", str(tmp_path / "mine.toml"), "--out", str(tmp_path / "run")]
    run = open_run(stage_parser("").parse_args([*words, "--set", "train.lr=1"]))

    assert run.folder == tmp_path / "run"
    assert run.config == changed(Config(), {"train.epochs": 3, "train.lr": 1.0})
    options = f"--config {tmp_path}/run/config.toml --out {tmp_path}/run"
    assert run.command("make_cams.py") == f"python make_cams.py {options}"
    run.begin_stage()
    assert load(run.config_path) == run.config


def test_a_run_is_known_by_its_config_else_by_its_checkpoints(tmp_path):
    expected = r"run: expected a run folder with config\.toml, segmentation/checkpoint\.pt or "
    with pytest.raises(FileNotFoundError, match=expected):
        run_in(tmp_path / "run")

    write_checkpoint(tmp_path / "run/stac/best.pt", **{"train.epochs": 3})
    assert run_in(tmp_path / "run").config.train.epochs == 3
    write_checkpoint(tmp_path / "run/segmentation/checkpoint.pt", **{"train.epochs": 4})
    assert run_in(tmp_path / "run").config.train.epochs == 4
    Run(tmp_path / "run", changed(Config(), {"train.epochs": 5})).begin_stage()
    assert run_in(tmp_path / "run").config.train.epochs == 5


def test_a_run_folder_of_an_earlier_version_is_refused_with_all_that_is_gone(tmp_path):
    expected = (
        r"expected settings of this version, got 2 of an earlier one: "
        r"train\.ema \(gone, .*\); segmentation\.zoom \(gone, .*\)\. Remove or replace them; "
        r"checkpoints and run folders that hold them must be made anew"
    )
    old = to_toml(Config())
    old = old.replace("[train]\n", "[train]\nema = 0.5\n")
    old = old.replace("[segmentation]\n", "[segmentation]\nzoom = 1.0\n")
    (tmp_path / "config.toml").write_text(old)
    with pytest.raises(ValueError, match=rf"config\.toml: {expected}"):
        run_in(tmp_path)
    with pytest.raises(ValueError, match=rf"config\.toml: {expected}"):
        open_run(stage_parser("").parse_args(["--out", str(tmp_path)]))

    (tmp_path / "config.toml").unlink()
    config = to_dict(Config())
    config["train"]["ema"], config["segmentation"]["zoom"] = 0.5, 1.0
    save_checkpoint(tmp_path / "stac/checkpoint.pt", FACTS | {"model": {}, "config": config})
    with pytest.raises(ValueError, match=rf"checkpoint\.pt: {expected}"):
        run_in(tmp_path)


def test_whoever_reads_files_of_a_stopped_call_is_refused(tmp_path):
    run = Run(tmp_path, Config())
    begin_folder(run.cam_dir("fused", "given"))

    with pytest.raises(ValueError, match="cams/fused/given: expected complete files"):
        run.read_cam_meta("fused", "given")
