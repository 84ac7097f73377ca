"""run_STAC.sh with an interpreter that notes each stage's call and writes its folder."""

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECORDER = """#!/usr/bin/env bash
case "$*" in
  "-c "* | *check_requirements.py*) exit 0 ;;
  "-m configs "* | "-m datasets "*) exec {python} "$@" ;;
esac
printf '%q ' "$@" >>"$CALLS"
echo >>"$CALLS"
while [[ $1 != --out ]]; do words+=" $1"; shift; done
made() {{ mkdir -p "$out/$1"; touch "$out/$1/file"; }}
out=$2
case "$words" in
  *make_saliency.py*) made saliency ;;
  *train_stac.py*) made stac ;;
  *make_cams.py*) made cams; made cams_fused ;;
  *make_pseudo_labels.py*) made pseudo_labels ;;
  *segmentation.train*) made segmentation ;;
  *segmentation.infer*) made predictions ;;
esac
[[ $FAIL != SIGINT || "$words" != *train_stac.py* ]] || kill -INT $PPID $$
[[ -z $FAIL || "$words $*" != *$FAIL* ]] || exit 7
"""
ALL_CALLS = [
    "make_saliency.py",
    "evaluation.py saliency train",
    "evaluation.py saliency test",
    "train_stac.py --resume",
    "make_cams.py",
    "evaluation.py cam fused given test",
    "evaluation.py cam given train",
    "make_pseudo_labels.py",
    "evaluation.py pseudo_label train",
    "evaluation.py pseudo_label test",
    "segmentation.train --resume",
    "segmentation.infer",
    "evaluation.py segmentation test",
    "evaluation.py --table",
    "report.py",
]
STAGES = ["saliency", "train", "cams", "pseudo_labels", "segmentation", "predictions", "table"]
TABLE = ["evaluation.py --table", "report.py"]


class Runner:
    """Calls run_STAC.sh in `folder`; `calls` are the short forms of the last call's stages."""

    def __init__(self, folder):
        self.folder = folder
        self.out = folder / "run"
        self.python = folder / "python3"
        self.python.write_text(RECORDER.format(python=shlex.quote(sys.executable)))
        self.python.chmod(0o755)
        (folder / "mine.toml").write_text(
            f'[data]\nroot = "{folder}/sample"\nsample_train = 3\nsample_test = 1\n'
        )
        self.full_calls = []

    def __call__(self, *arguments, fail=""):
        log = self.folder / "calls.txt"
        log.write_text("")
        run = subprocess.run(
            ["bash", ROOT / "run_STAC.sh", *arguments],
            cwd=self.folder,
            env=os.environ | {"PYTHON": str(self.python), "CALLS": str(log), "FAIL": fail},
            stdin=subprocess.DEVNULL,
            # A test run in the background ignores SIGINT, and bash could not trap it then.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
            capture_output=True,
            text=True,
        )
        self.full_calls = [shlex.split(line) for line in log.read_text().splitlines()]
        return run

    def whole(self, *arguments):
        run = self("mine.toml", "--out", "run", *arguments)
        assert run.returncode == 0, run.stderr
        return run

    @property
    def calls(self):
        return [short_form(call) for call in self.full_calls]


def short_form(call):
    shown = [call[1] if call[0] == "-m" else call[0]]
    for flag in ("--kind", "--cam-type", "--labels", "--split"):
        shown += [call[call.index(flag) + 1]] if flag in call else []
    return " ".join(shown + [word for word in ("--resume", "--table") if word in call])


@pytest.fixture
def runner(tmp_path):
    return Runner(tmp_path)


def test_all_stages_run_in_order_each_with_its_evaluation(runner):
    run = runner.whole()

    assert runner.calls == ALL_CALLS
    for number, stage in enumerate(STAGES, start=1):
        assert f"[{number}/7] {stage}: reads " in run.stdout
    assert "[3/7] cams: reads images, stac/ -> writes cams/" in run.stdout
    assert "[2/7] train: 0.0 min" in run.stdout
    assert "next, real images: bash run_STAC.sh configs/neu_seg_cpu.toml" in run.stdout


def test_every_stage_gets_the_config_the_settings_the_folder_and_the_device(runner):
    runner.whole(
        "--set", "train.epochs=3", "data.root=/a b", "--device", "cpu", "--set", "loss.token=0"
    )

    expected = ["--config", str(runner.folder / "mine.toml"), "--set", "train.epochs=3"]
    expected += ["data.root=/a b", "loss.token=0", "--out", str(runner.out)]
    for call in (c for c in runner.full_calls if "--table" not in c):  # it needs no config
        start = call.index("--config")
        assert call[start : start + len(expected)] == expected
        assert ("--device" in call) == (call[0] not in ("evaluation.py", "report.py"))


def test_a_finished_run_is_up_to_date(runner):
    runner.whole()

    run = runner.whole()
    assert runner.calls == TABLE
    assert run.stdout.count(": up to date") == 6


def test_the_first_failure_stops_the_run_and_the_next_call_continues_there(runner):
    failed = runner("mine.toml", "--out", "run", "--set", "train.epochs=3", fail="make_cams.py")
    assert failed.returncode == 7
    assert runner.calls == ALL_CALLS[:5]
    assert "error: stage cams ended with exit code 7" in failed.stderr
    command = failed.stderr.strip().splitlines()[-1].strip()
    options = f"--set train.epochs=3 --out {runner.out} --device auto"
    assert command == f"bash {ROOT}/run_STAC.sh {runner.folder}/mine.toml {options}"

    continued = runner(*shlex.split(command)[2:])
    assert continued.returncode == 0, continued.stderr
    assert runner.calls == ALL_CALLS[4:]
    assert "[3/7] cams (continued): reads" in continued.stdout


def test_a_failed_evaluation_stops_the_run_too(runner):
    failed = runner("mine.toml", "--out", "run", fail="--kind pseudo_label --split test")

    assert failed.returncode == 7
    assert runner.calls == ALL_CALLS[:10]
    runner.whole()
    assert runner.calls == ALL_CALLS[7:]


def test_an_interrupted_run_says_how_to_continue(runner):
    run = runner("mine.toml", "--out", "run", fail="SIGINT")

    assert run.returncode == 130
    assert "error: stage train was interrupted. This continues there:" in run.stderr
    assert runner.calls == ALL_CALLS[:4]
    runner.whole()
    assert runner.calls == ALL_CALLS[3:]


def test_a_stopped_training_keeps_its_files_for_resume(runner):
    runner("mine.toml", "--out", "run", fail="train_stac.py")
    (runner.out / "stac/earlier").touch()

    runner.whole()
    assert (runner.out / "stac/earlier").exists()


def test_other_settings_redo_their_stage_and_all_later_ones_from_nothing(runner):
    runner.whole()
    for folder in ("saliency", "stac", "cams_fused", "segmentation"):
        (runner.out / folder / "earlier").touch()

    run = runner.whole("--set", "loss.contrast=0.5")
    assert runner.calls == ALL_CALLS[3:]
    assert "[1/7] saliency: up to date" in run.stdout
    kept = [path.parent.name for path in runner.out.glob("*/earlier")]
    assert kept == ["saliency"]


def test_other_settings_do_not_resume_what_a_stopped_stage_left(runner):
    runner("mine.toml", "--out", "run", fail="train_stac.py")
    (runner.out / "stac/earlier").touch()

    run = runner.whole("--set", "train.epochs=3")
    assert runner.calls == ALL_CALLS[3:]
    assert not (runner.out / "stac/earlier").exists()
    assert "[2/7] train: reads" in run.stdout


def test_a_removed_output_is_made_again_with_all_that_follows(runner):
    runner.whole()
    (runner.out / "pseudo_labels/file").unlink()
    (runner.out / "pseudo_labels").rmdir()
    (runner.out / "segmentation/earlier").touch()

    runner.whole()
    assert runner.calls == ALL_CALLS[7:]
    assert not (runner.out / "segmentation/earlier").exists()


def test_restart_begins_anew_and_leaves_other_files_alone(runner):
    runner.whole()
    for name in ("stac/earlier", "notes.txt", "results.jsonl"):
        (runner.out / name).touch()

    runner.whole("--restart")
    assert runner.calls == ALL_CALLS
    assert (runner.out / "notes.txt").exists()
    assert not (runner.out / "stac/earlier").exists()
    assert not (runner.out / "results.jsonl").exists()


@pytest.mark.parametrize("flags", [[], ["--restart"]])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.source=mtd", "data.root=/wrong"], "/wrong: expected the folder of the mtd release"),
        (["data.source=neu_seg", "data.root=docs"], "docs: expected images/training and"),
    ],
)
def test_data_that_cannot_be_read_removes_nothing(runner, settings, message, flags):
    runner.whole()
    (runner.out / "labels.csv").touch()
    before = sorted(runner.out.rglob("*"))

    run = runner("mine.toml", "--out", "run", "--set", *settings, *flags)
    assert run.returncode == 1
    assert run.stderr.startswith(f"error: {message}")
    assert runner.calls == []
    assert sorted(runner.out.rglob("*")) == before


def test_what_is_removed_is_named(runner):
    runner.whole()

    run = runner.whole("--set", "segmentation.epochs=3")
    removing = "removing what an earlier call made, stages predictions segmentation\n"
    assert run.stdout.index(removing) < run.stdout.index("[5/7] segmentation: reads")


@pytest.mark.parametrize("flags", [[], ["--restart"]])
def test_files_of_another_origin_are_neither_used_nor_removed(runner, flags):
    (runner.out / "stac").mkdir(parents=True)
    (runner.out / "stac/checkpoint.pt").touch()

    run = runner("mine.toml", "--out", "run", *flags)
    assert run.returncode == 1
    assert "expected only files of run_STAC.sh, got some of stage train" in run.stderr
    assert runner.calls == []
    assert (runner.out / "stac/checkpoint.pt").exists()


def test_image_labels_of_another_data_set_are_removed(runner):
    runner.whole()
    (runner.out / "labels.csv").write_text("made by the saliency stage")
    runner.whole("--set", "data.limit=3")
    assert (runner.out / "labels.csv").exists()

    runner.whole("--set", f"data.root={runner.folder}/elsewhere")
    assert not (runner.out / "labels.csv").exists()


def test_image_labels_that_the_user_brought_stay(runner):
    runner.out.mkdir()
    (runner.out / "labels.csv").write_text("name,classes\n")
    runner.whole()

    runner.whole("--set", f"data.root={runner.folder}/elsewhere", "--restart")
    assert (runner.out / "labels.csv").read_text() == "name,classes\n"


def test_two_runs_cannot_share_a_folder_at_the_same_time(runner):
    (runner.out / "stages").mkdir(parents=True)
    with (runner.out / "stages/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run = runner("mine.toml", "--out", "run")

    assert run.returncode == 1
    assert "expected no other run, found one at work" in run.stderr


def test_every_cam_folder_is_evaluated_and_a_single_split_once(runner):
    types, labels = 'cam.types=["fused","patchcam"]', 'cam.labels=["given","predicted"]'
    runner.whole("--set", types, labels, "data.eval_split=train")

    assert [call for call in runner.calls if call.startswith("evaluation.py")] == [
        "evaluation.py saliency train",
        "evaluation.py cam fused given train",
        "evaluation.py cam patchcam given train",
        "evaluation.py cam fused predicted train",
        "evaluation.py cam patchcam predicted train",
        "evaluation.py pseudo_label train",
        "evaluation.py segmentation train",
        "evaluation.py --table",
    ]


def test_results_of_removed_files_leave_the_table(runner):
    runner.whole()
    kinds = ("saliency", "cam", "pseudo_label", "segmentation", "cam")
    rows = [json.dumps({"kind": kind, "row": i}) + "\n" for i, kind in enumerate(kinds)]
    (runner.out / "results.jsonl").write_text("".join(rows))

    runner.whole("--set", "pseudo_label.band=0.1")
    assert (runner.out / "results.jsonl").read_text() == rows[0] + rows[1] + rows[4]
    assert (runner.out / "stages/old_results.jsonl").read_text() == rows[3] + rows[2]


def test_a_later_config_replaces_keys_of_an_earlier_one(runner):
    run = runner("configs/mtd.toml", "configs/variants/base.toml", "--out", "run")

    assert run.returncode == 0, run.stderr
    files = [str(ROOT / f"configs/{name}.toml") for name in ("mtd", "ablation/base")]
    assert len(runner.full_calls) > len(STAGES)
    for call in (c for c in runner.full_calls if "--table" not in c):  # it needs no config
        start = call.index("--config")
        assert call[start + 1 : start + 3] == files


def test_config_and_folder_are_relative_to_the_caller(runner):
    (runner.folder / "tiles.toml").write_text('[data]\nsource = "mtd"\n')

    run = runner("tiles.toml", "--out", "runs/../elsewhere")
    assert run.returncode == 0, run.stderr
    assert (runner.folder / "elsewhere/stages/predictions.done").exists()
    assert f"bash run_STAC.sh {runner.folder}/tiles.toml --set loss.contrast" in run.stdout


@pytest.mark.parametrize("arguments", [[], ["configs/sample.toml"]])
def test_the_sample_config_is_the_default_and_found_from_anywhere(runner, arguments):
    run = runner(*arguments, "--out", "run")

    assert run.returncode == 0, run.stderr
    assert str(ROOT / "configs/sample.toml") in runner.full_calls[0]


@pytest.mark.parametrize("flags", [[], ["--restart"]])
def test_without_config_a_run_folder_keeps_its_own_settings(runner, flags):
    runner.whole()
    saved = (runner.folder / "mine.toml").read_text()
    (runner.out / "config.toml").write_text(saved)

    run = runner("--out", "run", *flags)
    assert run.returncode == 0, run.stderr
    assert runner.calls == (ALL_CALLS if flags else TABLE)
    assert str(runner.out / "config.toml") in runner.full_calls[-1]
    assert (runner.out / "config.toml").read_text() == saved


def test_help_names_every_option(runner):
    run = runner("--help")

    assert run.returncode == 0
    for word in ("[CONFIG ...]", "--set", "--out", "--device", "--restart", "data.root", "PYTHON="):
        assert word in run.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--restrat"], "--restrat: unknown option. See bash run_STAC.sh --help."),
        (["--out"], "--out: expected a value, got nothing."),
        (["--set"], "--set: expected KEY=VALUE, got nothing."),
        (["--set", "train.epochs"], "--set: expected KEY=VALUE, got train.epochs."),
        (["--set", "--restart"], "--set: expected KEY=VALUE, got --restart."),
        (["--device", "tpu"], "--device: expected auto, cpu or cuda, got tpu."),
    ],
)
def test_a_wrong_command_line_gives_one_clear_line(runner, arguments, message):
    run = runner(*arguments)

    assert run.returncode == 2
    assert run.stderr.startswith(f"error: {message}")
    assert run.stderr.count("\n") == 1
    assert runner.calls == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.toml"], "none.toml: expected a config file."),
        (["--set", "train.epoch=3"], "train.epoch: unknown key. Did you mean train.epochs?"),
        (["--set", "train.epochs=0"], "train.epochs: expected a number above 0, got 0."),
    ],
)
def test_a_wrong_config_gives_one_clear_line_and_no_folder(runner, arguments, message):
    run = runner("--out", "run", *arguments)

    assert run.returncode == 1
    assert run.stderr.startswith("error: ")
    assert message in run.stderr
    assert run.stderr.count("\n") == 1
    assert not runner.out.exists()
