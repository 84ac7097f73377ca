"""Every stage in order on a dozen images, and how each ends when something is wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import evaluation
import make_cams
import make_pseudo_labels
import make_saliency
import make_sheet
import train_stac
from configs import load
from configs.command_line import run_stage
from datasets.files import read_cam, read_image, read_mask, write_cam, write_mask, write_saliency
from datasets.sources import read_data
from segmentation import infer as segmentation_infer
from segmentation import train as segmentation_train

STAGES = {
    "saliency": make_saliency.main,
    "train": train_stac.main,
    "cams": make_cams.main,
    "pseudo_labels": make_pseudo_labels.main,
    "segmentation": segmentation_train.main,
    "predictions": segmentation_infer.main,
}
SCRIPTS = {**STAGES, "evaluation": evaluation.main, "sheet": make_sheet.main}
TINY = [
    "data.sample_train=12",
    "data.sample_test=4",
    "data.val_fraction=0.25",
    "refinement.rounds=1",
    "refinement.network=unet",
    "refinement.encoder=tu-test_efficientnet",
    "refinement.pretrained=none",
    "refinement.image_size=[64,64]",
    "refinement.steps=2",
    "refinement.batch_size=4",
    "train.depth=2",
    "train.image_size=[64,80]",
    "train.epochs=2",
    "train.projection_width=16",
    "loss.num_anchors=16",
    "loss.num_negatives=16",
    "cam.scales=[1.0,1.5]",
    "segmentation.image_size=[64,80]",
    "segmentation.rotate=false",
    "segmentation.encoder=tu-test_efficientnet",
    "segmentation.epochs=1",
    "segmentation.batch_size=4",
]
ROW = {
    "kind", "split", "images", "labels", "threshold", "threshold_rule", "iou", "miou", "fg_iou",
    "fp", "fn", "config_sha", "commit", "date", "absent",
}  # fmt: skip
SALIENCY = {
    "auroc", "ap", "max_f", "best_fg_iou", "best_fg_threshold", "mae", "recall", "false_alarm",
    "defect_free_images",
}  # fmt: skip

pytestmark = pytest.mark.end_to_end


def flags(root: Path, *overrides: str) -> list[str]:
    settings = [*TINY, f"data.root={root}/data", *overrides]
    run = ["--config", "configs/sample.toml", "--out", str(root / "run"), "--device", "cpu"]
    return [*run, "--set", *settings]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with data/ and run/ in which every stage has run; the masks come back at the end."""
    root = tmp_path_factory.mktemp("end_to_end")
    make_saliency.main(flags(root))
    masks = root / "data/SegmentationClass"
    masks.rename(root / "masks_put_away")
    for name, main in STAGES.items():
        if name != "saliency":
            main(flags(root))
    (root / "masks_put_away").rename(masks)
    for kind in ("saliency", "cam", "segmentation"):
        evaluation.main([*flags(root), "--kind", kind])
    evaluation.main([*flags(root), "--kind", "cam", "--labels", "predicted"])
    evaluation.main([*flags(root), "--kind", "pseudo_label", "--split", "train"])
    return root


@pytest.fixture
def broken(finished, tmp_path) -> Path:
    """A copy of the finished folder to break something in."""
    return shutil.copytree(finished, tmp_path / "copy")


def test_every_image_gets_a_file_of_every_stage(finished):
    config = load("configs/sample.toml", [*TINY, f"data.root={finished}/data"])
    data = read_data(config.data, finished / "run/labels.csv")
    for record in (*data.split("train"), *data.split("test")):
        size = read_image(record.image).shape[:2]
        mask = read_mask(finished / f"run/pseudo_labels/{record.name}.png", 3)
        assert mask.shape == size
        assert set(np.unique(mask)) <= {0, 255, *(k + 1 for k in record.classes)}
        if record in data.split("test"):
            prediction = read_mask(finished / f"run/predictions/{record.name}.png", 3)
            assert prediction.shape == size
            assert 255 not in prediction


def test_every_result_names_what_it_is(finished):
    lines = (finished / "run/results.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    found = {(row["kind"], row["split"], row["labels"], row["threshold_rule"]) for row in rows}
    assert found == {
        ("saliency", "test", "given", "auto"),
        ("saliency", "test", "given", "oracle"),
        ("cam", "test", "given", "agreement"),
        ("cam", "test", "given", "auto"),
        ("cam", "test", "given", "oracle"),
        ("cam", "test", "predicted", "agreement"),
        ("cam", "test", "predicted", "auto"),
        ("cam", "test", "predicted", "oracle"),
        ("pseudo_label", "train", "given", "none"),
        ("segmentation", "test", "predicted", "none"),
    }
    for row in rows:
        more = {"saliency": SALIENCY, "cam": {"cam_type"}}.get(row["kind"], set())
        assert set(row) == ROW | more
    assert all(0 <= row["miou"] <= 100 for row in rows)


def test_table_and_sheet_show_the_run(finished, capsys):
    evaluation.main(["--out", str(finished / "run"), "--table"])
    printed = capsys.readouterr().out
    for stage in ("saliency", "cam (pixel)", "pseudo_label", "segmentation"):
        assert f"| {stage} " in printed
    make_sheet.main([*flags(finished), "--count", "3"])
    sheet = read_image(finished / "run/sheet_test.png")
    assert sheet.shape[0] == 3 * (make_sheet.CELL + make_sheet.GAP)
    assert sheet.std() > 10
    small = ["saliency.backbone=test_vit", "saliency.weights=none", "saliency.block=1"]
    small += ["saliency.affinity_block=0", "saliency.image_size=96"]
    chosen = ["--saliency", "--split", "train", "--count", "2", "--random", "0"]
    with_defect_free = ["data.sample_train=30", f"data.root={finished}/more"]
    make_sheet.main([*flags(finished, *small, *with_defect_free), *chosen])
    out = capsys.readouterr().out
    assert "columns: image, contrast, feature, normal, variation, run, truth" in out
    sheet = read_image(finished / "run/saliency_sheet_train.png")
    assert sheet.shape == tuple(n * (make_sheet.CELL + make_sheet.GAP) for n in (2, 7)) + (3,)


@pytest.mark.parametrize("generator", ["contrast", "feature", "normal", "variation", "fuse"])
def test_every_generator_beats_chance_on_the_sample(finished, tmp_path, generator):
    small = ["data.sample_train=60", f"data.root={finished}/sixty", "refinement.rounds=0"]
    small += ["saliency.backbone=resnet18", "saliency.weights=none", "saliency.block=2"]
    small += ["saliency.affinity_block=0", "saliency.image_size=160", "saliency.coreset=500"]
    small += ['saliency.auto=["normal", "contrast"]', "saliency.auto_rule=first"]
    settings = ["--set", *small, f"saliency.generator={generator}"]
    command = ["--config", "configs/sample.toml", "--out", str(tmp_path), "--split", "train"]
    torch.manual_seed(0)
    make_saliency.main([*command, "--device", "cpu", *settings])
    evaluation.main([*command, "--kind", "saliency", *settings])
    row = json.loads((tmp_path / "results.jsonl").read_text().splitlines()[0])
    assert row["auroc"] > 60


def test_refinement_adds_five_points_of_iou_on_the_sample(tmp_path):
    small = ["data.sample_train=64", f"data.root={tmp_path}/data", "refinement.network=features"]
    small += ["refinement.backbone=test_vit", "refinement.weights=none", "refinement.blocks=[1,2]"]
    small += ["refinement.feature_size=64", "refinement.image_size=[96,96]", "refinement.folds=1"]
    small += ["refinement.steps=120", "refinement.batch_size=8", "refinement.lr=3e-3"]
    small += ["refinement.robustness=0.3", "refinement.smoothing=10"]
    best = []
    for rounds in ("0", "1"):
        out = tmp_path / rounds
        command = ["--config", "configs/sample.toml", "--out", str(out), "--device", "cpu"]
        make_saliency.main([*command, "--split", "train", "--refine", rounds, "--set", *small])
        scored = ["--config", str(out / "config.toml"), "--out", str(out), "--split", "train"]
        evaluation.main([*scored, "--kind", "saliency"])
        row = json.loads((out / "results.jsonl").read_text().splitlines()[0])
        best.append(row["best_fg_iou"])
        assert row["auroc"] > 85
    assert best[1] > best[0] + 5


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_describes_every_flag(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        SCRIPTS[name](["--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert all(flag in printed for flag in ("--config", "--out", "--set", "--device"))


def error_line(main: Callable, arguments: list[str]) -> str:
    """Run a stage as its script does and return the line it stops with."""
    with pytest.raises(SystemExit) as stopped:
        run_stage(lambda _: main(arguments))
    line = stopped.value.code
    assert isinstance(line, str)  # printed to stderr; the exit code is 1
    assert line.startswith("error: ")
    assert "\n" not in line
    return line


@pytest.mark.parametrize("name", [*STAGES, "sheet"])
def test_wrong_path_and_unknown_key_stop_every_script(name, finished):
    main = SCRIPTS[name]
    nowhere = ["data.source=neu_seg", f"data.root={finished}/nowhere"]
    line = error_line(main, flags(finished, *nowhere))
    assert "nowhere: expected the folder of the neu_seg release, found none" in line
    line = error_line(main, flags(finished, "train.epoch=3"))
    assert "train.epoch: unknown key. Did you mean train.epochs?" in line
    line = error_line(main, ["--config", str(finished / "none.toml")])
    assert "none.toml: expected a config file" in line


def test_corrupt_image_is_named(broken):
    path = broken / "data/JPEGImages/train_0001.jpg"
    path.write_bytes(path.read_bytes()[:400])
    assert "train_0001.jpg" in error_line(make_saliency.main, flags(broken))
    assert "train_0001.jpg" in error_line(train_stac.main, flags(broken))
    assert "train_0001.jpg" in error_line(make_cams.main, flags(broken))


def test_size_mismatch_is_named(broken):
    for name in ("train_0002", "test_0001"):
        write_saliency(broken / f"run/saliency/{name}.png", np.ones((20, 30)))
        write_mask(broken / f"run/pseudo_labels/{name}.png", np.zeros((20, 30), np.uint8))
    assert "train_0002.png: expected the size" in error_line(train_stac.main, flags(broken))
    evaluate = [*flags(broken), "--kind", "saliency"]
    assert "test_0001.png: expected the size" in error_line(evaluation.main, evaluate)
    line = error_line(segmentation_train.main, flags(broken))
    assert "train_0002.png: expected the size" in line


def test_wrong_class_count_is_named(broken):
    path = broken / "run/cams/train_0000.npz"
    cam = read_cam(path)
    write_cam(path, cam._replace(scores=np.ones(7, np.float32)))
    line = error_line(make_pseudo_labels.main, flags(broken))
    assert "train_0000.npz: expected scores of 3 classes, got 7" in line
    write_mask(broken / "run/predictions/test_0002.png", np.full((9, 9), 5, np.uint8))
    line = error_line(evaluation.main, [*flags(broken), "--kind", "segmentation"])
    assert "test_0002.png: expected mask values 0..3" in line
