import csv
import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from configs.command_line import load_run, stage_parser
from datasets import sources
from datasets.files import write_image, write_mask, write_saliency
from datasets.skipped import SKIPPED_NAME, read_skipped
from datasets.sources import read_data
from inference import preflight

SIZE = (40, 48)
SMALL = (  # networks
    "train.image_size=[64,64]",
    "train.patch_size=16",
    "train.depth=1",
    "train.backbone=deit_tiny_patch16_224",
    "train.pretrained=none",
    "train.frozen_blocks=0",
    "train.attention_layers=1",
    "train.pixel_block=1",
    "train.batch_size=2",
    "segmentation.encoder=tu-resnet10t",
    "segmentation.pretrained=none",
    "segmentation.image_size=[64,64]",
    "segmentation.batch_size=2",
)


class Folder:
    """A folder of the user's with masks and saliency maps, and what may be planted in it."""

    def __init__(self, root: Path):
        self.root, self.out, self.maps = root / "data", root / "run", root / "maps"
        self.random = np.random.default_rng(0)
        self.maps.mkdir(parents=True)
        for split, count in (("train", 4), ("test", 2)):
            for name in ("crack", "dent", "good"):
                for i in range(count):
                    self.add(split, name, f"{i}")

    def add(self, split: str, class_name: str, stem: str, size: tuple[int, int] = SIZE) -> Path:
        path = self.root / split / class_name / f"{stem}.png"
        write_image(path, self.random.integers(0, 255, (*size, 3), dtype=np.uint8))
        if class_name != "good":
            mask = np.zeros(size, np.uint8)
            mask[0] = 1 + (class_name == "dent")
            write_mask(self.root / "masks" / split / class_name / f"{stem}.png", mask)
            name = f"{split}_{class_name}_{stem}"
            if name.isprintable() and len(name) < 200:
                write_saliency(self.maps / f"{name}.png", np.ones(size))
        return path

    def mask_of(self, path: Path) -> Path:
        return self.root / "masks" / path.relative_to(self.root)

    def arguments(self, *words: str) -> list[str]:
        settings = ["data.source=folder", f"data.root={self.root}", "data.mask_level=0"]
        settings += ["data.eval_split=test", "data.val_fraction=0.3", "saliency.generator=external"]
        settings += [f"saliency.folder={self.maps}", *SMALL]
        sample = str(Path(preflight.__file__).parents[1] / "configs/folder.toml")
        return ["--config", sample, "--out", str(self.out), "--set", *settings, *words]

    def config(self):
        return load_run(stage_parser("").parse_args(self.arguments()))[0]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def test_sound_data_passes_and_nothing_is_written(folder, capsys, monkeypatch):
    monkeypatch.setattr(sources, "FEW", 4)
    preflight.main(folder.arguments())

    printed = capsys.readouterr().out
    assert printed.startswith("no problems found\na batch passes both networks; ")
    assert "disk: about " in printed
    assert not folder.out.exists()


def plant(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[str, str]]:
    """Plant faults; return for each the kind of problem, and what names it."""
    add, found = folder.add, {}
    cut = add("train", "crack", "cut").with_suffix(".jpg")
    Image.open(cut.with_suffix(".png")).save(cut, quality=95)
    cut.with_suffix(".png").unlink()
    cut.write_bytes(cut.read_bytes()[:700])
    found["truncated JPEG"] = "unreadable image", "cut.jpg"
    add("train", "crack", "empty").write_bytes(b"")
    found["zero bytes"] = "unreadable image", "empty.png"
    add("train", "crack", "text").write_text("not a picture")
    found["text named .png"] = "unreadable image", "text.png"
    deep = folder.random.integers(0, 300, SIZE).astype(np.uint16)
    Image.fromarray(deep).save(add("train", "crack", "deep"))
    found["16 bit, 0..300"] = "nearly black 16-bit picture", "deep.png"
    cmyk = add("train", "crack", "cmyk")
    Image.open(cmyk).convert("CMYK").save(cmyk.with_suffix(".jpg"))
    cmyk.unlink()
    found["CMYK"] = "CMYK picture", "cmyk.jpg"
    frames = [Image.new("L", SIZE, i) for i in range(3)]
    frames[0].save(
        add("train", "crack", "moving"), format="GIF", save_all=True, append_images=frames[1:]
    )
    found["animated GIF"] = "unreadable image", "moving.png"
    add("train", "crack", "dot", (1, 1))
    found["1 x 1"] = "picture too small or too narrow", "dot.png: 1 x 1"
    add("train", "crack", "line", (40000, 3))
    found["40,000 x 3"] = "picture too small or too narrow", "line.png: 40000 x 3"
    other = folder.mask_of(add("train", "crack", "other"))
    write_mask(other, np.ones((9, 9), np.uint8))
    found["mask of another size"] = "mask of another size than its image", "other.png"
    value = folder.mask_of(add("train", "crack", "value"))
    write_mask(value, np.full(SIZE, 7, np.uint8))
    found["unknown mask value"] = "unknown mask value", "value.png: expected 0..2 and 255, got 7"
    add("train", "dent", "twice").write_bytes(add("train", "crack", "twice").read_bytes())
    found["two classes"] = "one picture under different labels", "crack/twice.png"
    big = np.kron(folder.random.integers(0, 255, (8, 8, 3)), np.ones((12, 12, 1))).astype(np.uint8)
    write_image(add("train", "crack", "turned", (96, 96)), big)
    write_image(add("test", "crack", "turned", (96, 96)), np.rot90(big))
    found["turned copy in test"] = "near copies in different splits", "crack/turned.png"
    add("train", "crack", "two\nlines")
    found["newline"] = "unusable name", r"two\nlines"
    add("train", "crack", "l" * 236)
    found["240 bytes"] = "long name", f"{'l' * 236}.png: 240 bytes"
    crack = folder.root / "train" / "crack"
    (crack / "gone.png").symlink_to(folder.root / "nowhere.png")
    found["dangling link"] = "unreadable image", "gone.png"
    (crack / "loop.png").symlink_to(crack / "loop.png")
    found["link to itself"] = "unreadable image", "loop.png"
    os.mkfifo(crack / "pipe.png")
    found["FIFO"] = "unreadable image", "pipe.png"
    secret = add("train", "crack", "secret")
    secret.chmod(0)
    found["no permission"] = "unreadable image", "secret.png"
    if os.geteuid() == 0:  # whom no permission stops
        read = Path.read_bytes

        def refusing(path: Path) -> bytes:
            if path == secret:
                raise PermissionError(13, "Permission denied", str(path))
            return read(path)

        monkeypatch.setattr(Path, "read_bytes", refusing)
    (folder.root / "train" / "hole").mkdir()
    found["no pictures"] = "folder without pictures", "train/hole"
    outlined = add("train", "crack", "outlined")
    folder.mask_of(outlined).unlink()
    shape = {"label": "crack", "points": [[0, 0], [5, float("nan")], [5, 5]]}
    shape |= {"shape_type": "polygon"}
    head = {"imageHeight": SIZE[0], "imageWidth": SIZE[1], "imagePath": outlined.name}
    outlined.with_suffix(".json").write_text(json.dumps({**head, "shapes": [shape]}))
    found["NaN in an outline"] = "unreadable mask", "outlined.json"
    beyond = add("train", "crack", "beyond")
    folder.mask_of(beyond).unlink()
    shape["points"] = [[0, 0], [SIZE[1] + 9, 0], [5, 20]]
    beyond.with_suffix(".json").write_text(json.dumps({**head, "shapes": [shape]}))
    found["outline beyond the edges"] = "outline beyond the image", "beyond.json"
    add("train", "crack", "small_map")
    write_saliency(folder.maps / "train_crack_small_map.png", np.ones((5, 5)))
    found["saliency of another size"] = "saliency map", "small_map.png"
    add("train", "crack", "case")
    add("train", "crack", "CASE")
    found["case only"] = "names that differ in case only", "CASE.png"
    for stem in ("gone", "loop", "pipe"):  # maps for what has none
        write_saliency(folder.maps / f"train_crack_{stem}.png", np.ones(SIZE))
    write_saliency(folder.maps / f"train_crack_{'l' * 236}.png", np.ones(SIZE))
    return found


def test_all_planted_faults_are_reported_at_once_and_nothing_is_written(folder, monkeypatch):
    planted = plant(folder, monkeypatch)

    _, _, problems = preflight.look(folder.config(), folder.maps)

    for fault, (kind, name) in planted.items():
        texts = [problem.text for problem in problems if problem.kind == kind]
        assert any(name in text for text in texts), (fault, texts)
    with pytest.raises(ValueError, match=r"got \d\d problems that stop a stage.*--skip-bad"):
        preflight.main(folder.arguments())
    assert not folder.out.exists()


def test_bad_pictures_are_skipped_by_all_readers_once_asked(folder, monkeypatch, capsys):
    plant(folder, monkeypatch)

    preflight.main(folder.arguments("--skip-bad"))

    printed = capsys.readouterr().out
    assert "unreadable image: 8 (stops training)\n" in printed
    assert "left out: 18 pictures or folders, see " in printed
    skipped = read_skipped(folder.out / SKIPPED_NAME)
    names = {path.name for path in skipped}
    assert {"two\nlines.png", "hole", "twice.png", "dot.png", "outlined.png"} <= names
    assert not {"deep.png", "cmyk.jpg", "case.png", "turned.png", "0.png"} & names
    with (folder.out / SKIPPED_NAME).open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["path", "problem"] and len(rows) == len(skipped) + 1
    data = read_data(folder.config().data, folder.out / "labels.csv")
    assert data.class_names == ("crack", "dent")
    assert not {record.image for record in data.split("train")} & skipped
    # A second call knows them, and stops no more.
    preflight.main(folder.arguments())
    assert "left out: 18 pictures or folders" in capsys.readouterr().out


def test_what_no_reader_goes_on_without_is_named_after_the_problems(folder, capsys):
    for path in [*folder.root.glob("train/[cdg]*/[1-9].png")]:
        path.rename(path.with_name(f"{path.stem}\x07.png"))

    with pytest.raises(ValueError, match="expected two groups of images"):
        preflight.main(folder.arguments())
    assert "unusable name: 9 (stops training)" in capsys.readouterr().out


def test_too_little_disk_space_is_an_error(folder, monkeypatch):
    none = SimpleNamespace(free=10)
    monkeypatch.setattr(preflight.shutil, "disk_usage", lambda path: none)

    with pytest.raises(ValueError, match=r"run: expected \d+\.\d GB of free disk space, got 0\.0"):
        preflight.main(folder.arguments())


def test_disk_bytes_counts_maps_of_all_types_and_labels(folder):
    config = folder.config()
    _, facts, _ = preflight.look(config, folder.maps)

    counted = preflight.disk_bytes(config, facts, 1000)

    pixels = SIZE[0] * SIZE[1]
    maps = 2 * len(config.cam.types) * len(config.cam.labels)
    assert counted - 16 * 1000 - 18 * pixels * (1 + maps) in (0, 18 * preflight.FEATURE_BYTES)


def test_a_damaged_list_of_skipped_pictures_is_named(folder):
    folder.out.mkdir()
    (folder.out / SKIPPED_NAME).write_text("a,b\n1,2\n")

    with pytest.raises(ValueError, match=r"skipped\.csv: expected columns path, problem"):
        preflight.main(folder.arguments())
