"""The stages of a run in order: what is called, with what, and what a stopped run does next."""

import fcntl
import os
import shlex
import signal
from argparse import Namespace

import pytest

import configs
import pipeline
from configs.command_line import ROOT
from pipeline import INTERRUPTED, STAGES, next_step, sections_of
from runfolder.run import Run

FORECAST = pipeline._expected
TABLE = ["evaluation.py --table", "report.py"]


def test_all_stages_run_in_order_each_with_its_evaluation(runner, capsys):
    runner.whole()

    assert runner.calls == runner.all_calls
    printed = capsys.readouterr().out
    for number, stage in enumerate([*(stage.name for stage in STAGES), "table"], start=1):
        assert f"[{number}/7] {stage}: reads " in printed
    assert "[3/7] cams: reads images, stac/ -> writes cams/, about 2 of 12 min\n" in printed
    assert (
        "[6/7] predictions: reads images, segmentation/ -> writes predictions/, about 5 of 5"
        in (printed)
    )
    assert "[2/7] train: 0.0 min\n" in printed
    assert "next, real images: bash run_STAC.sh configs/neu_seg_cpu.toml" in printed


def test_every_stage_gets_the_config_the_settings_the_folder_and_the_device(runner):
    runner.whole(
        "--set", "train.epochs=3", "data.root=/a b", "--device", "cpu", "--set", "loss.token=0"
    )

    expected = ["--config", str(runner.folder / "mine.toml"), "--set", "train.epochs=3"]
    expected += ["data.root=/a b", "loss.token=0", "--out", str(runner.out)]
    for words in (w for w in runner.words if "--table" not in w):  # it needs no config
        start = words.index("--config")
        assert words[start : start + len(expected)] == expected
        assert ("--device" in words) == (words[0] not in ("evaluation.py", "report.py"))


def test_a_finished_run_is_up_to_date(runner, capsys):
    runner.whole()
    capsys.readouterr()

    runner.whole()
    assert runner.calls == TABLE
    assert capsys.readouterr().out.count(": up to date\n") == 6


def test_a_run_that_cannot_be_forecast_runs_all_the_same(runner, capsys):
    runner.forecast = {}
    runner.whole()

    assert runner.calls == runner.all_calls
    assert "[3/7] cams: reads images, stac/ -> writes cams/\n" in capsys.readouterr().out


def test_the_forecast_is_that_of_the_same_config_and_folder(tmp_path, monkeypatch):
    def answer(words, folder):
        assert folder == ROOT and words == [
            "-m", "inference.expected", "--config", "a.toml", "b.toml", "--set", "train.epochs=3",
            "--out", "run", "--device", "cpu",
        ]  # fmt: skip
        return "a warning\n" + answer.printed

    monkeypatch.setattr(pipeline.forked, "printed", answer)
    args = Namespace(config=["a.toml", "b.toml"], set=["train.epochs=3"], out="run", device="cpu")
    for answer.printed, expected in (
        ('{"train": 2.5}', {"train": 2.5}),
        ("error: no", {}),
        ("", {}),
    ):
        assert FORECAST(args) == expected


def test_the_first_failure_stops_the_run_and_the_next_call_continues_there(runner, capsys):
    code = runner("mine.toml", "--out", "run", "--set", "train.epochs=3", fails="make_cams")
    assert code == 7
    assert runner.calls == runner.all_calls[:4]
    error = capsys.readouterr().err
    assert "error: stage cams ended with exit code 7" in error
    command = error.strip().splitlines()[-1].strip()
    options = f"--set train.epochs=3 --out {runner.out} --device auto"
    assert command == f"bash {ROOT}/run_STAC.sh {runner.folder}/mine.toml {options}"

    assert runner(*shlex.split(command)[2:]) == 0
    assert runner.calls == runner.all_calls[3:]
    assert "[3/7] cams (continued): reads" in capsys.readouterr().out


def test_a_failed_evaluation_stops_the_run_too(runner):
    assert runner("mine.toml", "--out", "run", fails="--kind pseudo_label") == 7

    assert runner.calls == runner.all_calls[:8]
    runner.whole()
    assert runner.calls == runner.all_calls[6:]


def test_a_failed_table_stops_the_run_and_the_stages_stay_done(runner, capsys):
    assert runner("mine.toml", "--out", "run", fails="report.py") == 7

    assert "error: stage table ended with exit code 7" in capsys.readouterr().err
    runner.whole()
    assert runner.calls == TABLE


@pytest.mark.parametrize("code", [-signal.SIGINT, INTERRUPTED])
def test_an_interrupted_run_says_how_to_continue(runner, capsys, code):
    assert runner("mine.toml", "--out", "run", fails="train_stac", code=code) == 130

    error = capsys.readouterr().err
    assert "error: stage train was interrupted. This continues there:" in error
    assert runner.calls == runner.all_calls[:3]
    runner.whole()
    assert runner.calls == runner.all_calls[2:]


def test_a_killed_stage_is_an_error_of_the_run(runner, capsys):
    assert runner("mine.toml", "--out", "run", fails="train_stac", code=-signal.SIGKILL) == 1
    assert "error: stage train ended with exit code -9" in capsys.readouterr().err


def test_a_stage_runs_in_a_process_of_its_own_from_the_root(tmp_path, monkeypatch):
    script = tmp_path / "stage.py"
    script.write_text(f"import os, sys; sys.exit(3 if os.getcwd() == {str(ROOT)!r} else 0)")
    assert pipeline._call([str(script)]) == 3

    class Stage:
        """Is interrupted while it is waited for, then ends by itself."""

        waited = 0

        def join(self):
            Stage.waited += 1
            if Stage.waited == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(pipeline.forked, "begin", lambda words, folder: Stage())
    assert pipeline._call(["stage.py"]) == INTERRUPTED
    assert Stage.waited == 2


def test_two_runs_cannot_share_a_folder_at_the_same_time(runner):
    (runner.out / "stages").mkdir(parents=True)
    with (runner.out / "stages/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="expected no other run, found one at work. Wait"):
            runner("mine.toml", "--out", "run")
    assert runner.calls == []


def test_every_cam_folder_is_evaluated_and_a_single_split_once(runner):
    types, labels = 'cam.types=["fused","patchcam"]', 'cam.labels=["given","predicted"]'
    runner.whole("--set", types, labels, "data.eval_split=train")

    assert [call for call in runner.calls if call.startswith("evaluation.py")] == [
        "evaluation.py saliency train",
        "evaluation.py cam fused patchcam given predicted train",
        "evaluation.py pseudo_label train",
        "evaluation.py segmentation train",
        "evaluation.py --table",
    ]


def test_a_line_break_in_a_setting_shifts_no_other(runner):
    root = f"{runner.folder}/a\nb"
    runner.whole("--set", f"data.root={root}")
    assert runner.calls == runner.all_calls
    assert f"data.root={root}" in runner.words[0]


def test_a_later_config_replaces_keys_of_an_earlier_one(runner, tmp_path):
    root = f"data.root={tmp_path}/sample"
    names = ("configs/sample.toml", "configs/variants/base.toml")
    assert runner(*names, "--out", "run", "--set", root, "data.sample_train=3") == 0

    files = [str(ROOT / name) for name in names]
    assert len(runner.words) > len(STAGES)
    for words in (w for w in runner.words if "--table" not in w):  # it needs no config
        start = words.index("--config")
        assert words[start + 1 : start + 3] == files


def test_config_and_folder_are_relative_to_the_caller(runner, parts, capsys):
    tiles = runner.folder / "tiles.toml"
    tiles.write_text(f'[data]\nsource = "folder"\nroot = "{parts}"\n')

    assert runner("tiles.toml", "--out", "runs/../elsewhere") == 0
    out = runner.folder / "elsewhere"
    assert (out / "stages/predictions.done").exists()
    expected = f"bash run_STAC.sh {tiles} --set loss.contrast=0.1 --out {out}-contrast-0.1\n"
    assert f"next, other settings, kept apart: {expected}" in capsys.readouterr().out


def test_a_config_of_the_caller_comes_before_a_shipped_one_of_the_same_name(runner):
    own = runner.folder / "configs/mtd.toml"
    own.parent.mkdir()
    own.write_text((runner.folder / "mine.toml").read_text())

    assert runner("configs/mtd.toml", "--out", "run") == 0
    assert str(own) in runner.words[0]


@pytest.mark.parametrize("arguments", [[], ["configs/sample.toml"]])
def test_the_sample_config_is_the_default_and_found_from_anywhere(runner, arguments):
    data = [f"data.root={runner.folder}/sample", "data.sample_train=3", "data.sample_test=1"]

    assert runner(*arguments, "--out", "run", "--set", *data) == 0
    assert str(ROOT / "configs/sample.toml") in runner.words[0]


def test_without_a_folder_the_run_is_named_after_its_configs():
    args = pipeline._parser().parse_args(["configs/mtd.toml", "configs/variants/base.toml"])
    assert pipeline._from_anywhere(args) == (
        [str(ROOT / "configs/mtd.toml"), str(ROOT / "configs/variants/base.toml")],
        str(ROOT / "runs/mtd_base"),
    )


@pytest.mark.parametrize("flags", [[], ["--restart"]])
def test_without_config_a_run_folder_keeps_its_own_settings(runner, flags):
    runner.whole()
    saved = (runner.folder / "mine.toml").read_text()
    (runner.out / "config.toml").write_text(saved)

    assert runner("--out", "run", *flags) == 0
    assert runner.calls == (runner.all_calls if flags else TABLE)
    assert str(runner.out / "config.toml") in runner.words[-1]
    assert (runner.out / "config.toml").read_text() == saved


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--restrat"], "unrecognized arguments: --restrat"),
        (["--out"], "argument --out: expected one argument"),
        (["--set"], "argument --set: expected at least one argument"),
        (["--set", "--restart"], "argument --set: expected at least one argument"),
        (["--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
    ],
)
def test_a_wrong_command_line_gives_one_clear_line(runner, capsys, arguments, message):
    assert runner(*arguments) == 2

    usage, *_, last = capsys.readouterr().err.splitlines()
    assert usage.startswith("usage: bash run_STAC.sh [")
    assert last.startswith(f"bash run_STAC.sh: error: {message}")
    assert runner.calls == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.toml"], r"none\.toml: expected a config file\."),
        (["--set", "train.epochs"], r"--set train\.epochs: expected section\.key=value\."),
        (["--set", "train.epoch=3"], r"train\.epoch: unknown key\. Did you mean train\.epochs\?"),
        (["--set", "train.epochs=0"], r"train\.epochs: expected a number above 0, got 0\."),
        (["--set", "train.flip=true"], r"got 1 of an earlier one: train\.flip \(always on\)\."),
    ],
)
def test_a_wrong_config_gives_one_clear_line_and_no_folder(runner, arguments, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        runner("--out", "run", *arguments)

    assert "\n" not in str(error.value)
    assert runner.calls == []
    assert not runner.out.exists()


@pytest.mark.parametrize(
    ("changed", "first_stage"),
    [
        ("data.limit=7", "saliency"),
        ("saliency.pamr_steps=2", "saliency"),
        ("refinement.rounds=1", "saliency"),
        ("train.epochs=3", "train"),
        ("loss.contrast=0.3", "train"),
        ("cam.flip=false", "cams"),
        ("pseudo_label.pamr_steps=3", "pseudo_labels"),
        ("segmentation.epochs=3", "segmentation"),
        ("data.workers=8", None),
    ],
)
def test_a_change_reaches_its_stage_and_all_later_ones(changed, first_stage):
    before, after = configs.load([]), configs.load([], [changed])

    reached = [
        stage.name
        for stage in STAGES
        if configs.fingerprint(before, sections_of(stage))
        != configs.fingerprint(after, sections_of(stage))
    ]
    names = [stage.name for stage in STAGES]
    assert reached == (names[names.index(first_stage) :] if first_stage else [])


def test_each_stage_ends_with_the_command_of_the_one_after_it(tmp_path):
    run = Run(tmp_path / "run", configs.Config())
    scripts = {
        "saliency": "train_stac.py",
        "train": "make_cams.py",
        "cams": "make_pseudo_labels.py",
        "pseudo_labels": "-m segmentation.train",
        "segmentation": "-m segmentation.infer",
        "predictions": "evaluation.py --kind segmentation",
    }
    assert list(scripts) == [stage.name for stage in STAGES]

    options = f"--config {tmp_path}/run/config.toml --out {tmp_path}/run"
    for name, script in scripts.items():
        assert next_step(name, run) == f"next: python {script} {options}"


@pytest.mark.parametrize(
    "words",
    [
        ["mine.toml", "--set", "train.epochs=3", "variant.toml", "--out", "run"],
        ["mine.toml", "--out", "run", "variant.toml", "--set", "train.epochs=3"],
    ],
)
def test_configs_may_stand_before_and_after_options(runner, words):
    (runner.folder / "variant.toml").write_text("[loss]\ntoken = 0\n")

    assert runner(*words) == 0
    start = runner.words[0].index("--config")
    files = [str(runner.folder / name) for name in ("mine.toml", "variant.toml")]
    assert runner.words[0][start + 1 :][:4] == [*files, "--set", "train.epochs=3"]


def test_a_stage_that_outlives_the_pipeline_keeps_the_run_locked(tmp_path, monkeypatch):
    """The lock is inherited by the stage: it ends with the last process that holds it."""
    lock = (tmp_path / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.set_inheritable(lock.fileno(), True)
    (tmp_path / "other.py").write_text(
        f"import os; os.close({lock.fileno()})\n"  # the descriptor is there in the stage
        "import fcntl; fcntl.flock(open('lock', 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    )
    (tmp_path / "stage.py").write_text("import time; time.sleep(60)")
    stage = pipeline.forked.begin(["stage.py"], tmp_path)
    lock.close()
    monkeypatch.setattr(pipeline, "ROOT", tmp_path)
    locked = (tmp_path / "lock").open("w")
    with pytest.raises(BlockingIOError):
        fcntl.flock(locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
    stage.kill()
    stage.join()
    fcntl.flock(locked, fcntl.LOCK_EX | fcntl.LOCK_NB)
