"""Where the authors' released research code goes wrong: one claim or more for each of its faults.

A comment before the tests of a fault, numbered 1 to 13, states what the released code does.
"""

import json
import math
import pickle
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torchvision import tv_tensors
from torchvision.transforms import v2

import evaluation
import localisation
import make_cams
import make_pseudo_labels
import make_saliency
import train_stac
from configs import CamConfig, load, to_dict
from configs.command_line import run_stage
from datasets.files import (
    Cam,
    read_cam,
    read_image,
    read_mask,
    write_cam,
    write_image,
    write_mask,
    write_saliency,
)
from datasets.record import Record
from datasets.sources import Data, read_data
from losses.pixel_contrast import pixel_contrast_loss
from scoring.confusion import ConfusionMatrix, ThresholdSweep
from runfolder.checkpoint import load_checkpoint
from models.stac import StacOutput, build_stac
from models.tiles import tiles_of
from models.vit import ClassTokenViT, create_vit
from segmentation import infer as segmentation_infer
from segmentation import train as segmentation_train

CPU = torch.device("cpu")
TINY = [
    "data.sample_train=12",
    "data.sample_test=8",
    "data.seed=2",  # with defect-free images in both splits
    "data.val_fraction=0.25",
    "train.backbone=deit_tiny_patch16_224",
    "train.pretrained=none",
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
    "train.jitter=0.4",
    "train.amp=off",
    "loss.token_layers=1",
    "loss.num_anchors=8",
    "loss.num_negatives=8",
    'cam.types=["patchcam"]',
    'cam.labels=["given","predicted"]',
    "cam.scales=[1.0]",
    "segmentation.encoder=tu-test_efficientnet",
    "segmentation.image_size=[32,48]",
    "segmentation.rotate=false",
    "segmentation.batch_size=4",
    "segmentation.epochs=2",
    "segmentation.warmup_steps=1",
    "segmentation.weight_decay=0.125",
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

    The saliency map of an image is its own grey picture, so that one can be told from the other.
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
    batch_loss, recolour = train_stac.batch_loss, v2.ColorJitter.transform

    def watched_loss(model, batch, *others):
        seen.batches.append((seen.phase, batch))
        return batch_loss(model, batch, *others)

    def watched_jitter(self, picture, params):
        if isinstance(picture, tv_tensors.Image):
            seen.jitter.append(seen.phase)
        return recolour(self, picture, params)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_stac, "batch_loss", watched_loss)
        patch.setattr(v2.ColorJitter, "transform", watched_jitter)
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
        found = validate(*arguments)
        seen.phase = before
        return found

    return watched


def names_of(batches: list[tuple[str, dict]], phase: str) -> list[str]:
    return [name for when, batch in batches if when == phase for name in batch["name"]]


# 1. The 6-head checkpoint of DeiT-S runs with 8 heads, so its attention starts scrambled.


@pytest.mark.parametrize(("size", "heads"), [("tiny", 3), ("small", 6), ("base", 12)])
def test_fault_01_a_backbone_keeps_its_own_heads(size, heads):
    torch.manual_seed(0)
    vit = create_vit(f"deit_{size}_patch16_224", "none", (32, 48), depth=1)
    torch.nn.init.normal_(vit.blocks[0].attn.qkv.weight, std=0.2)  # else all weights are alike
    encoder = ClassTokenViT(vit, 2, attention_layers=1).eval()
    images = torch.randn(1, 3, 32, 48)
    tokens = torch.cat([encoder.cls_token + encoder.pos_embed_cls, encoder._embed(images)[0]], 1)
    q, k, _ = vit.blocks[0].attn.qkv(vit.blocks[0].norm1(tokens))[0].chunk(3, dim=-1)

    def class_attention(num_heads):  # (2, patches), mean of the heads' own softmax
        q_head, k_head = (x.chunk(num_heads, dim=-1) for x in (q, k))
        scores = [a @ b.T / a.shape[1] ** 0.5 for a, b in zip(q_head, k_head, strict=True)]
        return torch.stack(scores).softmax(-1).mean(0)[:2, 2:]

    found = encoder(images).class_attention[0].flatten(1)
    torch.testing.assert_close(found, class_attention(heads))
    assert not torch.allclose(found, class_attention(8), atol=1e-3)


# 2. Class count, image size and patch grid are literals that are edited for each data set.


@pytest.mark.parametrize(
    ("num_classes", "size", "patch", "grid"),
    [(1, (50, 77), 16, (4, 5)), (3, (33, 20), 8, (5, 3)), (20, (64, 49), 14, (5, 4))],
)
def test_fault_02_any_class_count_and_image_size_trains(num_classes, size, patch, grid):
    torch.manual_seed(0)
    changes = [f"train.image_size={list(size)}", f"train.patch_size={patch}", "loss.temperature=1"]
    config = load("configs/sample.toml", [*TINY, *changes])
    model = build_stac(to_dict(config)["train"], num_classes, "none")
    labels = torch.zeros(3, num_classes)  # a defect-free image, the first class, the last class
    labels[1, 0] = labels[2, -1] = 1
    height, width = (patch * n for n in grid)
    batch = {"image": torch.randn(3, 3, height, width), "label": labels}
    batch["saliency"] = torch.rand(3, 1, height, width)
    total, terms, scores = train_stac.batch_loss(model, batch, config, CPU, torch.Generator())
    total.backward()
    assert model.encoder.grid_size == grid
    assert scores.shape == labels.shape
    assert all(term.isfinite() for term in terms.values())
    assert (model.head.weight.grad.flatten(1).abs().sum(1) > 0).all()  # each class learns


# 3. Test CAMs are multiplied by the true labels; threshold and best epoch are chosen on test.


def test_fault_03_predicted_labels_do_not_depend_on_the_true_ones(run, tmp_path):
    shutil.copytree(run.root / "data", tmp_path / "data")
    shutil.copytree(run.root / "run/stac", tmp_path / "run/stac")
    table = tmp_path / "data/labels.csv"
    header, *lines = table.read_text().splitlines()
    wrong = [f"{line.split(',')[0]},scratches" for line in lines]
    table.write_text("\n".join([header, *wrong]) + "\n")
    make_cams.main([*flags(tmp_path, "run"), "--split", "test"])

    def cams(folder):  # of the test images, before and after
        names = [f"run/{folder}/{record.name}.npz" for record in run.data.split("test")]
        return [(read_cam(run.root / name), read_cam(tmp_path / name)) for name in names]

    predicted, given = cams("cams_predicted"), cams("cams")
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
    found = []
    for value in (0, 1, 2, 3):  # every pixel of every test image
        for record in data_of(tmp_path / "copy").split("test"):
            write_mask(record.mask, np.full(read_image(record.image).shape[:2], value, np.uint8))
        evaluation.main([*flags(tmp_path / "copy", "run"), "--kind", "cam"])
        rows = (tmp_path / "copy/run/results.jsonl").read_text().splitlines()
        found.append([json.loads(row)["threshold"] for row in rows[-2:]])
    auto, oracle = (set(column) for column in zip(*found, strict=True))
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
        saliency = F.avg_pool2d(batch["saliency"], 8).flatten(1)
        for i, name in enumerate(batch["name"]):
            assert torch.corrcoef(torch.stack([image[i], saliency[i]]))[0, 1] > 0.95
            maps.setdefault(name, []).append(batch["saliency"][i])
    assert any(not torch.equal(*of_epochs) for of_epochs in maps.values())  # there was a move


# 5. 200 px become 12 patches = 192 px, stretched back to 200: maps lie up to 8 px off.


class Brightness:
    """Stands for a localiser of one class: its map is the mean brightness of each patch."""

    encoder = SimpleNamespace(patch_size=(16, 16))

    def __call__(self, images: torch.Tensor) -> StacOutput:
        patches = F.avg_pool2d(images, 16).mean(1, keepdim=True)  # drops what is no whole patch
        logits = torch.zeros(len(images), 1)
        return StacOutput(logits, logits, *[patches] * 5)


def test_fault_05_maps_are_not_shifted_by_a_size_that_is_no_multiple_of_the_patch(tmp_path):
    pixels = np.zeros((200, 250, 3), np.uint8)
    pixels[130:170, 20:60] = 255  # centre at (149.5, 39.5)
    write_image(tmp_path / "spot.png", pixels)
    facts = {"config": {"train": {"image_size": [200, 250]}}, "mean": [0.0] * 3, "std": [1.0] * 3}
    model, cam = Brightness(), CamConfig(types=("patchcam",), flip=False)
    transforms = localisation.scale_transforms(model, facts, (1.0, 1.1))
    record = Record("spot", tmp_path / "spot.png", (0,))
    _, size, images = localisation.ScaledImages([record], transforms)[0]
    maps, _ = localisation.scaled_cams(model, [image[None] for image in images], cam, CPU)
    (found,) = localisation.native_cam(maps["patchcam"], tiles_of(size, 0, 0), size)
    assert found.shape == (200, 250)
    centre = [(found * place).sum() / found.sum() for place in np.indices(found.shape)]
    assert centre == pytest.approx([149.5, 39.5], abs=1)


def test_fault_05_200_pixels_become_13_whole_patches():
    config = load("configs/sample.toml", [*TINY, "train.image_size=[200, 200]"])
    model = build_stac(to_dict(config)["train"], 1, "none")
    assert model.encoder.grid_size == (13, 13)


# 6. Binary saliency leaves the background without anchors, yet it is counted in the mean.


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_fault_06_background_of_binary_saliency_anchors_and_a_sure_class_does_not_count(confidence):
    # Pixels: background of probability 1, class 0; grid = pixels, so no interpolation.
    embedding = torch.tensor([[3.0, 0.0], [0.0, 2.0]]).view(1, 2, 1, 2).requires_grad_()
    loss = pixel_contrast_loss(
        embedding=embedding,
        cams=torch.tensor([0.0, confidence]).view(1, 1, 1, 2),
        saliency=torch.tensor([0.0, 1.0]).view(1, 1, 1, 2),
        labels=torch.ones(1, 1),
        **{"temperature": 0.5, "num_anchors": 5, "num_negatives": 4},
        **{"valid_threshold": 0.5, "hard_threshold": 0.9},
        generator=torch.Generator().manual_seed(0),
    )
    # Each anchor equals its prototype (cosine 1); 4 negatives are orthogonal; T = 0.5:
    # -log(e^2 / (e^2 + 4)) for each class, and divided by the classes that had anchors.
    assert loss.item() == pytest.approx(math.log(1 + 4 * math.exp(-2)), rel=1e-6)
    loss.backward()
    learns = embedding.grad.abs().sum(dim=1).flatten() > 0
    assert learns.tolist() == [True, confidence < 0.9]


# 7. Images without a defect are dropped from the batch: neither trained on nor scored.


def test_fault_07_a_batch_of_defect_free_images_trains():
    torch.manual_seed(0)
    config = load("configs/sample.toml", TINY)
    model = build_stac(to_dict(config)["train"], 2, "none").train()
    batch = {"image": torch.randn(2, 3, 64, 80), "label": torch.zeros(2, 2)}
    batch["saliency"] = torch.rand(2, 1, 64, 80)
    total, terms, _ = train_stac.batch_loss(model, batch, config, CPU, torch.Generator())
    total.backward()
    assert all(term.isfinite() for term in (total, *terms.values()))
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    # Both classes are asked to stay silent: their logits are too high wherever they stand.
    assert (model.head.bias.grad > 0).all()


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


def test_fault_07_a_false_alarm_on_a_defect_free_image_costs():
    sweep = ThresholdSweep([0.5], 1)
    hit = np.array([[0, 1]], np.uint8)
    sweep.update(hit, hit[None].astype(np.float32), np.array([0]))
    assert sweep.confusion(0.5).miou() == 100
    sweep.update(0 * hit, hit[None].astype(np.float32), np.array([0]))
    # Background: 2 of 3 pixels, none too many; class: 1 of 1 pixel and 1 false.
    assert sweep.confusion(0.5).scores().iou == pytest.approx([200 / 3, 50])


# 8. Weight decay is given as momentum in the second stage; the schedule is one epoch off.


def test_fault_08_weight_decay_is_weight_decay_and_no_momentum(run):
    checkpoint = load_checkpoint(run.root / "run/segmentation/checkpoint.pt", "segmentation")
    groups = checkpoint["optimizer"]["param_groups"]
    assert sorted(group["weight_decay"] for group in groups) == [0, 0.125]
    assert all(group["betas"] == (0.9, 0.999) for group in groups)
    assert all(group.get("momentum", 0) == 0 for group in groups)


@pytest.mark.parametrize(
    # 9 images in batches of 4: 3 steps an epoch; the second stage drops a last batch of 1 image
    ("stage", "num_steps", "peak", "end"),
    [(train_stac, 6, 0.03 * 4 / 512, 1e-6), (segmentation_train, 4, 1e-3, 1e-5)],
)
def test_fault_08_the_schedule_ends_with_the_last_step(run, stage, num_steps, peak, end):
    rates = run.rates[stage]
    assert len(rates) == num_steps
    assert [rates[0], max(rates), rates[-1]] == pytest.approx([end, peak, end])
    assert all(rate > end * 1.001 for rate in rates[1:-1])


# 9. Evaluation prints 0.0 or partial results when a worker dies, counts in int32, and takes an
# absent class as IoU 0.


def make_small(path: Path) -> None:
    write_cam(path, Cam(np.ones((1, 1, 2)), np.array([0]), np.ones(1)))


@pytest.mark.parametrize(
    "damage",
    [Path.unlink, lambda path: path.write_bytes(b""), make_small],
    ids=["missing", "empty", "another size"],
)
def test_fault_09_a_file_that_cannot_be_read_leaves_no_result(tmp_path, capsys, damage):
    call = published_files(tmp_path, ("a", "b", "c"))
    damage(tmp_path / "b.npz")
    with pytest.raises(SystemExit) as stopped:
        run_stage(lambda _: evaluation.main([*call, "--t", "0.5"]))
    assert stopped.value.code.startswith("error: ")  # printed to stderr; the exit code is 1
    assert "b" in stopped.value.code
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "log.jsonl").exists()


def published_files(folder: Path, names: tuple[str, ...]) -> list[str]:
    """Write masks and CAMs of one class; return the flags of the authors' script for them."""
    mask = np.array([[0, 1, 1]], np.uint8)
    cam = Cam(np.array([[[0.2, 0.4, 0.8]]]), np.array([0]), np.ones(1))
    for name in names:
        write_mask(folder / f"masks/{name}.png", mask)
        write_cam(folder / f"{name}.npz", cam)
    (folder / "list.txt").write_text("\n".join(names))
    call = ["--predict_dir", str(folder), "--gt_dir", str(folder / "masks"), "--type", "npy"]
    call += ["--list", str(folder / "list.txt"), "--logfile", str(folder / "log.jsonl")]
    return [*call, "--num_classes", "2"]


def test_fault_09_counts_are_int64_and_hold_more_than_32_bits():
    confusion = ConfusionMatrix(1, np.full((2, 2), 2**40, np.int64))
    confusion.update(np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.uint8))
    assert confusion.counts.dtype == ConfusionMatrix(1).counts.dtype == np.int64
    assert confusion.counts[0, 0] == 2**40 + 1
    assert confusion.scores().iou == pytest.approx([100 / 3, 100 / 3])


def test_fault_09_an_absent_class_is_left_out_of_every_mean():
    confusion = ConfusionMatrix(2)
    confusion.update(np.array([[0, 1, 1, 1]], np.uint8), np.array([[0, 0, 1, 1]], np.uint8))
    scores = confusion.scores()
    assert np.isnan(scores.iou[2])
    assert scores.miou == pytest.approx((100 / 2 + 200 / 3) / 2)
    assert scores.fp == pytest.approx((100 / 2 + 0) / 2)
    assert scores.fn == pytest.approx((0 + 100 / 3) / 2)


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
    (segmentation_infer.main, [], "run/segmentation/best.pt"),
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
    call, proof = published_files(tmp_path, ("a",)), tmp_path / "it_ran"
    np.save(tmp_path / "a.npy", {0: Trap(proof)}, allow_pickle=True)
    with pytest.raises(ValueError, match=r"a\.npy: expected arrays only, got the global"):
        evaluation.main([*call, "--t", "0.5"])
    (tmp_path / "a.npy").unlink()
    (tmp_path / "a.npz").write_bytes(pickle.dumps(Trap(proof)))
    with pytest.raises(ValueError, match=r"a\.npz: expected npz with cam, classes and scores"):
        evaluation.main([*call, "--t", "0.5"])
    assert not proof.exists()
    np.load(tmp_path / "a.npz", allow_pickle=True)
    assert proof.exists()  # the file is a working attack


# 11. The embedding is upsampled whole; negatives are drawn in a loop that waits for the device;
# cuDNN is off; each threshold reads each file again.


class Watch(TorchDispatchMode):
    """Notes each tensor operation, and the size of its largest result."""

    def __init__(self):
        super().__init__()
        self.names, self.largest = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.names.append(function.overloadpacket._qualified_op_name.removeprefix("aten::"))
        tensors = [x for x in tree_leaves(result) if isinstance(x, torch.Tensor)]
        self.largest = max([self.largest, *(x.numel() for x in tensors)])
        return result


def watch_contrast(num_anchors: int, num_negatives: int) -> Watch:
    """Watch loss and gradient: 2 images of 2 classes, 64 channels of 7 x 7, pixels of 112 x 112."""
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(2, 64, 7, 7, generator=generator).requires_grad_()
    cams, saliency = torch.rand(2, 3, 112, 112, generator=generator).split([2, 1], dim=1)
    with Watch() as watch:
        pixel_contrast_loss(
            embedding,
            cams,
            saliency,
            torch.ones(2, 2),
            **{"temperature": 0.5, "num_anchors": num_anchors, "num_negatives": num_negatives},
            **{"valid_threshold": 0.5, "hard_threshold": 0.9, "generator": generator},
        ).backward()
    assert embedding.grad.abs().sum() > 0
    return watch


def test_fault_11_the_embedding_is_never_upsampled():
    pixels = 2 * 112 * 112
    assert watch_contrast(16, 16).largest <= 2 * pixels  # not 64 of them


def test_fault_11_negatives_are_drawn_without_a_loop_or_a_wait():
    few, many = watch_contrast(2, 3), watch_contrast(32, 33)
    assert few.names == many.names
    waits = {"_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique"}
    assert not waits & set(many.names)


def test_fault_11_a_sweep_reads_each_file_once(tmp_path, monkeypatch):
    opened = []

    def reader(read):
        return lambda path, *others: opened.append(path.name) or read(path, *others)

    call = published_files(tmp_path, ("a", "b"))
    monkeypatch.setattr(evaluation, "read_cam", reader(evaluation.read_cam))
    monkeypatch.setattr("datasets.files.read_mask", reader(read_mask))
    evaluation.main([*call, "--curve", "True", "--end", "100"])
    assert sorted(opened) == ["a.npz", "a.png", "b.npz", "b.png"]
    assert json.loads((tmp_path / "log.jsonl").read_text())["threshold"] == 0.2


def test_fault_11_no_stage_switches_cudnn_off(run):
    assert torch.backends.cudnn.enabled


# 12. "mAP" ranks the classes within each image, which is always 1.0 for one class.


@pytest.mark.parametrize(
    ("labels", "scores", "expected"),
    [
        # One class, the defect-free image the most certain one: (1/2 + 2/3) / 2.
        ([[1], [1], [0]], [[0.3], [0.1], [0.9]], 700 / 12),
        # Each image ranks its own class first. Class 0 finds its image second, class 1 first.
        ([[1, 0], [0, 1]], [[0.2, 0.1], [0.8, 0.9]], 75),
    ],
)
def test_fault_12_map_ranks_all_images_of_a_class(labels, scores, expected, monkeypatch):
    config = load("configs/sample.toml", [*TINY, "train.batch_size=1"])
    pairs = zip(labels, scores, strict=True)
    items = [{"label": torch.tensor(y), "score": torch.tensor(s)} for y, s in pairs]
    zero = torch.zeros(())
    monkeypatch.setattr(train_stac, "batch_loss", lambda _, batch, *__: (zero, {}, batch["score"]))
    found = train_stac.validate(torch.nn.Identity(), items, config, CPU, None)
    assert found["map"] == pytest.approx(expected)


# 13. No saliency generator, no CAMs of the training list, no script from CAMs to pseudo labels.


def test_fault_13_images_and_labels_alone_become_pseudo_labels(run):
    for stage in (make_saliency, train_stac, make_cams, make_pseudo_labels):
        changes = ["train.max_steps=1", "pseudo_label.pamr_steps=1"]
        stage.main(flags(run.root, "bare", *changes))
    for record in run.data.split("train"):
        assert record.mask is None  # taken away before the first stage
        mask = read_mask(run.root / f"bare/pseudo_labels/{record.name}.png", 3)
        assert mask.shape == read_image(record.image).shape[:2]
