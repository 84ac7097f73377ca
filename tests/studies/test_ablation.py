"""The ablation's table by hand, and which results it takes for finished."""

import argparse
import importlib
import json
from collections import Counter
from types import SimpleNamespace

import pytest

from configs import fingerprint, load
from configs.command_line import ROOT, stage_parser
from configs.fields import CAM_TYPES
from studies import ablation

ARGS = argparse.Namespace(config=[str(ROOT / "configs/mtd_cpu.toml")], set=[], part=None)


def rows(variant: str, *values: float) -> list[dict]:
    """One run per value, the same score for every CAM type and rule."""
    return [
        {"variant": variant, "cam_type": cam_type, "threshold_rule": rule, "miou": value}
        for value in values
        for cam_type in CAM_TYPES
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
    lines = [
        {"miou": 1.0, "config_sha": "old", "part": "develop"},
        {"miou": 2.0, "config_sha": "new", "part": "develop"},
        {"miou": 3.0, "config_sha": "new", "part": "all"},
    ]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert ablation.results_of(tmp_path, "new", "develop") == lines[1:2]
    assert ablation.results_of(tmp_path / "nowhere", "new", "all") == []


@pytest.fixture
def calls(monkeypatch) -> list[tuple[list[str], list[str]]]:
    """Record what jobs call, words and changes of settings; nothing runs."""
    asked = []
    monkeypatch.setattr(ablation.Job, "call", lambda job, words: asked.append((words, job.changes)))
    return asked


def test_given_maps_are_not_smoothed_again(tmp_path, calls):
    job = ablation.Job(tmp_path / "run", ARGS, [], ["train.seed=3"])
    job.results(tmp_path / "maps")
    words, changes = calls[0]
    assert words == ["make_saliency.py", "--from-dir", str(tmp_path / "maps")]
    assert changes == ["train.seed=3", "saliency.pamr_steps=0"]
    assert all(changes == ["train.seed=3"] for _, changes in calls[1:])


def test_a_job_trains_and_scores_every_cam_type_of_its_config(tmp_path, calls):
    changes = ['cam.types=["fused","attention"]', "pseudo_label.cam_type=fused"]
    old = {"config_sha": "of other settings", "part": "all"}
    (tmp_path / "results.jsonl").write_text(json.dumps(old) + "\n")
    assert ablation.Job(tmp_path, ARGS, [], changes).results(tmp_path / "maps") == []
    score = ["evaluation.py", "--kind", "cam", "--cam-type"]
    rules = ["--threshold-rule", "agreement", "oracle"]
    assert [words for words, _ in calls][1:] == [
        ["train_stac.py", "--resume"],
        ["make_cams.py"],
        [*score, "fused", *rules],
        [*score, "attention", *rules],
    ]
    assert not (tmp_path / "results.jsonl").exists()


def test_a_finished_job_is_not_repeated(tmp_path, calls):
    changes = ['cam.types=["fused"]', "pseudo_label.cam_type=fused"]
    sha = fingerprint(load(ARGS.config, changes))
    rows = [{"config_sha": sha, "part": "all", "threshold_rule": rule} for rule in ablation.RULES]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert ablation.Job(tmp_path, ARGS, [], changes).results(tmp_path / "maps") == rows
    assert calls == []


def test_all_runs_of_a_study_take_the_same_maps(tmp_path, monkeypatch):
    asked = []

    def results(job, maps):
        asked.append((job.run_dir.name, job.changes[0], maps))
        return []

    monkeypatch.setattr(ablation.Job, "call", lambda job, words: None)
    monkeypatch.setattr(ablation.Job, "results", results)
    monkeypatch.setattr(ablation, "table", lambda rows, split: "table")
    out = tmp_path / "run"
    variants = [str(ROOT / f"configs/variants/{name}.toml") for name in ("base", "full")]
    ablation.main(["--out", str(out), "--variants", *variants, "--seeds", "4", "5"])
    maps = out / "saliency_run/saliency"
    # All variants of one seed come first.
    assert asked == [
        (f"{variant}_{seed}", f"train.seed={seed}", maps)
        for seed in (4, 5)
        for variant in ("base", "full")
    ]


def test_a_small_study_gives_a_row_per_variant_once(tmp_path, capsys, monkeypatch):
    """The stages run in this process; the second call finds all results."""
    started = []

    def run_here(words, **options):
        started.append(words[1])
        importlib.import_module(words[1].removesuffix(".py")).main(words[2:])
        return SimpleNamespace(returncode=0)

    here = SimpleNamespace(run=run_here, DEVNULL=None, STDOUT=None)
    monkeypatch.setattr(ablation, "subprocess", here)
    variants = [str(ROOT / f"configs/variants/{name}.toml") for name in ("base", "full")]
    arguments = ["--out", str(tmp_path / "run"), "--variants", *variants, "--seeds", "0"]
    tiny = ["data.sample_train=8", "data.sample_test=2", f"data.root={tmp_path}/data"]
    tiny += ["train.image_size=[32,32]", "train.max_steps=1", "cam.scales=[1.0]"]
    for _ in range(2):
        ablation.main([*arguments, "--device", "cpu", "--set", *tiny])
        lines = capsys.readouterr().out.splitlines()
        assert lines[-4].startswith("| mIoU, test, all | runs | patchcam, agreement |")
        assert [line.split(" | ")[:2] for line in lines[-2:]] == [["| base", "1"], ["| full", "1"]]
        assert "-" in lines[-2] and "-" not in lines[-1]  # base has no head
    # The maps are looked at by both calls; base has three types of CAMs, full four.
    counts = {"make_saliency.py": 2 + 2, "train_stac.py": 2, "make_cams.py": 2}
    assert Counter(started) == counts | {"evaluation.py": 3 + 4}


@pytest.mark.parametrize(
    ("asked", "split", "part"),
    [
        (None, "train", "develop"),
        (None, "test", "all"),
        ("report", "train", "report"),
        ("all", "train", "all"),
    ],
)
def test_a_study_chooses_on_the_develop_part_of_train(tmp_path, calls, asked, split, part):
    flags = ["--out", str(tmp_path / "run"), "--part", asked] if asked else []
    parser = stage_parser("")
    ablation.add_part(parser)
    args = parser.parse_args(["--config", str(ROOT / "configs/neu_seg_cpu.toml"), *flags])
    changes = [f"data.eval_split={split}", 'cam.types=["pixel"]', "pseudo_label.cam_type=pixel"]
    ablation.Job(tmp_path, args, [], changes).results(tmp_path / "maps", bound=True)
    words = calls[-1][0]
    assert words[5:] == [
        *(["--part", part] if part != "all" else []),
        "--bound",
        "--threshold-rule",
        *ablation.RULES,
    ]


@pytest.mark.parametrize(("variant", "has_head"), [("saliency", False), ("full", True)])
def test_all_cam_types_that_a_variant_has_are_scored(variant, has_head):
    settings = ablation.scored_settings(ARGS, [str(ROOT / f"configs/variants/{variant}.toml")], [])
    types = '["patchcam", "attention", "fused"' + (', "pixel"]' if has_head else "]")
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
