import csv
import inspect
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import datasets.inspect
from configs.command_line import ROOT, run_stage
from datasets.files import read_image, write_image, write_mask
from datasets.inspect import choose_examples
from datasets.pictures import CELL, GAP
from datasets.record import Record
from datasets.record_checks import Facts

SIZE = (37, 50)
CLASSES = ("inclusion", "patches", "scratches")
FOLDERS = {"train": "training", "test": "test"}


class Miniature:
    """Data of the NEU-Seg layout with labels.csv in the run folder, so that labels may be wrong."""

    def __init__(self, root: Path):
        self.root, self.out = root / "data", root / "run"
        self.labels = []
        self.random = np.random.default_rng(0)
        for split in FOLDERS:
            for i in range(4):
                self.add(split, f"good_{i}", *[()] * (i == 3) or [(i,)])
        self.add("train", "two", (0, 2))

    def add(self, split: str, stem: str, label: tuple[int, ...]) -> None:
        image = self.random.integers(0, 255, (*SIZE, 3), dtype=np.uint8)
        write_image(self.image(split, stem), image)
        mask = np.zeros(SIZE, np.uint8)
        mask[0, : len(label)] = [k + 1 for k in label]
        mask[1] = 255
        write_mask(self.mask(split, stem), mask)
        name = stem + "t" * (split == "test")
        self.labels.append((name, "|".join(CLASSES[k] for k in label)))

    def image(self, split: str, stem: str) -> Path:
        return self.root / f"images/{FOLDERS[split]}/{stem}.png"

    def mask(self, split: str, stem: str) -> Path:
        return self.root / f"annotations/{FOLDERS[split]}/{stem}.png"

    def arguments(self, *settings: str) -> list[str]:
        self.out.mkdir(exist_ok=True)
        with (self.out / "labels.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("name", "classes"), *self.labels])
        source = ("data.source=neu_seg", f"data.root={self.root}")
        return ["--out", str(self.out), "--set", *source, *settings]


@pytest.fixture
def miniature(tmp_path: Path) -> Miniature:
    return Miniature(tmp_path)


def stop_line(arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        run_stage(lambda _: datasets.inspect.main(arguments))
    line = stopped.value.code
    assert isinstance(line, str) and "\n" not in line  # printed to stderr; the exit code is 1
    return line


def listed(printed: str) -> dict[str, tuple[int, list[str]]]:
    """Return {kind of problem: (total, lines below it)}."""
    found = {}
    lines: list[str] = []  # of what is printed before the first heading
    for line in printed.split("inspect.png: ")[1].splitlines()[1:]:
        if heading := re.fullmatch(r"(\w.*): (\d+) \(.*\)", line):
            lines = []
            found[heading[1]] = (int(heading[2]), lines)
        else:
            lines.append(line.strip())
    return found


def test_sound_data_is_counted_and_drawn(miniature, capsys):
    datasets.inspect.main(miniature.arguments())
    printed = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in printed.splitlines() if line}
    # 5 training images, all of different pictures: one of each class, one free, and one with
    # inclusion and scratches.
    train = ["train", "5", "5", "2", "1", "2", "1", "(20.0", "%)", "1", "(20.0", "%)"]
    test = ["test", "4", "4", "1", "1", "1", "0", "(0.0", "%)", "1", "(25.0", "%)"]
    assert (rows["train"], rows["test"]) == (train, test)
    assert not (miniature.out / "copies.png").exists()
    assert "sizes, H x W: 37 x 50 (9)" in printed
    assert "picture modes: RGB (9)" in printed
    # One pixel of 37 * 50 is 0.054 %.
    assert rows["inclusion"] == ["inclusion", "3", *["0.054"] * 5]
    assert rows["patches"] == ["patches", "2", *["0.054"] * 5]
    assert f"wrote {miniature.out / 'inspect.png'}" in printed
    assert read_image(miniature.out / "inspect.png").shape == (
        2 * (CELL + GAP),
        5 * (CELL + GAP),
        3,
    )
    assert printed.endswith("no problems found\n")


def test_every_planted_fault_is_found(miniature, capsys):
    test_image = miniature.image("test", "good_0")
    picture = Image.open(test_image)
    picture.save(miniature.image("train", "copy").with_suffix(".bmp"))  # same pixels, other format
    miniature.labels.append(("copy", "inclusion"))
    for stem in ("twin_a", "twin_b", "broken", "cut", "no_mask", "bad_mask", "small", "empty"):
        miniature.add("test", stem, (1,))
    miniature.image("test", "twin_b").write_bytes(miniature.image("test", "twin_a").read_bytes())
    miniature.image("test", "broken").write_bytes(b"no picture")
    cut = miniature.image("test", "cut")
    cut.write_bytes(cut.read_bytes()[:900])
    miniature.mask("test", "no_mask").unlink()
    miniature.mask("test", "bad_mask").write_bytes(b"")
    write_mask(miniature.mask("test", "small"), np.full((20, 30), 2, np.uint8))
    write_mask(miniature.mask("test", "empty"), np.full(SIZE, 255, np.uint8))
    for i in range(7):
        miniature.add("test", f"odd_{i}", (1,))
        mask = np.full(SIZE, 2, np.uint8)
        mask[3, 3] = 4 + i
        write_mask(miniature.mask("test", f"odd_{i}"), mask)
    miniature.add("test", "more", ())
    write_mask(miniature.mask("test", "more"), np.full(SIZE, 3, np.uint8))

    line = stop_line(miniature.arguments())
    found = listed(capsys.readouterr().out)

    assert "expected data to train on, got 2 problems that stop training" in line
    assert {kind: total for kind, (total, _) in found.items()} == {
        "unreadable image": 2,
        "near copies in different splits": 1,
        "near copies in one split": 1,
        "unreadable mask": 1,
        "unknown mask value": 7,
        "mask of another size than its image": 1,
        "label without mask": 2,  # the copy has none either
        "label without mask content": 1,
        "mask content without label": 1,
    }
    expected = {
        "unreadable image": "broken.png: expected PNG, JPEG, BMP, TIFF or WebP, got",
        "near copies in different splits": r"copy.bmp \((fit|val)\) = .*good_0.png \(test\)",
        "near copies in one split": r"twin_a.png \(test\) = .*twin_b.png \(test\)",
        "unreadable mask": "bad_mask.png: expected a grey or palette picture, got",
        "unknown mask value": r"odd_0.png: expected 0..3 and 255, got 4",
        "mask of another size than its image": "small.png: 20 x 30, image 37 x 50",
        "label without mask": r"no_mask.png \(test\)",
        "label without mask content": "empty.png: patches",
        "mask content without label": "more.png: scratches",
    }
    for kind, pattern in expected.items():
        assert re.search(pattern, "\n".join(found[kind][1])), kind
    odd = found["unknown mask value"][1]
    assert len(odd) == 6 and odd[-1] == "... and 2 more"


def test_turned_and_mirrored_copies_are_named_and_drawn(miniature, capsys):
    image = read_image(miniature.image("train", "two"))
    turned = {"turned": np.rot90(image), "mirrored": image[:, ::-1], "light": image // 2 + 60}
    for stem, pixels in turned.items():
        miniature.add("train", stem, (0,))
        write_image(miniature.image("train", stem), np.ascontiguousarray(pixels))
        miniature.mask("train", stem).unlink()
    datasets.inspect.main(miniature.arguments())
    printed = capsys.readouterr().out
    assert re.search(r"train +8 +5 ", printed)  # 8 images show 5 pictures
    assert "4 images are in such groups, the largest has 4" in printed
    assert listed(printed)["near copies in one split"][0] == 1
    sheet = read_image(miniature.out / "copies.png")  # one row: four pictures and an empty cell
    assert sheet.shape == (CELL + GAP, 5 * (CELL + GAP), 3)
    assert sheet[:, 3 * (CELL + GAP) : 4 * (CELL + GAP)].any()
    assert not sheet[:, 4 * (CELL + GAP) :].any()


def test_faults_of_masks_alone_leave_the_exit_code_0(miniature, capsys):
    write_mask(miniature.mask("train", "two"), np.full((9, 9), 7, np.uint8))
    datasets.inspect.main(miniature.arguments())
    found = listed(capsys.readouterr().out)
    assert set(found) == {
        "unknown mask value",
        "mask of another size than its image",
        "label without mask content",
    }


def test_what_read_data_refuses_is_one_line_and_exit_code_1(miniature):
    image = miniature.image("train", "two")
    image.with_suffix(".jpg").write_bytes(image.read_bytes())
    assert "two.png: expected unique names, got another two" in stop_line(miniature.arguments())
    assert "expected the folder of the neu_seg" in stop_line(miniature.arguments("data.root=none"))


def test_split_to_evaluate_must_be_there(miniature):
    for path in miniature.image("test", "any").parent.iterdir():
        path.unlink()
    miniature.image("test", "any").parent.rmdir()
    assert "split 'test': expected one of train, fit, val" in stop_line(miniature.arguments())
    datasets.inspect.main(miniature.arguments("data.eval_split=val"))


def test_data_without_masks_is_drawn_as_it_is(miniature, capsys):
    for path in miniature.root.glob("annotations/*/*"):
        path.unlink()
    datasets.inspect.main(miniature.arguments())
    printed = capsys.readouterr().out
    assert "\nno masks: they are needed to score masks, not to learn\n" in printed
    assert "no problems found" in printed
    assert read_image(miniature.out / "inspect.png").shape == (CELL + GAP, 5 * (CELL + GAP), 3)


def test_classes_with_few_training_images_are_told(miniature, capsys, monkeypatch):
    monkeypatch.setattr(datasets.sources, "FEW", 2)
    datasets.inspect.main(miniature.arguments())
    printed = capsys.readouterr().out
    assert "warning: patches: 1 training images, a class needs 2 or more" in printed
    assert "inclusion: 2 training images" not in printed


def test_files_next_to_the_images_that_are_not_read_are_a_problem(tmp_path, capsys):
    root = tmp_path / "parts"
    random = np.random.default_rng(0)
    for name in ("a", "b", "c", "deeper/d"):
        pixels = random.integers(0, 255, (*SIZE, 3), dtype=np.uint8)
        write_image(root / f"hole/{name}.png", pixels)
    (root / "hole/a.json").write_text("{}")  # an annotation
    arguments = ["--out", str(tmp_path / "run"), "--set", "data.source=folder"]
    for name in ("1.heic", "2.heic", "3.heic", "4.heic", "5.txt", ".hidden"):
        (root / "hole" / name).touch()
    datasets.inspect.main([*arguments, f"data.root={root}"])
    found = listed(capsys.readouterr().out)["left out beside the images"]
    assert found == (1, [f"{root}/hole: 6 (1.heic, 2.heic, 3.heic, 4.heic, 5.txt, ...)"])


def test_examples_show_every_label_and_leave_defect_free_to_the_end():
    labels = [(), (), (), (0,), (0,), (1,), (0, 1)]
    facts = [Facts(Record(str(i), Path("a"), c), "train", SIZE) for i, c in enumerate(labels)]
    facts.append(Facts(Record("unreadable", Path("a"), (2,)), "train"))
    chosen = [found.record.classes for found in choose_examples(facts)]
    assert chosen == [(0,), (1,), (0, 1), (), (0,)]


def test_module_does_not_hide_the_inspect_of_the_standard_library(miniature):
    assert Path(inspect.__file__).parent != ROOT / "datasets"
    miniature.image("test", "good_0").write_bytes(b"no picture")
    call = [sys.executable, "-m", "datasets.inspect", *miniature.arguments()]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("error: ")
    assert "unreadable image: 1 (stops training)" in done.stdout
    direct = [sys.executable, str(ROOT / "datasets/inspect.py")]
    done = subprocess.run(direct, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == ("error: run it from the repository root as python -m datasets.inspect\n")
