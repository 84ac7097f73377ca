"""The exported folder is the product: alone it gives the masks, verdicts and files of predict.py.

The run has all that changes a mask: tiles, PAMR, specks, limits of verdicts and both models.
"""

import csv
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import export
import predict
from configs import load, to_dict
from configs.command_line import ROOT
from datasets.files import read_image, read_mask, write_image, write_json
from exporting import compared, formats
from exporting.models import exportable_segmenter
from exporting.product import Wanted, write_product
from inference.models import load_trained, run_in
from models.stac import build_stac
from runfolder.checkpoint import save_checkpoint
from runfolder.held_out import HELD_OUT_NAME, HeldOut
from runfolder.run import Run
from segmentation.networks import build_network

CLASSES = ("inclusion", "patches", "scratches")
SETTINGS = (
    "train.backbone=deit_tiny_patch16_224", "train.pretrained=none", "train.depth=2",
    "train.image_size=[32,32]", "train.projection_width=8", "train.attention_layers=1",
    "train.amp=off", "cam.scales=[1.0,1.5]", "cam.label_threshold=0.3", "cam.tile=48",
    "segmentation.encoder=tu-mobilenetv3_small_050", "segmentation.pretrained=none",
    "segmentation.image_size=[32,48]", "segmentation.amp=off", "segmentation.tile=40",
    "segmentation.pamr_steps=2",
)  # fmt: skip
LEAST_AREAS = [0.004, 0.02, 0.01]
PICTURES = {"a.png": (50, 71), "deep/b.JPG": (33, 40), "deep/c.bmp": (97, 64)}
NAMES = ("a", "deep_b", "deep_c")
# Refuses what an empty environment with these packages lacks, then runs the script.
RUN_ALONE = """
import runpy, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ImportError(f"{name} is not there")
sys.meta_path.insert(0, Blocker())
sys.path[0] = sys.argv[1]
sys.argv = [sys.argv[1] + "/stac_onnx.py", *sys.argv[2:]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
BLOCKED = {"torch", "torchvision", "timm", "cv2", "scipy", "onnx", "sklearn", "pydantic"}
BLOCKED |= {path.parent.name for path in ROOT.glob("*/__init__.py")}

pytestmark = pytest.mark.skipif(not formats.CAN_EXPORT, reason="PyTorch 2.5 cannot export")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name, size in PICTURES.items():
        coarse = rng.integers(0, 255, (*(side // 4 + 1 for side in size), 3), np.uint8)
        pixels = coarse.repeat(4, axis=0).repeat(4, axis=1)[: size[0], : size[1]]
        noise = rng.integers(-20, 20, pixels.shape)
        write_image(root / name, np.clip(pixels + noise, 0, 255).astype(np.uint8))
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Write untrained checkpoints of both stages, with settings and least areas."""
    folder = tmp_path_factory.mktemp("run")
    config = load([], list(SETTINGS))
    content = {"config": to_dict(config), "class_names": list(CLASSES), "progress": {"step": 1}}
    content |= {"mean": [0.5, 0.4, 0.6], "std": [0.2, 0.3, 0.25]}
    torch.manual_seed(1)
    stac = build_stac(config.train, len(CLASSES))
    save_checkpoint(folder / "stac/checkpoint.pt", content | {"model": stac.state_dict()})
    network = build_network("deeplabv3plus", config.segmentation.encoder, "none", len(CLASSES) + 1)
    enliven(network, config.segmentation.image_size)
    content |= {"model": network.state_dict(), "least_areas": LEAST_AREAS}
    save_checkpoint(folder / "segmentation/best.pt", content)
    Run(folder, config).begin_stage()
    hold_out(folder, 0.0, 0.001)
    return folder


@torch.no_grad()
def enliven(network, size):
    """Let an untrained network see images, and spread its logits: masks then have all classes."""
    coarse = torch.randn(8, 3, size[0] // 4, size[1] // 4)
    images = F.interpolate(coarse, size) + 0.1 * torch.randn(8, 3, *size)
    network.train()
    for _ in range(20):
        network(images)
    head, logits = network.eval().segmentation_head[0], network(images)
    gain = 3 / logits.std((0, 2, 3))
    head.bias.copy_((head.bias - logits.mean((0, 2, 3))) * gain)
    head.weight.mul_(gain[:, None, None, None])


def hold_out(run, good, bad):
    """Write two held-out images, whose scores set the limits of the verdicts."""
    images = [
        HeldOut(
            name=f"{i}", defective=d, labels=[d, False, d], segmenter=[s] * 3, localiser=[s] * 3
        ).model_dump()
        for i, (d, s) in enumerate([(False, good), (True, bad)])
    ]
    write_json(run / "predictions" / HELD_OUT_NAME, images)


@pytest.fixture(scope="module")
def printed(run, photos):
    """Export the run, and give what was printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compared, "BLOCK", 2)
        lines = []
        patch.setattr("builtins.print", lambda *words, **_: lines.append(" ".join(map(str, words))))
        export.main([str(photos), "--run", str(run), "--format", "onnx"])
    return "\n".join(lines)


@pytest.fixture
def folder(run, printed, tmp_path):
    """Copy the exported folder to another place."""
    return shutil.copytree(run / "exported", tmp_path / "copied")


def alone(folder, *words, cwd):
    code = f"BLOCKED = {BLOCKED!r}\n{RUN_ALONE}"
    command = [sys.executable, "-c", code, str(folder), *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same_files(got, wanted):
    """Compare masks, JSON and summary of the folder and of predict.py."""
    equal = total = defects = 0
    for name in NAMES:
        masks = [read_mask(to / f"masks/{name}.png", len(CLASSES)) for to in (got, wanted)]
        equal, total = equal + (masks[0] == masks[1]).sum(), total + masks[0].size
        defects += (masks[1] > 0).sum()
        one, other = (json.loads((to / f"json/{name}.json").read_text()) for to in (got, wanted))
        assert list(one) == list(other)
        for key in ("verdict", "image", "height", "width", "ok_below", "defective_from"):
            assert one[key] == other[key]
        assert one["defect_score"] == pytest.approx(other["defect_score"], abs=1e-3)
        assert list(one["class_scores"]) == list(other["class_scores"])
        scores = list(other["class_scores"].values())
        assert list(one["class_scores"].values()) == pytest.approx(scores, abs=2e-3)
        probabilities = list(other["class_probabilities"].values())
        assert list(one["class_probabilities"].values()) == pytest.approx(probabilities, abs=5e-3)
        if (masks[0] == masks[1]).all():
            assert one["areas_px"] == other["areas_px"]
            for found, known in zip(*(map(by_place, (one, other))), strict=True):
                assert found.pop("score") == pytest.approx(known.pop("score"), abs=2e-3)
                assert found == known
    assert equal >= 0.999 * total
    tables = [rows_of(to / "summary.csv") for to in (got, wanted)]
    assert list(tables[0][0]) == list(tables[1][0])
    assert [(r["name"], r["verdict"]) for r in tables[0]] == [
        (r["name"], r["verdict"]) for r in tables[1]
    ]
    return defects


def by_place(page):
    return sorted(page["objects"], key=lambda one: (one["class"], one["box"], one["contours"]))


@pytest.mark.parametrize(
    "flags",
    [(), ("--keep-all", "--tile", "0"), ("--min-area", "0"), ("--min-area", "60", "--tile", "32")],
)
def test_alone_it_gives_the_files_of_predict(run, folder, photos, tmp_path, flags):
    wanted, got = tmp_path / "wanted", tmp_path / "got"
    predict.main([str(photos), "--run", str(run), "--to", str(wanted), "--device", "cpu", *flags])
    done = alone(folder, photos, "--to", got, "--threads", "1", *flags, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 defective, 0 unsure, 0 ok" in done.stdout
    assert assert_same_files(got, wanted) > 100


def test_each_setting_of_model_json_changes_the_mask(folder, photos):
    pixels = read_image(photos / "a.png")

    def mask_with(**changes):
        model = compared.shipped().load(folder, 1)
        assert model.facts["segmentation"]["least_areas"] == LEAST_AREAS
        model.facts["segmentation"] |= changes
        return model.predict(pixels).mask

    whole = mask_with()
    assert (whole != mask_with(tile=0)).any()
    assert (whole != mask_with(least_areas=[0.0] * 3)).any()
    pamr = compared.shipped().load(folder).facts["segmentation"]["pamr"]
    assert pamr["steps"] == 2
    assert (whole != mask_with(pamr=pamr | {"steps": 0})).any()


def test_verdicts_follow_the_limits_of_both_models(run, folder, photos, tmp_path):
    facts = json.loads((folder / "model.json").read_text())
    assert facts["verdict"]["with_localiser"] is True
    assert facts["verdict"]["defective_from"] == pytest.approx(0.002 / 3)
    assert facts["verdict"]["worth"][0].startswith("ok below a score of 0.000: wrong for 0 of 1")
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("exported"))
    hold_out(tmp_path / "run", 0.999, 1.0)
    facts["verdict"] |= {"ok_below": 0.999 + 0.001 / 3, "defective_from": 0.999 + 0.002 / 3}
    (folder / "model.json").write_text(json.dumps(facts))
    for flags, defects in (((), False), (("--keep-all",), True)):
        wanted, got = tmp_path / "wanted", tmp_path / "got"
        call = ["--run", str(tmp_path / "run"), "--to", str(wanted), "--device", "cpu", *flags]
        predict.main([str(photos), *call])
        done = alone(folder, photos, "--to", got, *flags, cwd=tmp_path)
        assert "0 defective, 0 unsure, 3 ok" in done.stdout
        page = json.loads((got / "json/a.json").read_text())
        assert page["ok_below"] == pytest.approx(0.99933, abs=1e-5)
        assert bool(read_mask(got / "masks/a.png", 3).any()) == defects
        assert bool(read_mask(wanted / "masks/a.png", 3).any()) == defects


def test_arrays_and_files_give_the_same_result(folder, photos):
    model = compared.shipped().load(str(folder), threads=1)
    of_file = model.predict(str(photos / "a.png"))
    of_array = model.predict(read_image(photos / "a.png"))
    np.testing.assert_array_equal(of_file.mask, of_array.mask)
    assert of_file.page == of_array.page | {"image": str(photos / "a.png")}
    assert of_array.page["image"] is None
    grey = read_image(photos / "a.png")[..., 0]
    colour = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(model.predict(grey).mask, model.predict(colour).mask)
    with pytest.raises(ValueError, match="min_area: expected 0 pixels or more, got -1"):
        model.predict(grey, min_area=-1)


@pytest.mark.parametrize("name", ["model.onnx", "localiser.onnx"])
def test_a_changed_model_is_one_line_that_names_it(folder, photos, tmp_path, name):
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"{name}: expected the SHA-256 of model\.json, \w+\.\.\."
    ):
        compared.shipped().load(folder)
    done = alone(folder, photos, "--to", tmp_path / "to", cwd=tmp_path)
    assert done.returncode == 1
    assert re.fullmatch(rf"error: \S+/{name}: expected the SHA-256 .* copy .*\n", done.stderr)
    assert not (tmp_path / "to").exists()


def test_a_folder_that_lacks_a_file_is_a_clear_error(folder):
    load_folder = compared.shipped().load
    (folder / "localiser.onnx").unlink()
    with pytest.raises(FileNotFoundError, match=r"localiser\.onnx: expected a file that model\.js"):
        load_folder(folder)
    (folder / "model.json").write_text('{"format": 1, "class_names": []}')
    with pytest.raises(
        ValueError, match=r"model\.json: expected the JSON .*no segmentation, local"
    ):
        load_folder(folder)
    (folder / "model.json").write_text('{"format": 7}')
    with pytest.raises(ValueError, match=r"model\.json: expected .* format 1, got .*format 7"):
        load_folder(folder)
    (folder / "model.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.json: expected what export\.py says"):
        load_folder(folder)


def test_unreadable_pictures_are_named_after_the_others_are_done(folder, photos, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/broken.jpg").write_bytes(b"no picture")
    shutil.copy(photos / "a.png", tmp_path / "in/a.png")
    done = alone(folder, "in", cwd=tmp_path)
    assert done.returncode == 1
    assert re.fullmatch(r"error: 1 of 2 pictures could not be read: .*jpg: .*\n", done.stderr)
    assert (tmp_path / "predicted/masks/a.png").is_file()


def test_the_page_for_integrators_names_sizes_classes_and_steps(folder):
    text = (folder / "README.md").read_text()
    assert "1 inclusion, 2 patches, 3 scratches" in text
    for line in (
        "to 32 x 48 (H x W)",
        "tiles of 40 x 40 pixels",
        "N x 4 x H x W",
        "0.5, 0.4, 0.6",
        "2 steps of PAMR",
        "averaged with its score by the localiser",
        "mean of the views of 32 x 32 and 48 x 48, and of the mirror images",
    ):
        assert line in text
    assert "$" not in text
    block = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    assert len([line for line in block.splitlines() if line]) <= 10
    compile(block, "README.md", "exec")


def test_the_export_says_how_equal_and_how_fast_it_is(printed):
    assert re.search(r"masks equal those of predict\.py in (99\.9\d\d|100\.000) % of the", printed)
    for side in ("PyTorch", "ONNX Runtime", "stac_onnx.py"):
        found = re.findall(
            rf"^  {re.escape(side)} +median ([\d.]+) ms, 95 % ([\d.]+) ms, [\d.]+ images/s$",
            printed,
            re.MULTILINE,
        )
        assert len(found) == (2 if side == "PyTorch" else 1)
        assert all(0 < float(middle) <= float(high) for middle, high in found)


def test_masks_that_differ_are_refused(run, folder, photos):
    the_run = run_in(run)
    reference = compared.reference_of(the_run, load_trained(the_run), with_localiser=True)
    pictures = compared.pictures_of([photos / "a.png"])
    assert compared.agreement(folder, reference, pictures).equal >= 0.999
    facts = json.loads((folder / "model.json").read_text())
    facts["segmentation"]["mean"] = [0.0, 0.9, 0.2]
    (folder / "model.json").write_text(json.dumps(facts))
    with pytest.raises(ValueError, match=r"expected the masks of predict\.py, got .* % equal pix"):
        compared.agreement(folder, reference, pictures)


def test_the_second_stage_alone_judges_as_a_run_without_localiser(run, folder, photos, tmp_path):
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("exported", "stac"))
    the_run = run_in(tmp_path / "run")
    (folder / "localiser.onnx").unlink()
    second = exportable_segmenter(load_trained(the_run).segmentation)
    write_product(the_run, [second], folder, Wanted(max_alarms=0.1, min_recall=0.9))
    facts = json.loads((folder / "model.json").read_text())
    assert (facts["localiser"], facts["verdict"]["with_localiser"]) == (None, False)
    assert facts["verdict"]["max_false_alarm"] == 0.1
    wanted, got = tmp_path / "wanted", tmp_path / "got"
    predict.main(
        [str(photos), "--run", str(the_run.folder), "--to", str(wanted), "--device", "cpu"]
    )
    done = alone(folder, photos, "--to", got, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert assert_same_files(got, wanted) > 100
