import dataclasses
import tomllib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import configs
from configs import __main__ as command
from configs.command_line import load_run, save_config, stage_parser

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "configs").glob("**/*.toml"))
SECTIONS = (
    "data",
    "saliency",
    "refinement",
    "train",
    "loss",
    "cam",
    "pseudo_label",
    "segmentation",
)
ONE_CHANGE = {
    "data": "data.limit=7",
    "saliency": "saliency.blur=0.02",
    "refinement": "refinement.rounds=1",
    "train": "train.epochs=3",
    "loss": "loss.contrast=0.3",
    "cam": "cam.flip=false",
    "pseudo_label": "pseudo_label.band=0.1",
    "segmentation": "segmentation.epochs=3",
}


@pytest.fixture
def empty_toml(tmp_path):
    path = tmp_path / "empty.toml"
    path.write_text("")
    return path


def loaded(tmp_path, text, overrides=()):
    path = tmp_path / "config.toml"
    path.write_text(text, encoding="utf-8")
    return configs.load(path, overrides)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_config_parses_and_keeps_what_it_says(path):
    config = configs.to_dict(configs.load(path))

    for section, values in tomllib.loads(path.read_text(encoding="utf-8")).items():
        assert {key: config[section][key] for key in values} == values


def test_the_sample_config_is_among_the_shipped_ones():
    assert ROOT / "configs/sample.toml" in SHIPPED


def test_an_empty_file_gives_the_defaults(empty_toml):
    assert configs.load(empty_toml) == configs.Config()


def test_values_of_a_file_replace_defaults(tmp_path):
    config = loaded(tmp_path, "[train]\nepochs = 3\nimage_size = [64, 96]\n")

    assert config.train == configs.TrainConfig(epochs=3, image_size=(64, 96))
    assert config.data == configs.DataConfig()


def test_a_later_file_replaces_the_keys_it_has(tmp_path):
    (tmp_path / "data.toml").write_text("[loss]\ntoken = 2\nsaliency = 3\n[train]\nepochs = 7\n")
    (tmp_path / "variant.toml").write_text("[loss]\nsaliency = 0\n")
    files = [tmp_path / "data.toml", tmp_path / "variant.toml"]

    config = configs.load(files, ["train.lr=1"])
    assert config.loss == configs.LossConfig(token=2.0, saliency=0.0)
    assert config.train == configs.TrainConfig(epochs=7, lr=1.0)
    with pytest.raises(ValueError, match=r"data\.toml \+ .*variant\.toml: train\.lr: expected"):
        configs.load(files, ["train.lr=0"])


def test_the_ablation_switches_single_losses_of_any_data_set():
    variants = {
        path.stem: configs.load([ROOT / "configs/neu_seg_cpu.toml", path])
        for path in (ROOT / "configs/variants").glob("*.toml")
    }
    whole = configs.load(ROOT / "configs/neu_seg_cpu.toml")
    assert {name: variant.loss for name, variant in variants.items()} == {
        "base": dataclasses.replace(whole.loss, saliency=0.0, contrast=0.0),
        "contrast": dataclasses.replace(whole.loss, saliency=0.0),
        "saliency": dataclasses.replace(whole.loss, contrast=0.0),
        "paper": whole.loss,
        "no_contrast": dataclasses.replace(whole.loss, contrast=0.0),
        "full": whole.loss,
    }
    headless = dataclasses.replace(whole.train, pixel_block=0)
    assert {name for name, variant in variants.items() if variant.train == headless} == {
        "base", "contrast", "saliency", "paper"
    }  # fmt: skip


def test_an_unknown_key_is_named_with_the_closest_and_all_valid_ones(tmp_path):
    with pytest.raises(ValueError, match=r"config\.toml: loss\.contrst: unknown key\.") as error:
        loaded(tmp_path, "[loss]\ncontrst = 0.1\n")

    assert "Did you mean loss.contrast?" in str(error.value)
    valid = ", ".join(f"loss.{field.name}" for field in dataclasses.fields(configs.LossConfig))
    assert f"Valid keys: {valid}." in str(error.value)


def test_an_unknown_section_is_named_with_the_closest_and_all_valid_ones(tmp_path):
    expected = rf"trian: unknown key\. Did you mean train\? Valid keys: {', '.join(SECTIONS)}\."
    with pytest.raises(ValueError, match=expected):
        loaded(tmp_path, "[trian]\nepochs = 3\n")


def test_a_key_like_no_other_gets_no_hint(tmp_path):
    with pytest.raises(ValueError, match=r"cam\.zzzz: unknown key\. Valid keys: cam\.types, "):
        loaded(tmp_path, "[cam]\nzzzz = 1\n")


def test_a_section_must_be_a_table(tmp_path):
    with pytest.raises(ValueError, match=r"train: expected a table, got 3\. Write \[train\]\."):
        loaded(tmp_path, "train = 3\n")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs=true", r"train\.epochs: expected a value of type int, got bool True\."),
        ("train.epochs=3.0", r"train\.epochs: expected a value of type int, got float 3\.0\."),
        ("train.epochs=many", r"train\.epochs: expected a value of type int, got str 'many'\."),
        ("train.lr=true", r"train\.lr: expected a value of type float, got bool True\."),
        ("cam.flip=1", r"cam\.flip: expected a value of type bool, got int 1\."),
        ("data.root=3", r"data\.root: expected a value of type str, got int 3\."),
        ("cam.types=fused", r"cam\.types: expected a list of values, got 'fused'\."),
        ("cam.scales=[1, true]", r"cam\.scales: expected a value of type float, got bool True\."),
        ("train.image_size=[64]", r"train\.image_size: expected a list of 2 values, got \[64\]\."),
        ("train.image_size=64", r"train\.image_size: expected a list of 2 values, got 64\."),
    ],
)
def test_a_wrong_type_is_refused(empty_toml, override, message):
    with pytest.raises(ValueError, match=message):
        configs.load(empty_toml, [override])


def test_whole_numbers_are_taken_as_floats(empty_toml):
    config = configs.load(empty_toml, ["train.lr=1", "cam.scales=[1, 2]"])

    assert (type(config.train.lr), config.train.lr) == (float, 1.0)
    assert [type(scale) for scale in config.cam.scales] == [float, float]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.source=voc12", r"data\.source: expected one of .*sample.*, got 'voc12'\."),
        ("data.eval_split=all", r"data\.eval_split: expected one of train, val, test, got 'all'"),
        ("data.val_fraction=0", r"data\.val_fraction: expected between 0 and 1, got 0\.0\."),
        ("data.limit=-1", r"data\.limit: expected 0 or more, got -1\."),
        ("data.test_share=1", r"data\.test_share: expected in \[0, 1\), got 1\.0\."),
        ("data.source=csv", r"data\.table: expected the CSV file that lists the images, got ''"),
        ('data.classes=["a","a"]', r"data\.classes: expected different names, got \('a', 'a'\)"),
        ("data.mask_level=256", r"data\.mask_level: expected 0 to 255, got 256\."),
        ("saliency.windows=[]", r"saliency\.windows: expected one or more numbers in \(0, 4\]"),
        ("saliency.percentile=50", r"saliency\.percentile: expected in \(50, 100\], got 50\.0\."),
        ("saliency.generator=magic", r"saliency\.generator: expected one of contrast, feature"),
        ("saliency.image_size=20", r"saliency\.image_size: expected 32 or more, got 20\."),
        ("saliency.block=0", r"saliency\.block: expected a number above 0, got 0\."),
        ("saliency.feature_method=x", r"saliency\.feature_method: expected one of background"),
        ("saliency.memory_images=3", r"saliency\.memory_images: expected 4 or more, got 3\."),
        ("saliency.coreset=1", r"saliency\.coreset: expected 2 or more, got 1\."),
        ("saliency.false_alarm=0.5", r"saliency\.false_alarm: expected a number in \(0, 0\.5\)"),
        ('saliency.auto=["contrast"]', r"saliency\.fuse: expected two or more different"),
        ('saliency.auto=["fuse", "normal"]', r"saliency\.fuse: expected one of contrast"),
        ("saliency.grain=up", r"saliency\.grain: expected one of auto, none, vertical"),
        ("saliency.auto_auroc=0.4", r"saliency\.fuse_auroc: expected a number in \[0\.5, 1\]"),
        ("refinement.robust_after=2", r"refinement\.robust_after: expected a number in \[0, 1\]"),
        ("refinement.masks=-1", r"refinement\.masks: expected"),
        ("saliency.auto_rule=sum", r"saliency\.fuse_rule: expected one of mean, geometric"),
        ("train.batch_size=0", r"train\.batch_size: expected a number above 0, got 0\."),
        ("train.image_size=[8, 64]", r"train\.image_size: expected .* 16 pixels each, got \[8, 64"),
        ("train.amp=fp8", r"train\.amp: expected one of auto, bf16, fp16, off, got 'fp8'\."),
        ("train.drop_path=1", r"train\.drop_path: expected a number in \[0, 1\), got 1\.0\."),
        ("loss.temperature=0", r"loss\.temperature: expected a number above 0, got 0\.0\."),
        ("loss.token=-1", r"loss\.token: expected 0 or more, got -1\.0\."),
        ("loss.valid_threshold=1.5", r"loss\.valid_threshold: expected a number from 0 to 1"),
        ("cam.types=[]", r"cam\.types: expected one or more different values, got \(\)\."),
        ('cam.labels=["given","given"]', r"cam\.labels: expected one or more different values"),
        ('cam.types=["gradcam"]', r"cam\.types: expected one of patchcam, attention, fused"),
        ("pseudo_label.threshold_rule=oracle", r"threshold_rule: expected one of agreement"),
        ("pseudo_label.band=0.5", r"pseudo_label\.band: expected in \[0, 0\.5\), got 0\.5\."),
        ("train.crop=31", r"train\.crop: expected 0 \(off\) or 32 or more pixels, got 31\."),
        ("train.crop_support=0", r"train\.crop_support: expected a number in \(0, 1\], got 0"),
        ("cam.tile=-1", r"cam\.tile: expected 0 \(off\) or 32 or more pixels, got -1\."),
        ("cam.tile_overlap=0.6", r"cam\.tile_overlap: expected a number in \[0, 0\.5\], got 0"),
        ("segmentation.crop=8", r"segmentation\.crop: expected 0 \(off\) or 32 or more pixels"),
        ("segmentation.tile=8", r"segmentation\.tile: expected 0 \(off\) or 32 or more pixels"),
        ("segmentation.lr=0", r"segmentation\.lr: expected a number above 0, got 0\.0\."),
    ],
)
def test_an_impossible_value_is_refused(empty_toml, override, message):
    with pytest.raises(ValueError, match=message):
        configs.load(empty_toml, [override])


def test_values_that_contradict_each_other_are_refused(empty_toml):
    with pytest.raises(ValueError, match=r"train\.rotate: expected false unless square, got True"):
        configs.load(empty_toml, ["train.image_size=[64, 96]", "train.rotate=true"])
    with pytest.raises(ValueError, match=r"data\.train_list: expected a file too where"):
        configs.load(empty_toml, ["data.test_list=names.txt"])
    weights = ("classification", "patch", "token", "saliency", "contrast")
    with pytest.raises(ValueError, match=r"loss: expected one weight above 0, got 'all 0'\."):
        configs.load(empty_toml, [f"loss.{weight}=0" for weight in weights])


@pytest.mark.parametrize(
    ("text", "root"),
    [
        ("data/NEU Seg", "data/NEU Seg"),
        ('"a = b"', "a = b"),
        ("/data/a=b", "/data/a=b"),
        ("", ""),
    ],
)
def test_an_override_takes_a_plain_word_or_toml(empty_toml, text, root):
    assert configs.load(empty_toml, [f"data.root={text}"]).data.root == root


def test_the_last_override_wins_over_earlier_ones_and_the_file(tmp_path):
    config = loaded(tmp_path, "[train]\nepochs = 3\n", ["train.epochs=4", "train.epochs = 5"])

    assert config.train.epochs == 5


@pytest.mark.parametrize("override", ["epochs=3", "train.epochs", ".epochs=3", "train.=3", "=3"])
def test_a_malformed_override_is_refused(empty_toml, override):
    with pytest.raises(ValueError, match=rf"--set {override}: expected section\.key=value\."):
        configs.load(empty_toml, [override])


def test_an_override_of_an_unknown_key_names_the_key(empty_toml):
    with pytest.raises(ValueError, match=r"train\.epoch: unknown key\. Did you mean train\.epochs"):
        configs.load(empty_toml, ["train.epoch=3"])


def test_an_override_cannot_reach_into_a_plain_value(tmp_path):
    with pytest.raises(ValueError, match=r"train: expected a table, got 3\."):
        loaded(tmp_path, "train = 3\n", ["train.epochs=3"])


def test_a_missing_file_lists_the_shipped_configs(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.toml: expected a config file\.") as error:
        configs.load(tmp_path / "none.toml")

    assert all(str(path) in str(error.value) for path in SHIPPED)


@pytest.mark.parametrize("content", [b"[train\nepochs = 3", b"[train]\nepochs = ", b"\xff\xfe"])
def test_a_file_that_is_not_toml_is_refused(tmp_path, content):
    path = tmp_path / "broken.toml"
    path.write_bytes(content)

    with pytest.raises(ValueError, match=r"broken\.toml: expected TOML, got: "):
        configs.load(path)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_saved_config_reads_back_equal(path, tmp_path):
    overrides = ["data.root='a \"b\" \\ ü'", "train.min_lr=1e-7", "cam.scales=[0.5, 1]"]
    config = configs.load(path, overrides)
    save_config(config, tmp_path / "run")

    assert configs.load(tmp_path / "run/config.toml") == config
    assert configs.from_dict(configs.to_dict(config)) == config


@settings(max_examples=50, deadline=None)
@given(
    root=st.text(st.characters(exclude_categories=["Cs", "Cc"])),
    lr=st.floats(min_value=1e-300, max_value=1e300),
)
def test_any_text_and_number_survives_being_saved(root, lr):
    plain = {"data": {"root": root}, "train": {"lr": lr}}
    config = configs.from_dict(plain)

    assert configs.from_dict(tomllib.loads(configs.to_toml(config))) == config


def test_a_config_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        configs.Config().train.epochs = 3


@pytest.mark.parametrize("changed", SECTIONS)
def test_a_fingerprint_changes_exactly_with_its_sections(empty_toml, changed):
    before = configs.load(empty_toml)
    after = configs.load(empty_toml, [ONE_CHANGE[changed]])

    for section in SECTIONS:
        same = configs.fingerprint(before, [section]) == configs.fingerprint(after, [section])
        assert same == (section != changed)
    assert configs.fingerprint(before) != configs.fingerprint(after)


def test_the_number_of_workers_changes_no_fingerprint(empty_toml):
    config = configs.load(empty_toml, ["data.workers=8"])

    assert configs.fingerprint(config) == configs.fingerprint(configs.Config())
    assert command.stage_fingerprints(config) == command.stage_fingerprints(configs.Config())


def test_a_fingerprint_ignores_how_a_value_was_written(tmp_path):
    defaults = configs.fingerprint(configs.Config())

    assert configs.fingerprint(loaded(tmp_path, "[train]\nclip_norm = 5\n")) == defaults
    assert len(defaults) == 12


@pytest.mark.parametrize(
    ("changed", "first_stage"),
    [
        ("data", "saliency"),
        ("saliency", "saliency"),
        ("refinement", "saliency"),
        ("train", "train"),
        ("loss", "train"),
        ("cam", "cams"),
        ("pseudo_label", "pseudo_labels"),
        ("segmentation", "segmentation"),
    ],
)
def test_a_change_reaches_its_stage_and_all_later_ones(empty_toml, changed, first_stage):
    before = command.stage_fingerprints(configs.load(empty_toml))
    after = command.stage_fingerprints(configs.load(empty_toml, [ONE_CHANGE[changed]]))

    stages = list(before)
    reached = [stage for stage in stages if before[stage] != after[stage]]
    assert reached == stages[stages.index(first_stage) :]


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

    printed = capsys.readouterr().out
    assert loaded(tmp_path, printed) == configs.load(empty_toml, ["train.epochs=3"])


def test_the_command_prints_every_stage_with_its_fingerprint(empty_toml, capsys):
    command.main(["--config", str(empty_toml), "--fingerprints"])

    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert dict(lines) == command.stage_fingerprints(configs.Config())


def test_the_run_folder_is_named_after_the_config(empty_toml):
    args = stage_parser("").parse_args(["--config", str(empty_toml), "--set", "data.limit=3"])

    config, out_dir = load_run(args)
    assert (config.data.limit, out_dir) == (3, Path("runs/empty"))


def test_without_config_a_run_folder_keeps_its_own_settings(tmp_path, capsys):
    out = ["--out", str(tmp_path / "run")]
    args = stage_parser("").parse_args(out)
    assert load_run(args) == (configs.load(ROOT / "configs/sample.toml"), tmp_path / "run")

    save_config(configs.load(ROOT / "configs/mtd.toml", ["train.epochs=3"]), tmp_path / "run")
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


def test_affinity_block_matters_only_to_the_generator_that_uses_it():
    assert configs.load(ROOT / "configs/sample.toml", ["saliency.block=12"]).saliency.block == 12
    with pytest.raises(ValueError, match=r"saliency\.affinity_block: expected 0 or above"):
        configs.load(
            ROOT / "configs/sample.toml", ["saliency.block=12", "saliency.generator=normal"]
        )
