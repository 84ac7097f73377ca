"""What other settings, --restart and other data remove from a run folder, and what stays."""

import json

import pytest


def test_a_stopped_training_keeps_its_files_for_resume(runner):
    runner("mine.toml", "--out", "run", fails="train_stac")
    (runner.out / "stac/earlier").touch()

    runner.whole()
    assert (runner.out / "stac/earlier").exists()


def test_other_settings_redo_their_stage_and_all_later_ones_from_nothing(runner, capsys):
    runner.whole()
    for folder in ("saliency", "stac", "cams", "segmentation"):
        (runner.out / folder / "earlier").touch()
    (runner.out / "thresholds.json").touch()
    capsys.readouterr()

    runner.whole("--set", "loss.contrast=0.5")
    assert runner.calls == runner.all_calls[2:]
    assert "[1/7] saliency: up to date\n" in capsys.readouterr().out
    kept = [path.parent.name for path in runner.out.glob("*/earlier")]
    assert kept == ["saliency"]
    assert not (runner.out / "thresholds.json").exists()  # of the old CAMs


def test_other_settings_do_not_resume_what_a_stopped_stage_left(runner, capsys):
    runner("mine.toml", "--out", "run", fails="train_stac")
    (runner.out / "stac/earlier").touch()
    capsys.readouterr()

    runner.whole("--set", "train.epochs=3")
    assert runner.calls == runner.all_calls[2:]
    assert not (runner.out / "stac/earlier").exists()
    assert "[2/7] train: reads" in capsys.readouterr().out


def test_a_removed_output_is_made_again_with_all_that_follows(runner):
    runner.whole()
    (runner.out / "pseudo_labels/file").unlink()
    (runner.out / "pseudo_labels").rmdir()
    (runner.out / "segmentation/earlier").touch()

    runner.whole()
    assert runner.calls == runner.all_calls[6:]
    assert not (runner.out / "segmentation/earlier").exists()


def test_restart_begins_anew_and_leaves_other_files_alone(runner):
    runner.whole()
    for name in ("stac/earlier", "notes.txt", "results.jsonl"):
        (runner.out / name).touch()

    runner.whole("--restart")
    assert runner.calls == runner.all_calls
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
def test_data_that_cannot_be_read_removes_nothing(runner, capsys, settings, message, flags):
    runner.whole()
    (runner.out / "labels.csv").touch()
    before = sorted(runner.out.rglob("*"))
    capsys.readouterr()

    assert runner("mine.toml", "--out", "run", "--set", *settings, *flags) == 1
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert runner.calls == []
    assert sorted(runner.out.rglob("*")) == before


def test_what_is_removed_is_named(runner, capsys):
    runner.whole()
    capsys.readouterr()

    runner.whole("--set", "segmentation.epochs=3")
    printed = capsys.readouterr().out
    removing = "removing what an earlier call made, stages predictions segmentation\n"
    assert printed.index(removing) < printed.index("[5/7] segmentation: reads")


@pytest.mark.parametrize("flags", [[], ["--restart"]])
def test_files_of_another_origin_are_neither_used_nor_removed(runner, flags):
    (runner.out / "stac").mkdir(parents=True)
    (runner.out / "stac/checkpoint.pt").touch()

    expected = r"expected only files of run_STAC\.sh, got some of stage train that were made"
    with pytest.raises(ValueError, match=expected):
        runner("mine.toml", "--out", "run", *flags)
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


def test_results_of_removed_files_leave_the_table(runner):
    runner.whole()
    kinds = ("saliency", "cam", "pseudo_label", "segmentation", "cam")
    rows = [json.dumps({"kind": kind, "row": i}) + "\n" for i, kind in enumerate(kinds)]
    (runner.out / "results.jsonl").write_text("".join(rows))

    runner.whole("--set", "pseudo_label.pamr_steps=3")
    assert (runner.out / "results.jsonl").read_text() == rows[0] + rows[1] + rows[4]
    assert (runner.out / "stages/old_results.jsonl").read_text() == rows[3] + rows[2]


def test_a_damaged_result_is_named_before_anything_is_removed(runner):
    runner.whole()
    (runner.out / "results.jsonl").write_text('{"kind": "saliency"}\nno result\n')

    with pytest.raises(ValueError, match=r"results\.jsonl, line 2: expected a result of evaluat"):
        runner("mine.toml", "--out", "run", "--set", "saliency.polarity=dark")
    assert (runner.out / "saliency").is_dir()


def test_the_time_of_each_stage_is_kept_and_goes_with_its_files(runner, monkeypatch):
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr("pipeline.time.monotonic", lambda: next(clock))
    runner("mine.toml", "--out", "run", fails="train_stac")
    path = runner.out / "stages/seconds.json"
    stopped = json.loads(path.read_text())
    assert list(stopped) == ["saliency", "train"]

    runner.whole()
    whole = json.loads(path.read_text())
    names = ["saliency", "train", "cams", "pseudo_labels", "segmentation", "predictions"]
    assert list(whole) == names
    assert whole["saliency"] == stopped["saliency"]
    assert whole["train"] > stopped["train"] > 0  # both parts of it

    runner(
        "mine.toml", "--out", "run", "--set", "segmentation.epochs=3", fails="segmentation.infer"
    )
    again = json.loads(path.read_text())
    assert again["segmentation"] == whole["segmentation"]  # its own time, not added to the old
    assert {name: again[name] for name in names[:4]} == {name: whole[name] for name in names[:4]}
