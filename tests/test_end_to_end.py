"""Every stage in order on a dozen images, and how each ends when something is wrong."""

import contextlib
import itertools
import json
import re
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
import report
import saliency.auto
import saliency.learned
import saliency.normal
import saliency.student
import train_stac
from configs import load, to_dict
from configs.command_line import run_stage
from datasets.files import read_cam, read_image, read_mask, write_cam, write_mask, write_saliency
from datasets.sources import read_data
from execution import progress
from runfolder.run import CamMeta, MaskMeta, SaliencyMeta, read_meta
from segmentation import infer as segmentation_infer
from segmentation import train as segmentation_train

LABELS = ("given", "predicted")
STAGES = {
    "saliency": make_saliency.main,
    "train": train_stac.main,
    "cams": make_cams.main,
    "pseudo_labels": make_pseudo_labels.main,
    "segmentation": segmentation_train.main,
    "predictions": segmentation_infer.main,
}
SCRIPTS = {**STAGES, "evaluation": evaluation.main, "report": report.main}
TINY = [
    "data.sample_train=12",
    "data.sample_test=4",
    "data.seed=8",  # with defect-free images in every split, also where nothing else is validated
    "data.val_fraction=0.25",
    "saliency.backbone=test_vit",
    "saliency.weights=none",
    "refinement.rounds=1",
    "refinement.image_size=[64,64]",
    "refinement.steps=2",
    "train.depth=2",
    "train.image_size=[64,80]",
    "train.epochs=2",
    "train.projection_width=16",
    "loss.num_anchors=16",
    "loss.num_negatives=16",
    'cam.types=["pixel","fused"]',
    "cam.scales=[1.0,1.5]",
    "segmentation.image_size=[64,80]",
    "segmentation.encoder=tu-test_efficientnet",
    "segmentation.epochs=1",
    "segmentation.batch_size=4",
]
ROW = {
    "kind", "split", "part", "images", "labels", "threshold", "threshold_rule", "iou", "miou",
    "fg_iou", "fp", "fn", "config_sha", "commit", "dirty", "date", "absent",
}  # fmt: skip
SALIENCY = {
    "auroc", "ap", "max_f", "best_fg_iou", "best_fg_threshold", "mae", "recall", "false_alarm",
    "defect_free_images",
}  # fmt: skip

PROGRESS = re.compile(r"  (.+): (\d+) of (\d+), .* left")

pytestmark = pytest.mark.end_to_end


def flags(root: Path, *overrides: str) -> list[str]:
    settings = [*TINY, f"data.root={root}/data", *overrides]
    run = ["--config", "configs/sample.toml", "--out", str(root / "run"), "--device", "cpu"]
    return [*run, "--set", *settings]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with data/ and run/ in which every stage has run; the masks come back at the end."""
    root = tmp_path_factory.mktemp("end_to_end")
    masks, put_away = root / "data/SegmentationClass", root / "masks_put_away"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saliency.student, "FEATURE_SIZE", 64)
        patch.setattr(progress, "LINE_EVERY", 0.0)
        for name, main in STAGES.items():
            log = root / f"{name}.log"
            with log.open("w", encoding="utf-8") as file, contextlib.redirect_stderr(file):
                main(flags(root))
            if name == "saliency":
                masks.rename(put_away)
        put_away.rename(masks)
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


WAITED_FOR = {
    "saliency": {"finding copies", "polarity", "priors", "features", "refinement", "saliency"},
    "train": {"training", "validation"},
    "cams": {"CAMs"},
    "pseudo_labels": {"training maps", "pseudo labels, train", "pseudo labels, test"},
    "segmentation": {"training", "validation"},
    "predictions": {"predictions"},
}


@pytest.mark.parametrize("stage", STAGES)
def test_every_step_and_image_that_is_waited_for_is_seen_in_a_log(finished, stage):
    # A line is due at each, and is written if the last one is a minute old.
    counts: dict[str, list[int]] = {}
    for line in (finished / f"{stage}.log").read_text(encoding="utf-8").splitlines():
        if found := PROGRESS.match(line):
            title, done, total = found[1], int(found[2]), int(found[3])
            counts.setdefault(title, []).append(done)
            assert done <= total
    assert set(counts) >= WAITED_FOR[stage]
    for done in counts.values():
        assert all(after - before <= 1 for before, after in itertools.pairwise(done))


def test_every_result_names_what_it_is(finished):
    lines = (finished / "run/results.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    places = {(row["kind"], row["split"], row["labels"], row["threshold_rule"]) for row in rows}
    assert places == {
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
        is_first = row["threshold_rule"] in ("none", "agreement")
        of_images = {"image"} if row["labels"] == "predicted" and is_first else set()
        assert set(row) == ROW | more | of_images
    assert all(0 <= row["miou"] <= 100 for row in rows)


def test_table_and_sheet_show_the_run(finished, capsys):
    evaluation.main(["--out", str(finished / "run"), "--table"])
    printed = capsys.readouterr().out
    for stage in ("saliency", "cam (pixel)", "pseudo_label", "segmentation"):
        assert f"| {stage} " in printed
    report.main([*flags(finished), "--sheet", "--count", "3"])
    assert "left out" not in capsys.readouterr().out
    sheet = (finished / "run/sheet_test.svg").read_text()
    for caption in ("image", "saliency", "CAM (pixel)", "pseudo label", "prediction"):
        assert f">{caption}</text>" in sheet
    assert ">–</text>" not in sheet  # no cell is empty
    report.main(flags(finished))
    page = (finished / "run/report.html").read_text()
    rows = [json.loads(line) for line in (finished / "run/results.jsonl").read_text().splitlines()]
    (of_masks,) = (row for row in rows if row["kind"] == "segmentation")
    assert f'figure-value">{of_masks["miou"]:.2f} %' in page
    notes = re.findall(r'role="note">(.*?)</p>', page)
    assert all(note.startswith("To be doubted: ") for note in notes)  # no figure differs
    assert {path.name for path in (finished / "run/figures").glob("*.svg")} >= {"threshold.svg"}


METAS = {"saliency": SaliencyMeta, "pseudo_labels": MaskMeta, "predictions": MaskMeta}
METAS |= {f"cams/{t}/{labels}": CamMeta for t in ("pixel", "fused") for labels in LABELS}


def test_every_folder_of_maps_says_how_it_was_made(finished):
    for folder, kind in METAS.items():
        assert isinstance(read_meta(finished / "run" / folder, kind), kind), folder
    config = load(finished / "run/config.toml")
    meta = read_meta(finished / "run/predictions", MaskMeta)
    assert meta.settings == to_dict(config)["segmentation"]
    assert meta.made_from["checkpoint"] == "checkpoint.pt"
    assert meta.made_from["progress"]["epoch"] == 1
    labels = read_meta(finished / "run/pseudo_labels", MaskMeta)
    assert labels.settings == to_dict(config)["pseudo_label"]
    assert len(labels.made_from["thresholds"]) == 3


@pytest.mark.parametrize(
    ("stage", "writer", "folder"),
    [
        (make_saliency, "write_saliency", "saliency"),
        (make_cams, "write_bytes", "cams"),
        (make_pseudo_labels, "write_mask", "pseudo_labels"),
        (segmentation_infer, "write_mask", "predictions"),
    ],
)
def test_a_stopped_stage_leaves_no_word_that_its_files_are_complete(
    broken, monkeypatch, stage, writer, folder
):
    assert list((broken / "run" / folder).rglob("meta.json"))

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(saliency.student, "FEATURE_SIZE", 64)
    monkeypatch.setattr(stage, writer, stop)
    with pytest.raises(KeyboardInterrupt):
        stage.main(flags(broken))
    metas = [json.loads(p.read_text()) for p in (broken / "run" / folder).rglob("meta.json")]
    assert metas
    assert all(meta == {"unfinished": True} for meta in metas)


@pytest.mark.parametrize("generator", ["contrast", "feature", "normal", "variation", "auto"])
def test_every_generator_beats_chance_on_the_sample(finished, tmp_path, monkeypatch, generator):
    monkeypatch.setattr(saliency.normal, "CORESET", 500)
    monkeypatch.setattr(saliency.auto, "AUTO_DEFECT_FREE", 10)  # so that it takes the other two
    small = ["data.sample_train=60", f"data.root={finished}/sixty", "saliency.backbone=resnet18"]
    small += ["saliency.weights=none", "saliency.image_size=160"]
    settings = ["--set", *small, f"saliency.generator={generator}"]
    command = ["--config", "configs/sample.toml", "--out", str(tmp_path), "--split", "train"]
    torch.manual_seed(0)
    make_saliency.main([*command, "--device", "cpu", *settings])
    evaluation.main([*command, "--kind", "saliency", *settings])
    row = json.loads((tmp_path / "results.jsonl").read_text().splitlines()[0])
    assert row["auroc"] > 60


def test_refinement_adds_five_points_of_ap_on_the_sample(tmp_path, monkeypatch):
    constants = {"FEATURE_SIZE": 64, "BATCH_SIZE": 8, "LR": 3e-3, "ROBUSTNESS": 0.3}
    for name, value in constants.items():
        monkeypatch.setattr(saliency.student, name, value)
    monkeypatch.setattr(saliency.learned, "PAMR_STEPS", 10)
    small = ["data.sample_train=64", f"data.root={tmp_path}/data", "saliency.backbone=test_vit"]
    small += ["saliency.weights=none", "refinement.image_size=[64,64]", "refinement.steps=120"]
    ap, iou = [], []
    for rounds in ("0", "1"):
        out = tmp_path / rounds
        command = ["--config", "configs/sample.toml", "--out", str(out), "--device", "cpu"]
        make_saliency.main([*command, "--split", "train", "--refine", rounds, "--set", *small])
        scored = ["--config", str(out / "config.toml"), "--out", str(out), "--split", "train"]
        evaluation.main([*scored, "--kind", "saliency"])
        row = json.loads((out / "results.jsonl").read_text().splitlines()[0])
        ap.append(row["ap"])
        iou.append(row["best_fg_iou"])
        assert row["auroc"] > 85
    assert ap[1] > ap[0] + 5
    assert iou[1] > iou[0] + 2


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


@pytest.mark.parametrize("name", [*STAGES, "report"])
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
    line = error_line(train_stac.main, flags(broken))
    assert "map of train_0002 (" in line
    assert "expected the size of its image" in line
    evaluate = [*flags(broken), "--kind", "saliency"]
    assert "test_0001.png: expected the size" in error_line(evaluation.main, evaluate)
    line = error_line(segmentation_train.main, flags(broken))
    assert "map of train_0002 (" in line


def test_wrong_class_count_is_named(broken):
    path = broken / "run/cams/pixel/given/train_0000.npz"
    cam = read_cam(path)
    write_cam(path, cam._replace(scores=np.ones(7, np.float32)))
    line = error_line(make_pseudo_labels.main, flags(broken))
    assert "train_0000.npz: expected scores of 3 classes, got 7" in line
    write_mask(broken / "run/predictions/test_0002.png", np.full((9, 9), 5, np.uint8))
    line = error_line(evaluation.main, [*flags(broken), "--kind", "segmentation"])
    assert "test_0002.png: expected mask values 0..3" in line
