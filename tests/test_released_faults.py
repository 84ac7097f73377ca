"""Where the authors' released research code goes wrong, as a run of all stages shows it.

A comment before the tests of a fault, numbered 1 to 13, states what the released code does. Faults
that need no run are in test_released_faults_parts.py.
"""

import json
import pickle
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torchvision import tv_tensors
from torchvision.transforms import v2

import evaluation
import make_cams
import make_pseudo_labels
import make_saliency
import train_stac
from configs import load
from datasets.files import (
    read_cam,
    read_image,
    read_mask,
    write_mask,
    write_saliency,
)
from datasets.sources import Data, read_data
from runfolder.checkpoint import load_checkpoint
from segmentation import infer as segmentation_infer
from segmentation import train as segmentation_train

CPU = torch.device("cpu")
TINY = [
    "data.sample_train=12",
    "data.sample_test=8",
    "data.seed=2",  # with defect-free images in both splits
    "data.val_fraction=0.25",
    "train.patch_size=16",
    "train.depth=1",
    "train.pixel_block=0",
    "train.attention_layers=1",
    "train.image_size=[64,80]",
    "train.projection_width=8",
    "train.batch_size=4",
    "train.epochs=2",
    "train.warmup_epochs=0.5",
    "train.eval_every=1",
    "train.amp=off",
    "loss.num_anchors=8",
    "loss.num_negatives=8",
    'cam.types=["patchcam"]',
    "cam.scales=[1.0]",
    "pseudo_label.cam_type=patchcam",
    "segmentation.encoder=tu-test_efficientnet",
    "segmentation.image_size=[32,48]",
    "segmentation.batch_size=4",
    "segmentation.epochs=2",
    "segmentation.warmup_epochs=0.5",
    "segmentation.amp=off",
]


def settings(root: Path, *changes: str) -> list[str]:
    return [*TINY, f"data.root={root}/data", *changes]


def flags(root: Path, out: str, *changes: str) -> list[str]:
    run = ["--config", "configs/sample.toml", "--out", str(root / out), "--device", "cpu"]
    return [*run, "--set", *settings(root, *changes)]


def data_of(root: Path) -> Data:
    return read_data(load("configs/sample.toml", settings(root)).data, root / "labels.csv")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> SimpleNamespace:
    """A run of training, CAMs and second stage, with what was seen on the way.

    The saliency map of an image is its own grey picture, so that the two cannot be mixed up.
    """
    root = tmp_path_factory.mktemp("faults")
    data = data_of(root)
    for record in data.split("train"):
        grey = read_image(record.image).mean(axis=2) / 255
        write_saliency(root / f"run/saliency/{record.name}.png", grey)
        write_mask(root / f"run/pseudo_labels/{record.name}.png", (grey > 0.5).astype(np.uint8))
        record.mask.unlink()
    seen = SimpleNamespace(root=root, data=data_of(root), phase="train", batches=[], jitter=[])
    seen.rates = {train_stac: [], segmentation_train: []}
    step = "transform" if hasattr(v2.ColorJitter, "transform") else "_transform"  # torchvision 0.20
    batch_loss, recolour = train_stac.batch_loss, getattr(v2.ColorJitter, step)

    def watched_loss(model, batch, *others):
        seen.batches.append((seen.phase, batch))
        return batch_loss(model, batch, *others)

    def watched_jitter(self, picture, params):
        if isinstance(picture, tv_tensors.Image):
            seen.jitter.append(seen.phase)
        return recolour(self, picture, params)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_stac, "batch_loss", watched_loss)
        patch.setattr(v2.ColorJitter, step, watched_jitter)
        for stage, rates in seen.rates.items():
            patch.setattr(stage, "set_lr", watched_set_lr(stage.set_lr, rates))
            patch.setattr(stage, "validate", watched_validate(stage.validate, seen))
        train_stac.main(flags(root, "run"))
        seen.phase = "cams"
        make_cams.main(flags(root, "run"))
        seen.phase = "segmentation"
        segmentation_train.main(flags(root, "run"))
    return seen


def watched_set_lr(set_lr, rates: list[float]):
    def watched(optimizer, lr):
        rates.append(lr)
        set_lr(optimizer, lr)

    return watched


def watched_validate(validate, seen: SimpleNamespace):
    def watched(*arguments):
        before, seen.phase = seen.phase, "val"
        measures = validate(*arguments)
        seen.phase = before
        return measures

    return watched


def names_of(batches: list[tuple[str, dict]], phase: str) -> list[str]:
    return [name for when, batch in batches if when == phase for name in batch["name"]]


# 3. Test CAMs are multiplied by the true labels; threshold and best epoch are chosen on test.


def test_fault_03_predicted_labels_do_not_depend_on_the_true_ones(run, tmp_path):
    shutil.copytree(run.root / "data", tmp_path / "data")
    shutil.copytree(run.root / "run/stac", tmp_path / "run/stac")
    table = tmp_path / "data/labels.csv"
    header, *lines = table.read_text().splitlines()
    wrong = [f"{line.split(',')[0]},scratches" for line in lines]
    table.write_text("\n".join([header, *wrong]) + "\n")
    make_cams.main([*flags(tmp_path, "run"), "--split", "test"])

    def cams(labels):  # of the test images, before and after
        folder, test = f"run/cams/patchcam/{labels}", run.data.split("test")
        names = [f"{folder}/{record.name}.npz" for record in test]
        return [(read_cam(run.root / name), read_cam(tmp_path / name)) for name in names]

    predicted, given = cams("predicted"), cams("given")
    assert all(np.array_equal(*pair) for cam in predicted for pair in zip(*cam, strict=True))
    assert any(len(before.classes) for before, _ in predicted)
    assert not all(np.array_equal(before.classes, after.classes) for before, after in given)


def test_fault_03_every_result_names_its_labels_and_its_threshold_rule(run, capsys):
    rules = ("fixed", "auto", "oracle")
    (run.root / "run/results.jsonl").unlink(missing_ok=True)
    for labels in ("given", "predicted"):
        kind = ["--kind", "cam", "--labels", labels, "--threshold-rule", *rules]
        evaluation.main([*flags(run.root, "run"), *kind])
    rows = [json.loads(line) for line in (run.root / "run/results.jsonl").open()]
    expected = [(labels, rule) for labels in ("given", "predicted") for rule in rules]
    assert [(row["labels"], row["threshold_rule"]) for row in rows] == expected
    evaluation.main(["--out", str(run.root / "run"), "--table"])
    shown = re.findall(r"\| (given|predicted) .*\((\w+)\)", capsys.readouterr().out)
    assert sorted(shown) == sorted(expected)


def test_fault_03_only_the_oracle_looks_at_the_masks_of_test(run, tmp_path):
    shutil.copytree(run.root, tmp_path / "copy")
    thresholds = []
    for value in (0, 1, 2, 3):  # every pixel of every test image
        for record in data_of(tmp_path / "copy").split("test"):
            write_mask(record.mask, np.full(read_image(record.image).shape[:2], value, np.uint8))
        evaluation.main([*flags(tmp_path / "copy", "run"), "--kind", "cam"])
        rows = (tmp_path / "copy/run/results.jsonl").read_text().splitlines()
        thresholds.append([json.loads(row)["threshold"] for row in rows[-2:]])
    auto, oracle = (set(column) for column in zip(*thresholds, strict=True))
    assert len(auto) == 1
    assert len(oracle) > 1


def test_fault_03_the_best_epoch_is_chosen_on_held_out_training_images(run):
    split = {name: {r.name for r in run.data.split(name)} for name in ("fit", "val", "test")}
    assert set(names_of(run.batches, "train")) == split["fit"]
    assert set(names_of(run.batches, "val")) == split["val"]
    assert not split["val"] & (split["fit"] | split["test"])


# 4. Colours are jittered at validation and CAM time; saliency is not moved with its image.


def test_fault_04_colours_are_jittered_in_training_alone(run):
    assert set(run.jitter) == {"train", "segmentation"}
    assert run.jitter.count("train") == len(names_of(run.batches, "train"))


def test_fault_04_saliency_reaches_the_loss_moved_like_its_image(run):
    maps, batches = {}, [batch for phase, batch in run.batches if phase == "train"]
    for batch in batches:
        # The map is the image's own grey picture; pooled, as the two are resized differently.
        image = F.avg_pool2d(batch["image"].mean(1, keepdim=True), 8).flatten(1)
        saliency = F.avg_pool2d(batch["map"], 8).flatten(1)
        for i, name in enumerate(batch["name"]):
            assert torch.corrcoef(torch.stack([image[i], saliency[i]]))[0, 1] > 0.95
            maps.setdefault(name, []).append(batch["map"][i])
    assert any(not torch.equal(*of_epochs) for of_epochs in maps.values())  # there was a move


# 7. Images without a defect are dropped from the batch: neither trained on nor scored.


def test_fault_07_defect_free_images_are_trained_on_and_scored(run):
    free = {r.name for split in ("fit", "test") for r in run.data.split(split) if not r.classes}
    trained = names_of(run.batches, "train")
    assert free & set(trained)
    assert all(trained.count(name) == 2 for name in trained)  # once in each of two epochs
    test = run.data.split("test")
    assert free & {record.name for record in test}
    evaluation.main([*flags(run.root, "run"), "--kind", "cam", "--threshold-rule", "fixed"])
    row = json.loads((run.root / "run/results.jsonl").read_text().splitlines()[-1])
    assert row["images"] == len(test) == 8


# 8. Weight decay is given as momentum in the second stage; the schedule is one epoch off.


def test_fault_08_weight_decay_is_weight_decay_and_no_momentum(run):
    checkpoint = load_checkpoint(run.root / "run/segmentation/checkpoint.pt", "segmentation")
    groups = checkpoint["optimizer"]["param_groups"]
    assert sorted(group["weight_decay"] for group in groups) == [0, 0.01]
    assert all(group["betas"] == (0.9, 0.999) for group in groups)
    assert all(group.get("momentum", 0) == 0 for group in groups)


@pytest.mark.parametrize(
    # 9 images in batches of 4: 3 steps an epoch; the second stage drops a last batch of 1 image
    ("stage", "num_steps", "peak", "end"),
    [(train_stac, 6, 0.06 * 4 / 512, 1e-6), (segmentation_train, 4, 1e-3, 1e-5)],
)
def test_fault_08_the_schedule_ends_with_the_last_step(run, stage, num_steps, peak, end):
    rates = run.rates[stage]
    assert len(rates) == num_steps
    assert [rates[0], max(rates), rates[-1]] == pytest.approx([end, peak, end])
    assert all(rate > end * 1.001 for rate in rates[1:-1])


# 10. `allow_pickle=True` and unrestricted `torch.load` on files that users exchange.


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


CHECKPOINTS = [  # the command, its flags, the file it reads
    (make_cams.main, [], "run/stac/checkpoint.pt"),
    (train_stac.main, ["--resume"], "run/stac/checkpoint.pt"),
    (segmentation_train.main, ["--resume"], "run/segmentation/checkpoint.pt"),
    (segmentation_infer.main, [], "run/segmentation/checkpoint.pt"),
    (train_stac.main, ["--set", "train.pretrained={file}"], "backbone.pth"),
    (segmentation_train.main, ["--set", "segmentation.pretrained={file}"], "encoder.pth"),
]


@pytest.mark.parametrize(("command", "extra", "place"), CHECKPOINTS)
def test_fault_10_no_command_runs_what_a_checkpoint_holds(run, tmp_path, command, extra, place):
    root, proof = shutil.copytree(run.root, tmp_path / "copy"), tmp_path / "it_ran"
    torch.save({"model": {}, "trap": Trap(proof)}, root / place)
    extra = [flag.format(file=root / place) for flag in extra]
    with pytest.raises(ValueError, match=r"got a damaged file or one with more than tensors"):
        command([*flags(root, "run"), *extra])
    assert not proof.exists()
    torch.load(root / place, weights_only=False)
    assert proof.exists()  # the file is a working attack


def test_fault_10_evaluation_does_not_run_what_a_cam_file_holds(tmp_path):
    proof, names = tmp_path / "it_ran", tmp_path / "list.txt"
    names.write_text("a")
    write_mask(tmp_path / "masks/a.png", np.zeros((1, 3), np.uint8))
    call = ["--predict_dir", str(tmp_path), "--gt_dir", str(tmp_path / "masks"), "--type", "npy"]
    call += ["--list", str(names), "--num_classes", "2", "--t", "0.5"]
    np.save(tmp_path / "a.npy", {0: Trap(proof)}, allow_pickle=True)
    with pytest.raises(ValueError, match=r"a\.npy: expected arrays only, got the global"):
        evaluation.main(call)
    (tmp_path / "a.npy").unlink()
    (tmp_path / "a.npz").write_bytes(pickle.dumps(Trap(proof)))
    with pytest.raises(ValueError, match=r"a\.npz: expected npz with cam, classes and scores"):
        evaluation.main(call)
    assert not proof.exists()
    np.load(tmp_path / "a.npz", allow_pickle=True)
    assert proof.exists()  # the file is a working attack


# 11. cuDNN is off; see test_released_faults_parts.py for what else is slow.


def test_fault_11_no_stage_switches_cudnn_off(run):
    assert torch.backends.cudnn.enabled


# 13. No saliency generator, no CAMs of the training list, no script from CAMs to pseudo labels.


def test_fault_13_images_and_labels_alone_become_pseudo_labels(run):
    for stage in (make_saliency, train_stac, make_cams, make_pseudo_labels):
        changes = ["train.max_steps=1", "pseudo_label.pamr_steps=1"]
        stage.main(flags(run.root, "bare", *changes))
    for record in run.data.split("train"):
        assert record.mask is None  # taken away before the first stage
        mask = read_mask(run.root / f"bare/pseudo_labels/{record.name}.png", 3)
        assert mask.shape == read_image(record.image).shape[:2]
