"""Which images are scored, in which parts, and what their results say of labels and masks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from configs import Config, changed
from datasets.files import write_image, write_mask
from runfolder.run import CamMeta, MaskMeta, Run, SaliencyMeta, write_meta
from runfolder.scored import Asked, scored_of

NAMES = [f"{i:06}" for i in range(8)]
ASKED = Asked("segmentation", "train", "all", "", "predicted", bound=False)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Make predictions of eight training images in the NEU-Seg layout, 000000 to 000003 develop."""
    for i, name in enumerate(NAMES):
        write_image(tmp_path / f"data/images/training/{name}.jpg", np.zeros((4, 5), np.uint8))
        mask = np.full((4, 5), 1 + i % 2, np.uint8)
        write_mask(tmp_path / f"data/annotations/training/{name}.png", mask)
        write_mask(tmp_path / f"run/predictions/{name}.png", mask)
    (tmp_path / "develop.txt").write_text("\n".join(NAMES[:4]))
    values = {"source": "neu_seg", "root": str(tmp_path / "data"), "val_fraction": 0.25}
    values |= {"develop_list": str(tmp_path / "develop.txt")}
    config = changed(Config(), {f"data.{key}": value for key, value in values.items()})
    return Run(tmp_path / "run", config)


def names(records) -> list[str]:
    return [record.name for record in records]


def test_all_images_are_divided_into_report_and_develop(run):
    scored = scored_of(run, ASKED)
    assert names(scored.records) == NAMES
    assert [path.stem for path in scored.paths] == NAMES
    (report, paths), (develop, _) = scored.parts
    assert (names(report), names(develop)) == (NAMES[4:], NAMES[:4])
    assert [path.stem for path in paths] == NAMES[4:]
    assert (scored.about["part"], scored.about["images"]) == ("all", 8)


@pytest.mark.parametrize(("part", "expected"), [("develop", NAMES[:4]), ("report", NAMES[4:])])
def test_a_part_is_scored_alone(run, part, expected):
    scored = scored_of(run, ASKED._replace(part=part))
    assert names(scored.records) == expected
    assert len(scored.parts) == 1 and scored.about["part"] == part


def test_a_part_needs_a_list(run):
    run = Run(run.folder, changed(run.config, {"data.develop_list": ""}))
    assert len(scored_of(run, ASKED).parts) == 1
    with pytest.raises(ValueError, match="--part report: expected data.develop_list to name"):
        scored_of(run, ASKED._replace(part="report"))


def test_labels_are_predicted_only_where_none_took_part(run):
    def labels(split: str, asked: str = "predicted") -> str:
        return scored_of(run, ASKED._replace(split=split, labels=asked)).about["labels"]

    assert labels("train") == labels("fit") == "learnt"
    assert labels("val") == "predicted"
    assert labels("train", "given") == "given"
    made_from = {"checkpoint": "best.pt"}  # chosen by the pseudo labels of val
    write_meta(run.prediction_dir, MaskMeta({}, made_from))
    assert labels("val") == "learnt"
    write_meta(run.prediction_dir, MaskMeta({}, {"checkpoint": "checkpoint.pt"}))
    assert labels("val") == "predicted"


def test_a_localiser_chosen_on_val_has_learnt_its_labels(run):
    folder = run.cam_dir("fused", "predicted")
    for name in NAMES:
        (folder / f"{name}.npz").parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.npz").touch()
    asked = Asked("cam", "val", "all", "fused", "predicted", bound=False)
    for checkpoint, labels in (("checkpoint.pt", "predicted"), ("best.pt", "learnt")):
        write_meta(folder, CamMeta("fused", "predicted", {}, checkpoint, {}))
        assert scored_of(run, asked).about["labels"] == labels


@pytest.mark.parametrize("place", ["saliency", "predictions"])
def test_images_whose_masks_were_used_are_scored_as_a_bound_alone(run, place, capsys):
    masked = NAMES[:3]
    if place == "saliency":
        write_meta(run.saliency_dir, SaliencyMeta({}, {}, [], masked=masked))
    else:
        write_meta(run.prediction_dir, MaskMeta({}, {}, masked))
    scored = scored_of(run, ASKED)
    assert names(scored.records) == NAMES[3:]
    assert scored.about["masks_used"] == 3 and "bound" not in scored.about
    assert "3 images that the maps were learnt from are not scored" in capsys.readouterr().out
    bound = scored_of(run, ASKED._replace(bound=True))
    assert names(bound.records) == NAMES
    assert (bound.about["masks_used"], bound.about["bound"]) == (3, True)


def test_nothing_is_scored_where_all_masks_were_used(run):
    write_meta(run.saliency_dir, SaliencyMeta({}, {}, [], masked=NAMES))
    assert scored_of(run, ASKED) is None


def test_defect_free_images_that_were_learnt_from_count_no_alarms(run):
    write_meta(run.saliency_dir, SaliencyMeta({}, {}, [], seen_defect_free=NAMES[:2]))
    for name in NAMES:
        write_image(run.saliency_dir / f"{name}.png", np.zeros((4, 5), np.uint8))
    asked = ASKED._replace(kind="saliency", labels="given")
    assert len(scored_of(run, asked).records) == 8  # their maps are emptied
    real = Run(run.folder, changed(run.config, {"saliency.empty_defect_free": False}))
    assert names(scored_of(real, asked).records) == NAMES[2:]


def test_images_without_a_mask_are_not_scored(run, capsys):
    train = tuple(
        replace(r, mask=None) if r.name == NAMES[1] else r for r in run.data.split("train")
    )
    run.data.splits["train"] = train
    assert len(scored_of(run, ASKED).records) == 7
    assert f"1 images have no mask, not scored: {NAMES[1]}." in capsys.readouterr().out
