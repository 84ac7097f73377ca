"""The ablation's table by hand, and which results it takes for finished."""

import argparse
import json

import pytest

from benchmarks import ablation


def rows(variant: str, *values: float) -> list[dict]:
    """One run per value, the same score for every CAM type and rule."""
    return [
        {"variant": variant, "cam_type": cam_type, "threshold_rule": rule, "miou": value}
        for value in values
        for cam_type in ablation.CAM_TYPES
        for rule in ablation.RULES
    ]


def test_table_shows_mean_and_sample_deviation_over_seeds():
    # 40, 42, 47: mean 43, deviation sqrt((9 + 1 + 16) / 2) = 3.61
    lines = ablation.table([*rows("base", 40, 42, 47), *rows("full", 50)], "test").splitlines()
    assert lines[0].startswith("| mIoU, test | runs | patchcam, agreement | patchcam, oracle | ")
    assert lines[2].split(" | ")[:3] == ["| base", "3", "43.00 ± 3.61"]
    assert lines[3].split(" | ")[:3] == ["| full", "1", "50.00 ± 0.00"]
    assert len({line.count("|") for line in lines}) == 1


def test_results_of_other_settings_are_not_taken(tmp_path):
    lines = [{"miou": 1.0, "config_sha": "old"}, {"miou": 2.0, "config_sha": "new"}]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert ablation.results_of(tmp_path, "new") == lines[1:]
    assert ablation.results_of(tmp_path / "nowhere", "new") == []


def test_given_maps_are_not_smoothed_again(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(ablation, "run_script", lambda *arguments: asked.append(arguments))
    args = argparse.Namespace(config=["configs/mtd_cpu.toml"], set=[])
    ablation.trained_and_scored(tmp_path / "run", tmp_path / "maps", args, [], ["train.seed=3"])
    words, *_, changes = asked[0]
    assert words == ["make_saliency.py", "--from-dir", str(tmp_path / "maps")]
    assert changes == ["train.seed=3", "saliency.pamr_steps=0"]


@pytest.mark.parametrize(("variant", "has_head"), [("saliency", False), ("full", True)])
def test_all_cam_types_that_a_variant_has_are_scored(variant, has_head):
    args = argparse.Namespace(config=["configs/mtd_cpu.toml"], set=[])
    settings = ablation.scored_settings(args, [f"configs/variants/{variant}.toml"], [])
    types = '["patchcam", "attention", "fused", "pixel"]' if has_head else (
        '["patchcam", "attention", "fused"]'
    )  # fmt: skip
    assert settings == [f"cam.types={types}", 'cam.labels=["given"]']


def test_table_marks_types_that_a_variant_lacks():
    headless = [row for row in rows("saliency", 40) if row["cam_type"] != "pixel"]
    lines = ablation.table([*headless, *rows("full", 50)], "train").splitlines()
    assert lines[0].endswith("| pixel, agreement | pixel, oracle |")
    assert lines[2].endswith(" | - | - |") and lines[3].endswith(" | 50.00 ± 0.00 |")
    assert "pixel" not in ablation.table(headless, "train")


def test_a_wrong_variant_is_found_before_anything_is_trained(tmp_path):
    (tmp_path / "wrong.toml").write_text("[loss]\ncontrst = 0\n")
    with pytest.raises(ValueError, match=r"wrong\.toml: loss\.contrst: unknown key"):
        ablation.main(["--variants", str(tmp_path / "wrong.toml"), "--out", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()


def test_a_failing_stage_names_its_log(tmp_path):
    with pytest.raises(RuntimeError, match=r"make_saliency\.py: expected exit code 0, got 1\. See"):
        ablation.main(
            ["--out", str(tmp_path / "run"), "--set", "data.source=mtd", f"data.root={tmp_path}"]
        )
    assert "error: " in (tmp_path / "run/saliency_run/stages.log").read_text()
