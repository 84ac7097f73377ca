"""TOML files and overrides become a config, and a config becomes TOML again."""

import dataclasses
import tomllib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import configs
from configs.command_line import ROOT
from runfolder.run import Run

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
    names = ("base", "contrast", "saliency", "no_head", "no_contrast", "full")
    variants = {
        name: configs.load(
            [ROOT / "configs/neu_seg_cpu.toml", ROOT / f"configs/variants/{name}.toml"]
        )
        for name in names
    }
    whole = configs.load(ROOT / "configs/neu_seg_cpu.toml")
    assert {name: variant.loss for name, variant in variants.items()} == {
        "base": dataclasses.replace(whole.loss, saliency=0.0, contrast=0.0),
        "contrast": dataclasses.replace(whole.loss, saliency=0.0),
        "saliency": dataclasses.replace(whole.loss, contrast=0.0),
        "no_head": whole.loss,
        "no_contrast": dataclasses.replace(whole.loss, contrast=0.0),
        "full": whole.loss,
    }
    assert variants["full"] == whole
    headless = dataclasses.replace(whole.train, pixel_block=0)
    assert {name for name, variant in variants.items() if variant.train == headless} == {
        "base", "contrast", "saliency", "no_head"
    }  # fmt: skip


@pytest.mark.parametrize("backbone", ["base", "small", "tiny"])
def test_the_backbone_variants_change_the_backbone_alone(backbone):
    files = [ROOT / "configs/neu_seg.toml", ROOT / f"configs/variants/deit_{backbone}.toml"]
    expected = {"train.backbone": f"deit_{backbone}_patch16_224"}

    assert configs.load(files) == configs.changed(configs.load(files[0]), expected)


@pytest.mark.parametrize("base", ["sample", "neu_seg", "neu_seg_cpu", "mtd", "dagm", "voc"])
def test_the_paper_variant_gives_the_papers_settings_to_any_data_set(base):
    config = configs.load([ROOT / f"configs/{base}.toml", ROOT / "configs/variants/paper.toml"])

    train = config.train
    assert (train.backbone, train.image_size) == ("deit_small_patch16_224", (224, 224))
    assert (train.epochs, train.max_steps, train.batch_size) == (80, 0, 16)
    assert (train.pixel_block, train.frozen_blocks, train.scale_pooling) == (0, 0, False)
    weights = ("classification", "patch", "token", "saliency", "contrast")
    assert [getattr(config.loss, name) for name in weights] == [1, 1, 1, 2, 0.2]
    assert (config.refinement.rounds, config.pseudo_label.pamr_steps) == (0, 0)
    assert config.pseudo_label.threshold_rule == "fixed"


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
    overrides = ["data.root='a \"b\" \\ ü'", "train.lr=1e-7", "cam.scales=[0.5, 1]"]
    config = configs.load(path, overrides)
    Run(tmp_path / "run", config).begin_stage()

    assert configs.load(tmp_path / "run/config.toml") == config
    assert configs.from_dict(configs.to_dict(config)) == config


@settings(max_examples=50, deadline=None)
@given(
    root=st.text(st.characters(exclude_categories=["Cs"])),
    lr=st.floats(min_value=1e-300, max_value=1e300),
)
def test_any_text_and_number_survives_being_saved(root, lr):
    plain = {"data": {"root": root}, "train": {"lr": lr}}
    config = configs.from_dict(plain)

    assert configs.from_dict(tomllib.loads(configs.to_toml(config))) == config


def test_a_config_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        configs.Config().train.epochs = 3


def test_a_changed_config_is_a_checked_copy():
    config = configs.Config()

    other = configs.changed(config, {"train.epochs": 3, "cam.scales": [1]})
    assert (other.train.epochs, other.cam.scales) == (3, (1.0,))
    assert config == configs.Config()
    with pytest.raises(ValueError, match=r"^train\.epochs: expected a number above 0, got 0\.$"):
        configs.changed(config, {"train.epochs": 0})
    with pytest.raises(ValueError, match=r"^train\.epoch: unknown key\. Did you mean train\.epo"):
        configs.changed(config, {"train.epoch": 3})
