"""Predictions of the second stage: files that are written, and how logits become masks."""

import csv
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from configs import Config, SegmentationConfig, to_dict
from datasets.files import read_image, read_mask, write_image
from datasets.record import Record
from inference import segment
from inference.segment import Segmenter, averaged, best_class, resized, sharpened, shifted
from runfolder.checkpoint import save_checkpoint
from segmentation import infer, train
from segmentation.networks import build_network


def test_predictions_are_native_size_index_pictures(run, capsys):
    train.main(run.arguments("segmentation.max_steps=1"))
    infer.main(run.arguments())

    for name in ("90t", "91t"):
        prediction = read_mask(run.out / f"predictions/{name}.png", 3)
        assert prediction.shape == run.size
        assert Image.open(run.out / f"predictions/{name}.png").mode == "P"
    assert len(list((run.out / "predictions").glob("*.png"))) == 2
    with (run.out / "predictions/scores.csv").open() as file:
        rows = {row.pop("name"): row for row in csv.DictReader(file)}
    assert set(rows) == {"90t", "91t"}
    assert all(0 <= float(score) <= 1 for row in rows.values() for score in row.values())
    meta = json.loads((run.out / "predictions/meta.json").read_text())
    assert meta["settings"]["encoder"] == run.checkpoint().config.segmentation.encoder
    assert meta["made_from"]["checkpoint"] == "checkpoint.pt"
    assert meta["made_from"]["progress"]["step"] == 1
    printed = capsys.readouterr().out
    assert "next: python evaluation.py --kind segmentation --config" in printed
    infer.main([*run.arguments(), "--split", "val"])
    assert capsys.readouterr().out.endswith(" --split val\n")


def test_pamr_of_predictions_is_that_of_the_run(run):
    train.main(run.arguments("segmentation.max_steps=2"))
    written = []
    for steps in (0, 10):
        infer.main(run.arguments(f"segmentation.pamr_steps={steps}"))
        written.append((run.out / "predictions/scores.csv").read_text())
        meta = json.loads((run.out / "predictions/meta.json").read_text())
        assert meta["settings"]["pamr_steps"] == steps
    assert written[0] != written[1]


def test_an_interrupted_prediction_says_that_it_is_unfinished(run, monkeypatch):
    train.main(run.arguments("segmentation.max_steps=1"))
    infer.main(run.arguments())

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(infer, "write_mask", stop)
    with pytest.raises(KeyboardInterrupt):
        infer.main(run.arguments())
    meta = json.loads((run.out / "predictions/meta.json").read_text())
    assert meta == {"unfinished": True}


def test_the_best_checkpoint_serves_where_there_is_no_last_one(run):
    train.main(run.arguments("segmentation.max_steps=1"))
    (run.out / "segmentation/checkpoint.pt").unlink()
    infer.main(run.arguments())
    meta = json.loads((run.out / "predictions/meta.json").read_text())
    assert meta["made_from"]["checkpoint"] == "best.pt"


def test_refined_predictions_follow_the_edge_of_the_image():
    image = np.zeros((16, 16, 3), np.uint8)
    image[:, 8:] = 200
    logits = torch.zeros(2, 16, 16)
    logits[1] = -2.0
    logits[1, :, 10:] = 2.0  # two columns late
    assert sharpened(logits, image, 0) is logits
    mask = best_class(sharpened(logits, image, 10))
    assert (mask[:, 8:] == 1).all() and not mask[:, :8].any()


def test_flip_average_of_a_mirrored_image_is_mirrored():
    torch.manual_seed(0)
    network = build_network("deeplabv3plus", "resnet18", "none", 4).eval()
    image = torch.randn(1, 3, 32, 48)

    direct = averaged(network, image)
    mirrored = averaged(network, image.flip(-1))

    torch.testing.assert_close(mirrored.flip(-1), direct)
    with torch.no_grad():
        assert not torch.allclose(network(image.flip(-1)).flip(-1), network(image))


def test_probabilities_are_averaged_over_mirror_images():
    class Column(torch.nn.Module):
        """Gives class 1 a share of 0.9 in the first column of whatever it sees, else 0.2."""

        def forward(self, images):
            shares = torch.full((len(images), 1, *images.shape[2:]), 0.2)
            shares[..., 0] = 0.9
            return torch.cat([1 - shares, shares], dim=1).log()

    shares = averaged(Column(), torch.zeros(1, 3, 2, 4)).softmax(dim=1)
    # (0.9 + 0.2) / 2 in the outer columns
    expected = torch.tensor([0.55, 0.2, 0.2, 0.55]).expand(1, 2, 4)
    torch.testing.assert_close(shares[:, 1], expected)


def test_prediction_is_the_best_class_of_the_resized_logits():
    # Columns 0..3 of class 1 minus class 0: -3 -1 1 3; doubled, the sign changes in the middle.
    row = torch.tensor([-3.0, -1.0, 1.0, 3.0])
    logits = torch.stack([torch.zeros(2, 4), row.repeat(2, 1)])

    mask = best_class(resized(logits, (3, 8)))

    assert mask.dtype == np.uint8
    assert mask.tolist() == [[0, 0, 0, 0, 1, 1, 1, 1]] * 3
    same_size = F.interpolate(logits[None], (2, 4), mode="nearest")[0].argmax(0)
    assert best_class(resized(logits, (2, 4))).tolist() == same_size.tolist()


def test_an_image_that_fits_a_tile_is_not_changed_by_tiling(run):
    train.main(run.arguments("segmentation.max_steps=1"))
    masks = []
    for tile in (0, 64):
        infer.main(run.arguments(f"segmentation.tile={tile}"))
        masks.append([read_mask(run.out / f"predictions/9{i}t.png", 3) for i in range(2)])
    np.testing.assert_array_equal(*masks)


class Brightness(torch.nn.Module):
    """Takes pixels of 0.5 or more for class 1."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.stack([0.5 - images[:, 0], images[:, 0] - 0.5], dim=1)


@pytest.fixture
def brightness(monkeypatch) -> dict:
    """A checkpoint whose network is `Brightness`, at 48 x 48 pixels."""
    monkeypatch.setattr(segment, "network_from_checkpoint", lambda checkpoint: Brightness())
    section = SegmentationConfig(image_size=(48, 48), amp="off")
    content = {"config": to_dict(Config(segmentation=section)), "class_names": ["bright"]}
    return content | {"mean": [0.0] * 3, "std": [1.0] * 3}


@pytest.mark.parametrize("batch_size", [2, 4, 100])
def test_tiles_are_put_back_where_they_were_cut(tmp_path, brightness, batch_size):
    sizes = {"strip": (48, 200), "part": (131, 97)}  # tiles keep their pixels
    rng, records = np.random.default_rng(0), []
    for name, size in sizes.items():
        write_image(tmp_path / f"{name}.png", rng.integers(0, 256, size, dtype=np.uint8))
        records.append(Record(name, tmp_path / f"{name}.png", ()))
    settings = SegmentationConfig(tile=48, batch_size=batch_size)
    segmenter = Segmenter(brightness, settings, torch.device("cpu"))
    assert segmenter.class_names == ["bright"]
    segmented = list(segmenter.over(records, workers=0))
    assert [record for record, *_ in segmented] == records
    for record, pixels, logits in segmented:
        np.testing.assert_array_equal(pixels, read_image(record.image))
        assert logits.shape == (2, *sizes[record.name])
        np.testing.assert_array_equal(best_class(logits), pixels[..., 0] >= 128)


def test_a_class_beats_the_background_from_its_threshold_on():
    # Shares of background and two classes: 0.5, 0.25, 0.25; the first class' of the first two: 1/3.
    logits = torch.tensor([0.5, 0.25, 0.25]).log()[:, None, None]
    for thresholds, wanted in (
        ([0.5, 0.5], 0), ([0.34, 0.5], 0), ([0.32, 0.5], 1), ([0.5, 0.32], 2), ([0.3, 0.2], 2),
        ([1.0, 0.0], 2), ([1.0, 1.0], 0), ([0.0, 0.5], 1),
    ):  # fmt: skip
        moved = shifted(logits, thresholds)
        assert moved.shape == logits.shape and moved.isfinite().all()
        assert best_class(moved).item() == wanted
    assert shifted(logits, [0.5, 0.5]) is logits


def test_unreadable_images_are_collected_and_the_others_segmented(tmp_path, brightness):
    records = [Record(name, tmp_path / f"{name}.png", ()) for name in ("good", "bad")]
    write_image(records[0].image, np.full((20, 30, 3), 200, np.uint8))
    records[1].image.write_bytes(b"no picture")
    segmenter = Segmenter(brightness, SegmentationConfig(), torch.device("cpu"))
    problems = {}
    segmented = list(segmenter.over(records, 0, problems))
    assert [record.name for record, *_ in segmented] == ["good"]
    assert list(problems) == ["bad"] and "bad.png" in problems["bad"]


def test_classes_of_another_data_set_are_refused(run):
    train.main(run.arguments("segmentation.max_steps=1"))
    content = run.checkpoint() | {"class_names": ["inclusion", "crack"]}
    save_checkpoint(run.out / "segmentation/checkpoint.pt", content)

    expected = r"checkpoint\.pt: expected the classes inclusion, .*, got inclusion, crack"
    with pytest.raises(ValueError, match=expected):
        infer.main(run.arguments())


def test_inference_needs_a_trained_network(run):
    with pytest.raises(
        FileNotFoundError, match=r"checkpoint\.pt: .* Run python -m segmentation\.train first"
    ):
        infer.main(run.arguments())


@pytest.mark.parametrize(("stage", "own"), [(train, "--resume"), (infer, "--split")])
def test_help_names_every_flag(stage, own, capsys):
    with pytest.raises(SystemExit, match="0"):
        stage.main(["--help"])
    printed = capsys.readouterr().out
    assert f"usage: python -m {stage.__name__} " in printed
    assert all(flag in printed for flag in ("--config", "--out", "--set", "--device", own))
