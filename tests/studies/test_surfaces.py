"""The study over surfaces: one table, each row from the scores of a run, nothing made twice."""

import json
from pathlib import Path

import pytest

import evaluation
import make_saliency
from studies import ablation, surfaces

STAGES = {"make_saliency.py": make_saliency.main, "evaluation.py": evaluation.main}


@pytest.fixture
def called(monkeypatch) -> list[str]:
    """Let stages run in this process; collects their names."""
    names = []

    def call(job: ablation.Job, words: list[str]) -> None:
        names.append(words[0])
        args = ["--config", *job.args.config, "--out", str(job.run_dir), "--device", "cpu"]
        STAGES[words[0]]([*words[1:], *args, "--set", *job.args.set, *job.changes])

    monkeypatch.setattr(ablation.Job, "call", call)
    monkeypatch.setattr(surfaces, "NUM_DEFECTIVE", 6)
    monkeypatch.setattr(surfaces, "NUM_GOOD", 3)
    return names


def run(tmp_path: Path, capsys, *words: str) -> list[list[str]]:
    capsys.readouterr()
    settings = ["--set", "saliency.generator=contrast"]
    surfaces.main(["--out", str(tmp_path), "--device", "cpu", *words, *settings])
    lines = [text for text in capsys.readouterr().out.splitlines() if text.startswith("|")]
    return [[cell.strip() for cell in text.strip("|").split("|")] for text in lines]


def test_a_row_says_what_results_jsonl_says(tmp_path, called, capsys):
    head, _, row = run(tmp_path, capsys, "--only", "wood")
    assert head == ["surface", "images", *surfaces.HEAD]
    auto, oracle = map(json.loads, (tmp_path / "wood/results.jsonl").read_text().splitlines())
    assert (auto["threshold_rule"], oracle["threshold_rule"]) == ("auto", "oracle")
    details = auto["detailed"]
    expected = [auto["fg_iou"], oracle["fg_iou"], sum(details["boundary_f1"]) / 2]
    expected += [details[key] for key in ("area_ratio", "pixel_auroc", "image_auroc")]
    assert row == ["wood", "9", *(f"{value:.2f}" for value in expected)]


def test_what_was_done_is_not_done_again_and_other_settings_are(tmp_path, called, capsys):
    first = run(tmp_path, capsys, "--only", "steel")
    assert called == ["make_saliency.py", "evaluation.py"]
    assert run(tmp_path, capsys, "--only", "steel") == first
    assert len(called) == 2
    surfaces.main(["--out", str(tmp_path), "--device", "cpu", "--only", "steel", "--set"] + [
        "saliency.generator=contrast", "saliency.polarity=both"
    ])  # fmt: skip
    assert len(called) == 4


def test_wrong_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="expected neu_seg, mtd, bsd, got moon"):
        surfaces.main(["--out", str(tmp_path), "--real", "moon=x"])
    with pytest.raises(ValueError, match="expected --real mtd=DIR for mtd"):
        surfaces.main(["--out", str(tmp_path), "--only", "mtd"])


def test_the_whole_pipeline_runs_the_stages_in_order_and_scores_the_second_one(
    tmp_path, monkeypatch, capsys
):
    words_of_calls = []
    monkeypatch.setattr(ablation.Job, "call", lambda job, words: words_of_calls.append(words))
    row = {"images": 54, "miou": 50.0, "fg_iou": 40.0}
    row["detailed"] = {"boundary_f1": [60.0, None], "area_ratio": 120.0}
    found = iter(([], [row]))
    monkeypatch.setattr(surfaces, "results_of", lambda *_: next(found))
    monkeypatch.setattr(surfaces, "NUM_DEFECTIVE", 2)
    monkeypatch.setattr(surfaces, "NUM_GOOD", 1)
    table = run(tmp_path, capsys, "--only", "wood", "--whole")
    assert [words[-1 if words[-1] != "--resume" else -2] for words in words_of_calls[:-1]] == [
        "make_saliency",
        "train_stac",
        "make_cams",
        "make_pseudo_labels",
        "segmentation.train",
        "segmentation.infer",
    ]
    assert words_of_calls[-1] == ["evaluation.py", "--kind", "segmentation", "--detailed"]
    assert table[0] == ["surface", "images", *surfaces.WHOLE_HEAD]
    assert table[2] == ["wood", "54", "50.00", "40.00", "60.00", "120.00"]
