import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import datasets.image_maps
from configs import SegmentationConfig, from_dict
from datasets.crops import place_crop
from datasets.files import read_image, read_mask, voc_palette, write_image, write_mask
from datasets.record import Record
from datasets.sources import read_data
from datasets.transforms import eval_transform
from runs.checkpoint import load_checkpoint, save_checkpoint
from segmentation import infer, prediction, train
from segmentation.networks import build_network

CLASSES = ("inclusion", "patches", "scratches")
NATIVE = (37, 50)  # H != W, neither a multiple of 16
LEVELS = np.array([120, 20, 220, 170], np.uint8)  # grey value of background and the classes
SMALL = "tu-mobilenetv3_small_050"  # 1.1 M parameters with the decoder


@pytest.fixture(autouse=True)
def one_thread():
    """Several threads on pictures this small only wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Run:
    """A run folder with images of the NEU-Seg layout and pseudo labels, without any true mask."""

    def __init__(self, root: Path, num_images: int):
        self.root, self.out = root, root / "run"
        rows = ["name,classes"]
        for i in range(num_images):
            self.add("training", f"{i:03d}", i)
            rows.append(f"{i:03d},{CLASSES[i % 3]}")
        for i in range(2):
            self.add("test", f"9{i}", i)
            rows.append(f"9{i}t,{CLASSES[i % 3]}")
        (self.out / "labels.csv").write_text("\n".join(rows) + "\n")
        self.config = root / "config.toml"
        self.config.write_text(
            f'[data]\nsource = "neu_seg"\nroot = "{root / "data"}"\nval_fraction = 0.2\n'
            f'[segmentation]\nencoder = "{SMALL}"\npretrained = "none"\nimage_size = [32, 48]\n'
            'batch_size = 2\nepochs = 2\nwarmup_steps = 1\namp = "off"\n'
        )

    def add(self, split: str, stem: str, index: int) -> None:
        mask = np.zeros(NATIVE, np.uint8)
        top = 4 * (index % 4)
        mask[top : top + 18, 13:37] = index % 3 + 1  # symmetric: flips only move it vertically
        image = np.repeat(LEVELS[mask][..., None], 3, axis=2)
        write_image(self.root / f"data/images/{split}/{stem}.png", image)
        mask[top] = 255
        if split == "training":
            write_mask(self.out / f"pseudo_labels/{stem}.png", mask)

    def arguments(self, *settings: str, out: str = "run") -> list[str]:
        flags = ["--config", str(self.config), "--out", str(self.root / out), "--device", "cpu"]
        return [*flags, *(["--set", *settings] if settings else [])]

    def log(self) -> list[dict]:
        return [json.loads(x) for x in (self.out / "segmentation/log.jsonl").open()]

    def checkpoint(self, name: str = "checkpoint.pt") -> dict:
        return load_checkpoint(self.out / "segmentation" / name, "segmentation/train.py")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path, num_images=6)  # 5 fit, 1 val


# Training


def test_last_batch_of_one_image_is_left_out():
    assert [train.steps_of(n, 4) for n in (2, 4, 5, 6, 8, 9)] == [1, 1, 1, 2, 2, 2]


def test_batches_of_one_image_are_refused():
    with pytest.raises(ValueError, match=r"segmentation\.batch_size: expected 2 or more, got 1"):
        train.steps_of(8, 1)
    with pytest.raises(ValueError, match=r"at least 2 outside the validation part, got 1\. Add"):
        train.steps_of(1, 8)


def test_log_checkpoint_and_best_hold_what_they_should(run):
    train.main(run.arguments())

    log = run.log()  # 5 images in batches of 2, the last one is left out: 2 steps an epoch
    assert [(line["epoch"], line["step"]) for line in log] == [(1, 2), (2, 4)]
    assert set(log[0]) == {
        "epoch", "step", "lr", "loss", "pixel", "dice", "val_miou", "seconds",
    }  # fmt: skip
    assert 0 <= log[0]["val_miou"] <= 100
    assert log[1]["lr"] == pytest.approx(1e-5)  # 1 % of segmentation.lr at the last step
    last, best = run.checkpoint(), run.checkpoint("best.pt")
    assert last["class_names"] == list(CLASSES)
    assert last["mean"] == [0.485, 0.456, 0.406] and last["std"] == [0.229, 0.224, 0.225]
    assert from_dict(last["config"]).segmentation.image_size == (32, 48)
    assert last["progress"]["best_miou"] == max(line["val_miou"] for line in log)
    expected = 1 if log[0]["val_miou"] >= log[1]["val_miou"] else 2
    assert best["progress"]["epoch"] == expected
    assert best.keys() == last.keys() - {"optimizer", "scaler"}


def test_max_steps_ends_the_training(run):
    train.main(run.arguments("segmentation.max_steps=3"))

    assert [line["step"] for line in run.log()] == [2, 3]


def test_training_runs_in_bfloat16_on_a_cpu(run, capsys):
    train.main(run.arguments("segmentation.amp=bf16", "segmentation.max_steps=2"))

    assert "cpu, autocast bfloat16" in capsys.readouterr().out
    assert run.checkpoint()["model"]["segmentation_head.0.weight"].dtype == torch.float32


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_resume_after_an_interruption_gives_the_same_weights_bit_for_bit(run, monkeypatch, ema):
    arguments = run.arguments("segmentation.jitter=0.4", f"segmentation.ema={ema}")
    train.main(arguments)
    straight, straight_log = run.checkpoint()["model"], run.log()

    original, calls = train.validate, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(train, "validate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.main(arguments)
    monkeypatch.setattr(train, "validate", original)
    assert run.checkpoint()["progress"]["epoch"] == 1
    torch.manual_seed(99)
    train.main([*arguments, "--resume"])

    resumed = run.checkpoint()["model"]
    assert all(torch.equal(resumed[key], value) for key, value in straight.items())
    without_time = [[{**x, "seconds": 0} for x in log] for log in (run.log(), straight_log)]
    assert without_time[0] == without_time[1]
    trained = run.checkpoint().get("trained", resumed)
    assert ema == 0 or any(not torch.equal(trained[key], resumed[key]) for key in resumed)


def test_training_on_crops_validates_on_them_too(run, monkeypatch):
    sides = []

    def seen(size, side, *arguments):
        sides.append(side)
        return place_crop(size, side, *arguments)

    monkeypatch.setattr(datasets.image_maps, "place_crop", seen)
    train.main(run.arguments("segmentation.crop=32", "segmentation.max_steps=2"))

    assert sides == [32] * 5  # two batches of two, and the validation image


def test_resume_with_other_settings_is_refused(run):
    train.main(run.arguments("segmentation.max_steps=1"))

    with pytest.raises(ValueError, match=r"--resume: expected .* segmentation settings, got oth"):
        train.main([*run.arguments("segmentation.lr=0.5"), "--resume"])


def test_resume_without_a_checkpoint_starts_anew(run):
    train.main([*run.arguments("segmentation.max_steps=1"), "--resume"])

    assert run.log()[0]["step"] == 1


def test_missing_pseudo_labels_stop_the_training(run):
    for path in (run.out / "pseudo_labels").glob("*.png"):
        path.unlink()

    with pytest.raises(FileNotFoundError, match=r"5 are missing: .* Run make_pseudo_labels\.py"):
        train.main(run.arguments())


def test_a_validation_part_without_any_label_is_refused(run):
    for path in (run.out / "pseudo_labels").glob("*.png"):
        write_mask(path, np.full(NATIVE, 255, np.uint8))

    with pytest.raises(ValueError, match=r"of the 1 validation images, got 255 .*val_fraction"):
        train.main(run.arguments())


def test_non_finite_loss_names_epoch_step_and_terms(run, monkeypatch):
    def broken(*tensors, **settings):
        total, terms = original(*tensors, **settings)
        return total * float("nan"), terms

    original = train.dense_loss
    monkeypatch.setattr(train, "dense_loss", broken)

    expected = "got loss nan, pixel .*, dice .* in epoch 1, step 1"
    with pytest.raises(RuntimeError, match=expected):
        train.main(run.arguments())


def test_four_images_are_learnt_by_heart(tmp_path):
    run = Run(tmp_path, num_images=5)  # 4 fit, 1 val
    settings = ["epochs=30", "batch_size=4", "lr=1e-2", "warmup_steps=5", "flip=false", "jitter=0"]
    arguments = run.arguments(*(f"segmentation.{s}" for s in [*settings, 'checkpoint="last"']))

    train.main(arguments)
    infer.main([*arguments, "--split", "fit"])

    data = read_data(from_dict(run.checkpoint()["config"]).data, run.out / "labels.csv")
    right = total = 0
    for record in data.split("fit"):
        mask = read_mask(run.out / f"pseudo_labels/{record.name}.png", 3)
        prediction = read_mask(run.out / f"predictions/{record.name}.png", 3)
        counted = mask != 255
        right += (prediction == mask)[counted].sum()
        total += counted.sum()
    assert right / total > 0.9


# Inference


def test_predictions_are_native_size_index_and_colour_pictures(run, capsys):
    train.main(run.arguments("segmentation.max_steps=1"))
    infer.main(run.arguments())

    for name in ("90t", "91t"):
        prediction = read_mask(run.out / f"predictions/{name}.png", 3)
        assert prediction.shape == NATIVE
        assert Image.open(run.out / f"predictions/{name}.png").mode == "P"
        colour = read_image(run.out / f"predictions_colour/{name}.png")
        assert np.array_equal(colour, voc_palette()[prediction])
    assert len(list((run.out / "predictions").glob("*.png"))) == 2
    with (run.out / "predictions/scores.csv").open() as file:
        rows = {row.pop("name"): row for row in csv.DictReader(file)}
    assert set(rows) == {"90t", "91t"}
    assert all(0 <= float(score) <= 1 for row in rows.values() for score in row.values())
    assert not (run.out / "predictions_overlay").exists()
    assert "--kind segmentation --split test" in capsys.readouterr().out


def test_overlays_scales_and_refinement_of_predictions(run):
    train.main(run.arguments("segmentation.max_steps=1"))
    infer.main([*run.arguments("segmentation.scales=[1.0,1.5]"), "--overlays"])
    plain = read_mask(run.out / "predictions/90t.png", 3)
    assert read_image(run.out / "predictions_overlay/90t.png").shape == (*NATIVE, 3)

    infer.main(run.arguments("segmentation.scales=[1.0,1.5]", "segmentation.pamr_steps=10"))
    assert read_mask(run.out / "predictions/90t.png", 3).shape == plain.shape


def test_probabilities_are_averaged_over_scales():
    torch.manual_seed(0)
    network = build_network("deeplabv3plus", "resnet18", "none", 3).eval()
    image = torch.randn(1, 3, 32, 32)
    settings = SegmentationConfig(scales=(1.0, 2.0))

    shares = prediction.averaged(network, image, settings).softmax(dim=1)

    wanted = torch.zeros(1, 3, 32, 32)
    with torch.no_grad():
        for size in ((32, 32), (64, 64)):
            scaled = torch.nn.functional.interpolate(image, size, mode="bilinear", antialias=True)
            for view in (scaled, scaled.flip(-1)):
                of_view = network(view).softmax(dim=1)
                of_view = of_view if view is scaled else of_view.flip(-1)
                resized = torch.nn.functional.interpolate(of_view, (32, 32), mode="bilinear")
                wanted += resized / 4
    torch.testing.assert_close(shares, wanted, atol=1e-5, rtol=1e-4)


def test_refined_predictions_follow_the_edge_of_the_image():
    image = np.zeros((16, 16, 3), np.uint8)
    image[:, 8:] = 200
    logits = torch.zeros(2, 16, 16)
    logits[1] = -2.0
    logits[1, :, 10:] = 2.0  # two columns late
    assert prediction.sharpened(logits, image, 0) is logits
    mask = prediction.best_class(prediction.sharpened(logits, image, 10))
    assert (mask[:, 8:] == 1).all() and not mask[:, :8].any()


def test_flip_average_of_a_mirrored_image_is_mirrored():
    torch.manual_seed(0)
    network = build_network("deeplabv3plus", "resnet18", "none", 4).eval()
    image = torch.randn(1, 3, 32, 48)

    direct = prediction.averaged(network, image, SegmentationConfig())
    mirrored = prediction.averaged(network, image.flip(-1), SegmentationConfig())

    torch.testing.assert_close(mirrored.flip(-1), direct)
    with torch.no_grad():
        assert not torch.allclose(network(image.flip(-1)).flip(-1), network(image))


def test_prediction_is_the_best_class_of_the_resized_logits():
    # Columns 0..3 of class 1 minus class 0: -3 -1 1 3; doubled, the sign changes in the middle.
    row = torch.tensor([-3.0, -1.0, 1.0, 3.0])
    logits = torch.stack([torch.zeros(2, 4), row.repeat(2, 1)])

    mask = prediction.best_class(prediction.resized(logits, (3, 8)))

    assert mask.dtype == np.uint8
    assert mask.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]] * 3
    same_size = F.interpolate(logits[None], (2, 4), mode="nearest")[0].argmax(0)
    assert prediction.best_class(prediction.resized(logits, (2, 4))).tolist() == same_size.tolist()


def test_an_image_that_fits_a_tile_is_not_changed_by_tiling(run):
    train.main(run.arguments("segmentation.max_steps=1"))
    found = []
    for tile in (0, 64):
        infer.main(run.arguments("segmentation.batch_size=1", f"segmentation.tile={tile}"))
        found.append([read_mask(run.out / f"predictions/9{i}t.png", 3) for i in range(2)])
    np.testing.assert_array_equal(*found)


class Brightness(torch.nn.Module):
    """Takes pixels of 0.5 or more for class 1."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.stack([0.5 - images[:, 0], images[:, 0] - 0.5], dim=1)


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_tiles_are_put_back_where_they_were_cut(tmp_path, batch_size):
    sizes = {"strip": (48, 200), "part": (131, 97)}  # tiles keep their pixels
    rng, records = np.random.default_rng(0), []
    for name, size in sizes.items():
        write_image(tmp_path / f"{name}.png", rng.integers(0, 256, size, dtype=np.uint8))
        records.append(Record(name, tmp_path / f"{name}.png", ()))
    section = {"tile": 48, "tile_overlap": 0.3, "batch_size": batch_size}
    config = from_dict({"segmentation": section})
    transform = eval_transform((48, 48), (0, 0, 0), (1, 1, 1))
    found = prediction.predict_tiles(
        Brightness(), records, transform, config, torch.device("cpu"), None
    )
    for (name, logits), record in zip(found, records, strict=True):
        assert name == record.name
        mask = prediction.best_class(logits)
        np.testing.assert_array_equal(mask, read_image(record.image)[..., 0] >= 128)


def test_classes_of_another_data_set_are_refused(run):
    train.main(run.arguments("segmentation.max_steps=1"))
    content = run.checkpoint() | {"class_names": ["inclusion", "crack"]}
    save_checkpoint(run.out / "segmentation/best.pt", content)

    expected = r"best\.pt: expected the classes inclusion, patches, scratches, got inclusion, crack"
    with pytest.raises(ValueError, match=expected):
        infer.main(run.arguments())


def test_inference_needs_a_trained_network(run):
    with pytest.raises(FileNotFoundError, match=r"best\.pt: .* Run segmentation/train\.py first"):
        infer.main(run.arguments())


@pytest.mark.parametrize(("stage", "own"), [(train, "--resume"), (infer, "--split")])
def test_help_names_every_flag(stage, own, capsys):
    with pytest.raises(SystemExit, match="0"):
        stage.main(["--help"])
    printed = capsys.readouterr().out
    assert f"usage: python -m {stage.__name__} " in printed
    assert all(flag in printed for flag in ("--config", "--out", "--set", "--device", own))


@pytest.mark.parametrize(
    "change", [("teacher_after=0.5", "teacher_confidence=0.0"), ("copy_paste=1.0",)]
)
def test_what_corrects_or_adds_labels_changes_what_is_learnt(run, change):
    sets = ("segmentation.max_steps=2", "segmentation.ema=0.9")
    finals = []
    for more in ((), change):
        train.main(run.arguments(*sets, *(f"segmentation.{change}" for change in more)))
        finals.append(load_checkpoint(run.out / "segmentation/checkpoint.pt", "train")["model"])
    assert any(not torch.equal(finals[0][key], finals[1][key]) for key in finals[0])
