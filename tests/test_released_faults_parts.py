"""Where the authors' released research code goes wrong, as parts of the code show it.

A comment before the tests of a fault, numbered 1 to 13, states what the released code does. Faults
that show in a run are in test_released_faults.py.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import evaluation
import train_stac
from configs import Config, TrainConfig, load, to_dict
from configs.command_line import run_stage
from datasets.files import (
    Cam,
    read_cam,
    read_mask,
    write_cam,
    write_image,
    write_mask,
)
from datasets.record import Record
from inference.localise import Localiser
from losses.pixel_contrast import pixel_contrast_loss
from models.backbones import create_vit
from models.stac import StacOutput, build_stac, image_scores
from models.vit import ClassTokenViT
from scoring.confusion import ConfusionMatrix, ThresholdSweep

CPU = torch.device("cpu")
TINY = [
    "train.patch_size=16",
    "train.depth=1",
    "train.pixel_block=0",
    "train.attention_layers=1",
    "train.image_size=[64,80]",
    "train.projection_width=8",
    "train.amp=off",
    "loss.num_anchors=8",
    "loss.num_negatives=8",
    'cam.types=["patchcam"]',
    "pseudo_label.cam_type=patchcam",
]


def config_of(*changes: str) -> Config:
    return load("configs/sample.toml", [*TINY, *changes])


# 1. The 6-head checkpoint of DeiT-S runs with 8 heads, so its attention starts scrambled.


@pytest.mark.parametrize(("size", "heads"), [("tiny", 3), ("small", 6), ("base", 12)])
def test_fault_01_a_backbone_keeps_its_own_heads(size, heads):
    torch.manual_seed(0)
    settings = TrainConfig(backbone=f"deit_{size}_patch16_224", image_size=(32, 48), depth=1)
    vit = create_vit(settings, "none")
    torch.nn.init.normal_(vit.blocks[0].attn.qkv.weight, std=0.2)  # else all weights are alike
    encoder = ClassTokenViT(vit, 2, attention_layers=1).eval()
    images = torch.randn(1, 3, 32, 48)
    tokens = torch.cat([encoder.cls_token + encoder.pos_embed_cls, encoder._embed(images)[0]], 1)
    q, k, _ = vit.blocks[0].attn.qkv(vit.blocks[0].norm1(tokens))[0].chunk(3, dim=-1)

    def class_attention(num_heads):  # (2, patches), mean of the heads' own softmax
        q_head, k_head = (x.chunk(num_heads, dim=-1) for x in (q, k))
        scores = [a @ b.T / a.shape[1] ** 0.5 for a, b in zip(q_head, k_head, strict=True)]
        return torch.stack(scores).softmax(-1).mean(0)[:2, 2:]

    attention = encoder(images).class_attention[0].flatten(1)
    torch.testing.assert_close(attention, class_attention(heads))
    assert not torch.allclose(attention, class_attention(8), atol=1e-3)


# 2. Class count, image size and patch grid are literals that are edited for each data set.


@pytest.mark.parametrize(
    ("num_classes", "size", "patch", "grid"),
    [(1, (50, 77), 16, (4, 5)), (3, (33, 20), 8, (5, 3)), (20, (64, 49), 14, (5, 4))],
)
def test_fault_02_any_class_count_and_image_size_trains(num_classes, size, patch, grid):
    torch.manual_seed(0)
    config = config_of(f"train.image_size={list(size)}", f"train.patch_size={patch}")
    model = build_stac(config.train, num_classes)
    labels = torch.zeros(3, num_classes)  # a defect-free image, the first class, the last class
    labels[1, 0] = labels[2, -1] = 1
    height, width = (patch * n for n in grid)
    batch = {"image": torch.randn(3, 3, height, width), "label": labels}
    batch["map"] = torch.rand(3, 1, height, width)
    total, terms, output = train_stac.batch_loss(model, batch, config, CPU, torch.Generator())
    total.backward()
    scores = image_scores(output)
    assert model.encoder.grid_size == grid
    assert scores.shape == labels.shape
    assert all(term.isfinite() for term in terms.values())
    assert (model.head.weight.grad.flatten(1).abs().sum(1) > 0).all()  # each class learns


# 5. 200 px become 12 patches = 192 px, stretched back to 200: maps lie up to 8 px off.


class Brightness:
    """Stands for a localiser of one class: its map is the mean brightness of each patch."""

    def __call__(self, images: torch.Tensor) -> StacOutput:
        patches = F.avg_pool2d(images, 16).mean(1, keepdim=True)  # drops what is no whole patch
        logits = torch.zeros(len(images), 1)
        return StacOutput(logits, logits, *[patches] * 5)


def test_fault_05_maps_are_not_shifted_by_a_size_that_is_no_multiple_of_the_patch(tmp_path):
    pixels = np.zeros((200, 250, 3), np.uint8)
    pixels[130:170, 20:60] = 255  # centre at (149.5, 39.5)
    write_image(tmp_path / "spot.png", pixels)
    config = config_of("train.image_size=[200,250]", "cam.scales=[1.0,1.1]", "cam.flip=false")
    content = {"config": to_dict(config), "class_names": ["spot"], "mean": [0.0] * 3}
    content |= {"std": [1.0] * 3, "model": build_stac(config.train, 1).state_dict()}
    localiser = Localiser(content, config.cam, CPU)
    localiser.network = Brightness()
    ((_, _, output),) = localiser.over([Record("spot", tmp_path / "spot.png", (0,))], workers=0)
    (cam,) = output.cam("patchcam", [0])
    assert cam.shape == (200, 250)
    centre = [(cam * place).sum() / cam.sum() for place in np.indices(cam.shape)]
    assert centre == pytest.approx([149.5, 39.5], abs=1)


def test_fault_05_200_pixels_become_13_whole_patches():
    model = build_stac(config_of("train.image_size=[200, 200]").train, 1)
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
    config = config_of()
    model = build_stac(config.train, 2).train()
    batch = {"image": torch.randn(2, 3, 64, 80), "label": torch.zeros(2, 2)}
    batch["map"] = torch.rand(2, 1, 64, 80)
    total, terms, _ = train_stac.batch_loss(model, batch, config, CPU, torch.Generator())
    total.backward()
    assert all(term.isfinite() for term in (total, *terms.values()))
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(gradient.isfinite().all() for gradient in gradients)
    # Both classes are asked to stay silent: their logits are too high wherever they stand.
    assert (model.head.bias.grad > 0).all()


def test_fault_07_a_false_alarm_on_a_defect_free_image_costs():
    sweep = ThresholdSweep([0.5], 1)
    hit = np.array([[0, 1]], np.uint8)
    sweep.update(hit, hit[None].astype(np.float32), np.array([0]))
    assert sweep.confusion(0.5).miou() == 100
    sweep.update(0 * hit, hit[None].astype(np.float32), np.array([0]))
    # Background: 2 of 3 pixels, none too many; class: 1 of 1 pixel and 1 false.
    assert sweep.confusion(0.5).scores().iou == pytest.approx([200 / 3, 50])


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
    call = released_files(tmp_path, ("a", "b", "c"))
    damage(tmp_path / "b.npz")
    with pytest.raises(SystemExit) as stopped:
        run_stage(lambda _: evaluation.main([*call, "--t", "0.5"]))
    assert stopped.value.code.startswith("error: ")  # printed to stderr; the exit code is 1
    assert "b" in stopped.value.code
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "log.jsonl").exists()


def released_files(folder: Path, names: tuple[str, ...]) -> list[str]:
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


# 11. The embedding is upsampled whole; negatives are drawn in a loop that waits for the device;
# each threshold reads each file again.


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

    call = released_files(tmp_path, ("a", "b"))
    monkeypatch.setattr("scoring.passes.read_cam", reader(read_cam))
    monkeypatch.setattr("datasets.files.read_mask", reader(read_mask))
    evaluation.main([*call, "--curve", "True", "--end", "100"])
    assert sorted(opened) == ["a.npz", "a.png", "b.npz", "b.png"]
    assert json.loads((tmp_path / "log.jsonl").read_text())["threshold"] == 0.2


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
    config = config_of("train.batch_size=1")
    pairs = zip(labels, scores, strict=True)
    items = [{"label": torch.tensor(y), "score": torch.tensor(s)} for y, s in pairs]
    zero = torch.zeros(())
    monkeypatch.setattr(train_stac, "batch_loss", lambda _, batch, *__: (zero, {}, batch["score"]))
    monkeypatch.setattr(train_stac, "image_scores", lambda output: output)
    measures, _ = train_stac.validate(torch.nn.Identity(), items, config, CPU, None)
    assert measures["map"] == pytest.approx(expected)
