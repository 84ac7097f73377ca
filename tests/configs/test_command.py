"""python -m configs, the flags of every stage, and fingerprints."""

import re
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

import configs
from configs import __main__ as command
from configs.command_line import ROOT, load_run, run_stage, stage_parser
from runfolder.run import Run

ONE_CHANGE = {
    "data": "data.limit=7",
    "saliency": "saliency.pamr_steps=2",
    "refinement": "refinement.rounds=1",
    "train": "train.epochs=3",
    "loss": "loss.contrast=0.3",
    "cam": "cam.flip=false",
    "pseudo_label": "pseudo_label.pamr_steps=3",
    "segmentation": "segmentation.epochs=3",
}


@pytest.mark.parametrize("changed", ONE_CHANGE)
def test_a_fingerprint_changes_exactly_with_its_sections(empty_toml, changed):
    before = configs.load(empty_toml)
    after = configs.load(empty_toml, [ONE_CHANGE[changed]])

    for section in ONE_CHANGE:
        same = configs.fingerprint(before, [section]) == configs.fingerprint(after, [section])
        assert same == (section != changed)
    assert configs.fingerprint(before) != configs.fingerprint(after)


def test_the_number_of_workers_changes_no_fingerprint(empty_toml):
    config = configs.load(empty_toml, ["data.workers=8"])

    assert configs.fingerprint(config) == configs.fingerprint(configs.Config())


def test_a_fingerprint_ignores_how_a_value_was_written(empty_toml):
    defaults = configs.fingerprint(configs.Config())

    overrides = ["loss.saliency=2", "train.lr=0.5e-2"]
    assert configs.fingerprint(configs.load(empty_toml, overrides)) == defaults
    assert re.fullmatch("[0-9a-f]{12}", defaults)


def test_the_command_prints_single_values(empty_toml, capsys):
    keys = ["data.eval_split", "cam.labels", "train.image_size", "cam.flip"]
    overrides = ['cam.labels=["given","predicted"]', "cam.flip=false"]
    command.main(["--config", str(empty_toml), "--set", *overrides, "--get", *keys])

    assert capsys.readouterr().out == "test\ngiven predicted\n224 224\nfalse\n"


def test_the_command_refuses_an_unknown_value(empty_toml):
    with pytest.raises(ValueError, match=r"--get train\.epoch: unknown key\. Valid keys: data\.so"):
        command.main(["--config", str(empty_toml), "--get", "train.epoch"])


def test_the_command_prints_a_config_that_loads_again(empty_toml, tmp_path, capsys):
    command.main(["--config", str(empty_toml), "--set", "train.epochs=3"])

    (tmp_path / "printed.toml").write_text(capsys.readouterr().out)
    expected = configs.load(empty_toml, ["train.epochs=3"])
    assert configs.load(tmp_path / "printed.toml") == expected


def test_explain_says_values_and_what_they_do(empty_toml, capsys):
    call = ["--config", str(empty_toml), "--set", "train.lr=0.25", "--explain"]
    command.main([*call, "cam.flip", "train.lr"])
    assert capsys.readouterr().out == (
        "train.lr = 0.25: Peak rate of a batch of 512; scaled by batch_size / 512.\n"
        "cam.flip = true: Add the maps of the mirror images.\n"
    )

    command.main([*call, "loss"])
    keys = [line.partition(" = ")[0] for line in capsys.readouterr().out.splitlines()]
    assert keys == [f"loss.{key}" for key in configs.to_dict(configs.Config())["loss"]]

    command.main(call)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" = ")[0] for line in lines] == [key for key, _ in command.settings()]


def test_explain_refuses_what_is_no_setting(empty_toml):
    for name in ("train.epoch", "trai"):
        with pytest.raises(ValueError, match=rf"--explain {name}: unknown key\. Valid keys: data"):
            command.main(["--config", str(empty_toml), "--explain", name])


def test_every_setting_has_a_documentation_of_its_own_line():
    for key, text in command.settings():
        assert text.endswith("."), key
        assert "\n" not in text


def test_count_prints_the_number_of_settings(capsys):
    command.main(["--count"])

    plain = configs.to_dict(configs.Config())
    assert capsys.readouterr().out == f"{sum(map(len, plain.values()))}\n"


def test_the_settings_page_has_a_row_for_each_setting(capsys):
    command.main(["--markdown"])

    page = capsys.readouterr().out
    assert page == command.settings_page()
    rows = re.findall(r"^\| `([a-z_]+\.[a-z_]+)` \| `(.*?)` \| (.*) \|$", page, re.MULTILINE)
    assert [(key, text.replace("\\|", "|")) for key, _, text in rows] == list(command.settings())
    assert {key: value for key, value, _ in rows}["cam.scales"] == "[1.0, 2.0]"


def test_only_one_question_is_answered_at_a_time(capsys):
    with pytest.raises(SystemExit):
        command.main(["--count", "--markdown"])
    assert "not allowed with argument" in capsys.readouterr().err


def test_the_run_folder_is_named_after_the_config(empty_toml):
    args = stage_parser("").parse_args(["--config", str(empty_toml), "--set", "data.limit=3"])

    config, out_dir = load_run(args)
    assert (config.data.limit, out_dir) == (3, Path("runs/empty"))


def test_without_config_a_run_folder_keeps_its_own_settings(tmp_path, capsys):
    out = ["--out", str(tmp_path / "run")]
    args = stage_parser("").parse_args(out)
    assert load_run(args) == (configs.load(ROOT / "configs/sample.toml"), tmp_path / "run")

    mtd = configs.load(ROOT / "configs/mtd.toml", ["train.epochs=3"])
    Run(tmp_path / "run", mtd).begin_stage()
    args = stage_parser("").parse_args([*out, "--set", "train.lr=1"])
    config, _ = load_run(args)
    assert config == configs.load(ROOT / "configs/mtd.toml", ["train.epochs=3", "train.lr=1"])
    assert args.config == [str(tmp_path / "run/config.toml")]
    command.main([*out, "--get", "data.source", "train.epochs"])
    assert capsys.readouterr().out == "mtd\n3\n"


def test_without_config_and_run_folder_the_sample_runs_in_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").write_text("[data]\nlimit = 3\n")
    sample = configs.load(ROOT / "configs/sample.toml")
    assert load_run(stage_parser("").parse_args([])) == (sample, Path("runs/sample"))


def test_an_error_of_a_loader_process_is_one_line():
    class Broken(Dataset):
        def __len__(self):
            return 1

        def __getitem__(self, index):
            raise ValueError("a.png: expected an image, got a folder.")

    def main(argv):
        next(iter(DataLoader(Broken(), num_workers=1)))

    with pytest.raises(SystemExit) as stopped:
        run_stage(main)
    assert stopped.value.code == "error: a.png: expected an image, got a folder."


def test_an_error_is_one_line_whatever_a_name_holds():
    def main(argv):
        raise ValueError("a\nb/c.png: expected an image, got none.")

    with pytest.raises(SystemExit) as stopped:
        run_stage(main)
    assert stopped.value.code == "error: a b/c.png: expected an image, got none."
