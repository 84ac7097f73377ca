"""The trained models that lie in a run folder."""

from pathlib import Path

import pytest

from configs import Config, to_dict
from inference.models import load_trained, with_tile
from runfolder.checkpoint import save_checkpoint
from runfolder.run import Run


def save(path: Path, *class_names: str, mark: int = 0) -> None:
    content = {
        "model": {},
        "config": to_dict(Config()),
        "class_names": list(class_names),
        "progress": {"epoch": mark},
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    save_checkpoint(path, content)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "run", Config())


def test_both_models_are_read(run):
    save(run.stac_dir / "checkpoint.pt", "dent", "stain", mark=1)
    save(run.segmentation_dir / "best.pt", "dent", "stain", mark=2)
    trained = load_trained(run)
    assert trained.class_names == ["dent", "stain"]
    assert trained.localiser["progress"] == {"epoch": 1}
    assert trained.segmentation["progress"] == {"epoch": 2}
    assert trained.localiser.config == Config()


@pytest.mark.parametrize("there", ["localiser", "segmentation"])
def test_one_model_is_enough(run, there):
    folder = run.stac_dir if there == "localiser" else run.segmentation_dir
    save(folder / "best.pt", "dent")
    trained = load_trained(run)
    assert trained.class_names == ["dent"]
    other = "segmentation" if there == "localiser" else "localiser"
    assert getattr(trained, there) and getattr(trained, other) is None


def test_of_both_models_the_last_weights_are_taken_before_the_best(run):
    # The best ones are chosen by labels of the validation part.
    for folder in (run.stac_dir, run.segmentation_dir):
        save(folder / "checkpoint.pt", "dent", mark=1)
        save(folder / "best.pt", "dent", mark=2)
    trained = load_trained(run)
    assert trained.localiser["progress"] == trained.segmentation["progress"] == {"epoch": 1}
    for folder in (run.stac_dir, run.segmentation_dir):
        (folder / "checkpoint.pt").unlink()
    trained = load_trained(run)
    assert trained.localiser["progress"] == trained.segmentation["progress"] == {"epoch": 2}


def test_a_folder_without_a_model_is_refused(run):
    expected = r"run: expected segmentation/checkpoint\.pt or stac/checkpoint\.pt, found neither\. "
    with pytest.raises(FileNotFoundError, match=expected):
        load_trained(run)


def test_models_of_different_classes_are_refused(run):
    save(run.stac_dir / "checkpoint.pt", "dent", "stain")
    save(run.segmentation_dir / "best.pt", "stain", "dent")
    expected = r"of the same classes, got \['dent', 'stain'\] and \['stain', 'dent'\]\. Train one"
    with pytest.raises(ValueError, match=expected):
        load_trained(run)


def test_another_tile_is_taken_by_both_models_and_changes_nothing_else(run):
    assert with_tile(run, None) is run
    tiled = with_tile(run, 96)
    assert (tiled.config.cam.tile, tiled.config.segmentation.tile) == (96, 96)
    assert tiled.folder == run.folder
    assert with_tile(tiled, 0).config == run.config == Config()
