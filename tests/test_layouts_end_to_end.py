"""The miniature of each layout goes from images to scored CAMs, with two steps of training."""

import json

import numpy as np
import pytest

import evaluation
import make_cams
import make_saliency
import train_stac
from configs import DataConfig
from datasets.files import read_cam, read_image
from datasets.sources import read_data

SETTINGS = [
    "data.eval_split=train",
    "data.val_fraction=0.4",
    "train.backbone=deit_tiny_patch16_224",
    "train.pretrained=none",
    "train.depth=2",
    "train.image_size=[32,32]",
    "train.projection_width=8",
    "train.attention_layers=1",
    "train.batch_size=2",
    "train.epochs=2",
    "train.max_steps=2",
    "train.warmup_epochs=0",
    "train.amp=off",
    "loss.num_anchors=4",
    "loss.num_negatives=4",
    "cam.scales=[1.0]",
]
LAYOUTS = {  # fixture: source and its settings
    "dagm": ("dagm",),
    "mvtec": ("mvtec",),
    "voc": ("voc",),
    "authors": ("authors",),
    "neu_root": ("neu_seg",),
    "mtd_root": ("mtd",),
    "parts": ("folder",),
    "pictures": ("csv", "data.table=t.csv", "data.mask_level=0"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_goes_through_training_cams_and_evaluation(
    layout, request, tmp_path, own_table, capsys
):
    root = request.getfixturevalue(layout)
    source, *more = LAYOUTS[layout]
    if source == "csv":
        (root / "t.csv").write_text(own_table.replace("test", "train"))
    out = tmp_path / "run"
    settings = [f"data.source={source}", f"data.root={root}", *more, *SETTINGS]
    flags = ["--out", str(out), "--set", *settings]
    make_saliency.main([*flags, "--device", "cpu"])
    train_stac.main([*flags, "--device", "cpu"])
    make_cams.main([*flags, "--device", "cpu"])
    capsys.readouterr()
    evaluation.main([*flags, "--kind", "cam", "--threshold-rule", "fixed"])
    printed = capsys.readouterr().out

    chosen = dict(setting.removeprefix("data.").split("=") for setting in more)
    chosen = {k: int(v) if v.isdigit() else v for k, v in chosen.items()}
    config = DataConfig(source=source, root=str(root), val_fraction=0.4, **chosen)
    records = read_data(config, out / "labels.csv").split("train")
    for record in records:
        cam = read_cam(out / f"cams/pixel/given/{record.name}.npz")
        assert tuple(cam.classes) == record.classes
        assert cam.cam.shape == (len(record.classes), *read_image(record.image).shape[:2])
    scored = [record for record in records if record.mask is not None]
    results = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    if not scored:
        assert "no masks, so there are no maps to score" in printed
        assert results == []
        return
    (result,) = results
    assert result["images"] == len(scored)
    assert 0 <= result["miou"] <= 100
    assert np.isclose(result["miou"], np.mean(list(result["iou"].values())))
