"""Guidance by nothing, by maps and by true masks: one run at small size."""

import numpy as np
import pytest

from configs.fields import CAM_TYPES
from datasets.files import read_saliency, write_mask
from datasets.record import Record
from runfolder.run import SaliencyMeta, read_meta
from studies import oracle
from studies.ablation import RULES, Job


def test_masks_become_maps_of_their_defects(tmp_path):
    mask = np.array([[0, 1, 255], [3, 0, 2]], np.uint8)
    write_mask(tmp_path / "mask.png", mask)
    record = Record("a", tmp_path / "a.png", (0, 1, 2), mask=tmp_path / "mask.png")
    oracle.write_true_masks([record], tmp_path / "maps", 3)
    saliency = read_saliency(tmp_path / "maps/a.png")
    assert saliency.tolist() == [[0, 1, pytest.approx(0.5, abs=0.01)], [1, 0, 1]]


def test_images_without_a_mask_are_refused(tmp_path):
    records = [Record("a", tmp_path / "a.png", (0,))]
    with pytest.raises(ValueError, match="expected one for each of 1 images, 1 have none: a"):
        oracle.write_true_masks(records, tmp_path, 3)


def test_a_defect_of_whole_patches_loses_nothing_and_a_thin_one_spreads():
    truth = np.zeros((8, 8), np.uint8)
    truth[:4, :4] = 2
    shares = oracle.covered_shares(truth, (1,), (8, 8))
    assert shares.shape == (1, 8, 8)
    assert (shares[0] == (truth == 2)).all()
    truth[:] = 0
    truth[0] = 1
    coarse = oracle.covered_shares(truth, (0,), (2, 2))[0]
    assert coarse[0].min() > coarse[-1].max()
    assert coarse[1].min() > 0.5  # a row of pixels cannot be told from the rest of its patches
    assert oracle.covered_shares(truth, (), (2, 2)).shape == (0, 8, 8)


def test_finer_grids_allow_more(tmp_path):
    mask = np.zeros((32, 32), np.uint8)
    mask[3:9, 5:27] = 1
    write_mask(tmp_path / "a.png", mask)
    record = Record("a", tmp_path / "a.jpg", (0,), mask=tmp_path / "a.png")
    lines = oracle.grid_table([record], [(4, 4), (8, 8), (32, 32)], ["scratch"]).splitlines()
    scores = [[float(cell) for cell in line.split("|")[2:4]] for line in lines[2:]]
    assert lines[2].startswith("| 4 x 4 |")
    assert scores[0][0] < scores[1][0] < scores[2][0] == 100
    assert scores[0][1] < scores[1][1] < scores[2][1] == 100


def test_every_guidance_and_size_is_a_row(tmp_path, capsys, monkeypatch):
    seen = []

    def results(job, maps, bound):
        assert bound == (maps.name == "true_masks")
        seen.append((job.run_dir.name, maps.name, len(job.variants), job.changes[0]))
        miou = 10.0 * len(seen)
        rows = [(t, rule) for t in CAM_TYPES for rule in RULES]
        return [{"cam_type": t, "threshold_rule": rule, "miou": miou} for t, rule in rows]

    monkeypatch.setattr(Job, "results", results)
    flags = ["--out", str(tmp_path / "run"), "--from-dir", str(tmp_path / "maps")]
    sample = ["data.sample_train=8", "data.sample_test=2", "data.eval_split=train"]
    flags += ["--sizes", "32", "48", "--set", f"data.root={tmp_path / 'data'}", *sample]
    oracle.main(flags)
    assert seen == [
        (f"{name}_{size}", maps, unguided, f"train.image_size=[{size},{size}]")
        for size in (32, 48)
        for name, maps, unguided in (
            ("none", "maps", 1),
            ("saliency", "maps", 0),
            ("true_masks", "true_masks", 0),
        )
    ]
    assert len(list((tmp_path / "run/true_masks").glob("*.png"))) == 8
    assert len(read_meta(tmp_path / "run/true_masks", SaliencyMeta).masked) == 8
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:5]] == ["| 4 x 4", "| 6 x 6", "| 9 x 9"]
    cells = [line.split(" | ") for line in lines[-6:]]
    assert cells[0][:3] == ["| none, 32 px", "1", "10.00 ± 0.00"]
    assert cells[5][:3] == ["| true masks, 48 px", "1", "60.00 ± 0.00"]
    seen.clear()
    oracle.main(["--guidance", "saliency", *flags])
    assert [name for name, *_ in seen] == ["saliency_32", "saliency_48"]
