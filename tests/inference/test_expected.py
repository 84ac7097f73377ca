"""The forecast of a run: units are timed, and counted as the stages will do them."""

import json

import pytest
import torch

from configs import load
from inference import expected
from inference.expected import Units, measured, minutes
from runfolder.run import Run

TINY = [
    "data.sample_train=20",
    "data.sample_test=4",
    "data.val_fraction=0.2",
    "train.backbone=deit_tiny_patch16_224",
    "train.image_size=[32,48]",
    "train.batch_size=4",
    "segmentation.image_size=[64,64]",
    "segmentation.encoder=resnet18",
    "segmentation.batch_size=4",
    "saliency.backbone=deit_tiny_patch16_224",
]
ONE = Units(*[60.0] * len(Units._fields))._replace(tiles=1)


@pytest.fixture
def run(tmp_path):
    def make(*settings: str) -> Run:
        config = load("configs/sample.toml", [*TINY, f"data.root={tmp_path}/data", *settings])
        return Run(tmp_path / "run", config)

    return make


def test_units_are_counted_as_the_stages_do_them(run):
    found = minutes(
        run(
            "train.epochs=3",
            "train.eval_every=1",
            "cam.scales=[1.0,2.0]",
            "cam.flip=true",
            "pseudo_label.pamr_steps=10",
            "segmentation.epochs=50",
            "segmentation.max_steps=8",
            "segmentation.eval_every=1",
            "segmentation.pamr_steps=5",
        ),
        ONE,
    )
    num_fit, num_val, num_test = 16, 4, 4
    assert found == {
        "saliency": 20 + num_test,
        "train": 3 * num_fit + 3 * num_val,
        "cams": (20 + num_test) * (1 + 4) * 2,
        "pseudo_labels": (20 + num_test) * 10,
        "segmentation": 8 * 4 + 2 * num_val,  # two epochs
        "predictions": num_test * (2 + 5),
    }


def test_each_round_of_refinement_adds_its_students_and_maps(run):
    none, one, two = (
        minutes(run(f"refinement.rounds={rounds}", "refinement.steps=7"), ONE)["saliency"]
        for rounds in (0, 1, 2)
    )
    per_map = 1 + expected.PAMR_STEPS
    assert one - none == 24 + 2 * 7 + 24 * per_map  # features, two students, maps
    assert two - one == 2 * 7 + 16 * per_map  # the maps that the second round learns from


@pytest.mark.parametrize("generator", ["contrast", "feature", "external"])
def test_every_unit_that_is_needed_is_timed(run, generator):
    settings = (f"saliency.generator={generator}", "refinement.rounds=1", "cam.tile=100")
    units = measured(run(*settings), torch.device("cpu"))
    assert units.tiles > 1
    without_prior = units._replace(prior=1.0) if generator == "external" else units
    assert all(value > 0 for value in without_prior)


def test_the_command_prints_minutes_as_json(run, capsys, monkeypatch):
    monkeypatch.setattr(expected, "measured", lambda *_: ONE)
    own = run()
    own.begin_stage()
    expected.main(["--config", str(own.config_path), "--out", str(own.folder), "--device", "cpu"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["predictions"] == 4 * (2 + 5)
