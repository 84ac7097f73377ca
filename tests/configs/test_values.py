"""Values that a config refuses, and settings of earlier versions."""

import re

import pytest

import configs
from configs.__main__ import settings
from configs.removed import REMOVED


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epochs=true", r"train\.epochs: expected a valid integer, got bool True\."),
        ("train.epochs=3.0", r"train\.epochs: expected a valid integer, got float 3\.0\."),
        ("train.epochs=many", r"train\.epochs: expected a valid integer, got str 'many'\."),
        ("train.lr=true", r"train\.lr: expected a valid number, got bool True\."),
        ("cam.flip=1", r"cam\.flip: expected a valid boolean, got int 1\."),
        ("data.root=3", r"data\.root: expected a valid string, got int 3\."),
        ("cam.types=fused", r"cam\.types: expected a list, got 'fused'\."),
        ("cam.scales=[1, true]", r"cam\.scales: expected a valid number, got bool True as value 2"),
        ('data.classes=["a", 3]', r"data\.classes: expected a valid string, got int 3 as value 2"),
        ("train.image_size=[64]", r"train\.image_size: expected a list of two values, got \[64\]"),
        ("train.image_size=[64, 9, 9]", r"image_size: expected a list of two values, got \[64, 9"),
        ("train.image_size=64", r"train\.image_size: expected a list, got 64\."),
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
        ("data.source=voc12", r"data\.source: expected 'sample', .* or 'csv', got 'voc12'\."),
        ("data.eval_split=all", r"data\.eval_split: expected 'train', 'val' or 'test', got 'all'"),
        ("data.val_fraction=0", r"data\.val_fraction: expected a number above 0, got 0\."),
        ("data.limit=-1", r"data\.limit: expected 0 or more, got -1\."),
        ("data.test_share=1", r"data\.test_share: expected a number below 1, got 1\."),
        ("data.source=csv", r"data\.table: expected the CSV file that lists the images, got ''"),
        ('data.classes=["a","a"]', r"data\.classes: expected different names, got \['a', 'a'\]"),
        ('data.classes=[""]', r"data\.classes: expected different names, got \[''\]\."),
        ("data.mask_level=256", r"data\.mask_level: expected 255 or less, got 256\."),
        ("saliency.generator=fuse", r"saliency\.generator: expected 'contrast', .* or 'auto', got"),
        ("saliency.image_size=20", r"saliency\.image_size: expected 32 or more, got 20\."),
        ("saliency.polarity=up", r"saliency\.polarity: expected 'auto', 'both', 'dark' or 'bright"),
        ("refinement.masks=-1", r"refinement\.masks: expected 0 or more, got -1\."),
        ("train.batch_size=0", r"train\.batch_size: expected a number above 0, got 0\."),
        ("train.image_size=[8, 64]", r"image_size: expected 16 or more, got 8 as value 1\."),
        ("train.amp=fp8", r"train\.amp: expected 'auto', 'bf16', 'fp16' or 'off', got 'fp8'\."),
        ("train.drop_path=1", r"train\.drop_path: expected a number below 1, got 1\."),
        ("train.lr=inf", r"train\.lr: expected a finite number, got inf\."),
        ("train.lr=nan", r"train\.lr: expected a finite number, got nan\."),
        ("loss.temperature=0", r"loss\.temperature: expected a number above 0, got 0\."),
        ("loss.token=-1", r"loss\.token: expected 0 or more, got -1\."),
        ("loss.saliency_threshold=1.5", r"saliency_threshold: expected 1 or less, got 1\.5\."),
        ("cam.types=[]", r"cam\.types: expected one or more values, got \[\]\."),
        ('cam.labels=["given","given"]', r"cam\.labels: expected different values, got \['given'"),
        ("cam.scales=[1, 1.0]", r"cam\.scales: expected different values, got \[1\.0, 1\.0\]\."),
        ("cam.scales=[1, 0]", r"cam\.scales: expected a number above 0, got 0 as value 2\."),
        ('cam.types=["gradcam"]', r"cam\.types: expected 'patchcam', 'attention', 'fused' or"),
        ("pseudo_label.threshold_rule=oracle", r"threshold_rule: expected 'agreement', 'class', "),
        ("train.crop=31", r"train\.crop: expected 0 \(off\) or 32 or more pixels, got 31\."),
        ("cam.tile=-1", r"cam\.tile: expected 0 or more, got -1\."),
        ("segmentation.crop=8", r"segmentation\.crop: expected 0 \(off\) or 32 or more pixels"),
        ("segmentation.tile=8", r"segmentation\.tile: expected 0 \(off\) or 32 or more pixels"),
        ("segmentation.lr=0", r"segmentation\.lr: expected a number above 0, got 0\."),
        ("segmentation.batch_size=1", r"segmentation\.batch_size: expected 2 or more, got 1\."),
    ],
)
def test_an_impossible_value_is_refused(empty_toml, override, message):
    with pytest.raises(ValueError, match=message):
        configs.load(empty_toml, [override])


def test_values_that_contradict_each_other_are_refused(empty_toml):
    expected = r"data\.train_list: expected a file where data\.test_list is one, got ''\."
    with pytest.raises(ValueError, match=expected):
        configs.load(empty_toml, ["data.test_list=names.txt"])
    weights = ("classification", "patch", "token", "saliency", "contrast")
    with pytest.raises(ValueError, match=r"loss: expected one weight above 0, got none\."):
        configs.load(empty_toml, [f"loss.{weight}=0" for weight in weights])
    with pytest.raises(ValueError, match=r"cam\.types: expected no pixel where train\.pixel_block"):
        configs.load(empty_toml, ['cam.types=["fused", "pixel"]'])


def test_an_online_head_without_a_loss_is_refused(empty_toml):
    expected = r"loss\.pixel: expected a weight above 0 where train\.pixel_block builds a head, got"
    with pytest.raises(ValueError, match=expected):
        configs.load(empty_toml, ["loss.pixel=0", "train.pixel_block=6"])

    assert configs.load(empty_toml, ["loss.pixel=0"]).train.pixel_block == 0
    with_head = [
        "train.pixel_block=6",
        'cam.types=["fused", "pixel"]',
        "pseudo_label.cam_type=pixel",
    ]
    assert configs.load(empty_toml, with_head).pseudo_label.cam_type == "pixel"


def test_pseudo_labels_need_a_cam_type_that_is_written(empty_toml):
    expected = (
        r"pseudo_label\.cam_type: expected one of cam\.types, patchcam, attention, got 'fused'\."
    )
    with pytest.raises(ValueError, match=expected):
        configs.load(empty_toml, ['cam.types=["patchcam", "attention"]'])
    with pytest.raises(ValueError, match=r"cam_type: expected one of cam\.types, fused, got 'pat"):
        configs.load(empty_toml, ["pseudo_label.cam_type=patchcam"])

    both = ['cam.types=["fused", "patchcam"]', "pseudo_label.cam_type=patchcam"]
    assert configs.load(empty_toml, both).pseudo_label.cam_type == "patchcam"


def test_all_problems_of_a_section_are_named_at_once_up_to_five(empty_toml):
    overrides = ["train.epochs=0", "train.lr=0", "train.batch_size=0", "train.crop=3"]
    overrides += ["train.amp=x", "train.seed=-1"]
    with pytest.raises(ValueError, match=r"And 1 more\.$") as error:
        configs.load(empty_toml, overrides)

    named = re.findall(r"train\.(\w+): expected", str(error.value))
    assert sorted(named) == ["amp", "batch_size", "crop", "epochs", "lr"]


REMOVED_ONES = (
    r"expected settings of this version, got 3 of an earlier one: "
    r"train\.split_block \(train\.frozen_blocks\); "
    r"loss\.second_cam \(always on, as in the paper\); "
    r"segmentation\.refine_steps \(segmentation\.pamr_steps\)\. "
    r"Remove or replace them; checkpoints and run folders that hold them must be made anew, "
    r"or used with the version that made them\.$"
)


def test_removed_settings_of_a_file_are_named_together_with_what_replaces_them(tmp_path):
    path = tmp_path / "old.toml"
    path.write_text(
        "[train]\nsplit_block = 4\nepochs = 0\n[loss]\nsecond_cam = true\n"
        "[segmentation]\nrefine_steps = 3\nunknown = 1\n"
    )
    with pytest.raises(ValueError, match=rf"old\.toml: {REMOVED_ONES}"):
        configs.load(path)


def test_removed_settings_are_refused_as_overrides_too(empty_toml):
    overrides = ["train.split_block=4", "loss.second_cam=true", "segmentation.refine_steps=3"]
    with pytest.raises(ValueError, match=rf"empty\.toml: {REMOVED_ONES}"):
        configs.load(empty_toml, overrides)


def test_a_removed_refinement_names_the_setting_that_switches_the_other_off(empty_toml):
    expected = r"pseudo_label\.refine \(pseudo_label\.pamr_steps, with 0 for none; "
    with pytest.raises(ValueError, match=expected):
        configs.load(empty_toml, ["pseudo_label.refine=crf"])


@pytest.mark.parametrize("key", REMOVED)
def test_every_removed_setting_is_refused_and_its_replacement_exists(empty_toml, key):
    with pytest.raises(ValueError, match=rf"got 1 of an earlier one: {re.escape(key)} \("):
        configs.load(empty_toml, [f"{key}=1"])

    known = dict(settings())
    assert key not in known
    named = re.findall(
        rf"(?<!\S)(?:{'|'.join(configs.to_dict(configs.Config()))})\.\w+", REMOVED[key]
    )
    assert set(named) <= set(known)
