"""What a line fears, on models that are made up: counts, disturbed images, wrong labels."""

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from configs import load
from datasets.files import Cam, write_cam, write_image, write_mask
from datasets.record import Record
from runfolder.run import Run
from scoring.limits import DEFECTIVE, OK, UNSURE
from studies import ablation, line

SAMPLE = ("data.sample_train=20", "data.sample_test=4")


class Models:
    """Says by the mean level of an image what it is, and that its left half is of class 1."""

    class_names = ("dent", "crack")

    def over(self, pictures):
        for picture in pictures:
            mask = np.zeros(picture.pixels.shape[:2], np.uint8)
            mask[:, :4] = 1
            level = picture.pixels.mean()
            verdict = DEFECTIVE if level > 150 else UNSURE if level > 100 else OK
            yield SimpleNamespace(record=picture.record, verdict=verdict, mask=mask)


@pytest.fixture
def records(tmp_path) -> list[Record]:
    """Return two defective and three good images of one grey level each."""
    made = []
    for number, (level, classes) in enumerate(
        [(160, (0,)), (90, (0,)), (160, ()), (120, ()), (9, ())]
    ):
        path, mask = tmp_path / f"{number}.png", None
        write_image(path, np.full((6, 8, 3), level, np.uint8))
        if classes:
            mask = tmp_path / f"{number}_mask.png"
            truth = np.zeros((6, 8), np.uint8)
            truth[:, :2] = 1
            write_mask(mask, truth)
        made.append(Record(f"{number}", path, classes, mask))
    return made


def test_verdicts_and_masks_are_counted(records):
    # Of two defective images one is missed, of three good ones one is an alarm and one unsure; the
    # masks of the two with a true one are twice as wide: 12 of 24 pixels, and 24 of 36.
    found = line.judged(Models(), records)
    assert found.cells() == ["5", "58.3", "50.0", "0.0", "33.3", "33.3"]
    dark = line.judged(Models(), records, lambda pixels: pixels // 2)
    assert dark.cells()[2:] == ["100.0", "0.0", "0.0", "0.0"]
    assert line.judged(Models(), records[2:]).cells()[1:4] == ["-", "-", "-"]


def test_disturbed_images_are_brighter_smoother_and_noisier():
    pixels = np.full((40, 40, 3), 100, np.uint8)
    pixels[:, 20:] = 200
    changes = line.disturbances(0)
    assert len(changes) == 1 + len(line.BRIGHTNESS) + len(line.BLURS) + len(line.NOISES)
    made = {name: change(pixels) for name, change in changes.items()}
    assert all(m.dtype == np.uint8 and m.shape == pixels.shape for m in made.values())
    assert (made["none"] == pixels).all()
    assert (made["light x 0.6"][0, 0] == 60).all() and (made["light x 1.5"][0, 30] == 255).all()
    steps = [np.abs(np.diff(made[f"blur, {s:g} px"].astype(int), axis=1)).max() for s in (1, 2, 3)]
    assert 100 > steps[0] > steps[1] > steps[2] > 0
    noisy = made["noise, 10 levels"].astype(int)
    assert (noisy - pixels).std() == pytest.approx(10, rel=0.1)
    assert (noisy[..., 0] == noisy[..., 2]).all()  # of light, not of colour


def test_half_of_the_wrong_labels_name_another_class_and_half_none():
    records = [Record(f"{i}", None, ((i % 3,) if i % 4 else ())) for i in range(100)]
    wrong = line.wrong_labels(records, 3, 0.2, seed=1)
    assert wrong == line.wrong_labels(records, 3, 0.2, seed=1)
    assert len(wrong) == 20
    by_name = {record.name: record.classes for record in records}
    assert all(classes != by_name[name] for name, classes in wrong.items())
    assert 5 <= sum(classes == () for classes in wrong.values()) <= 10
    assert line.wrong_labels(records, 3, 0.0, seed=1) == {}
    both = [Record("a", None, (0, 1)), Record("b", None, (0, 1))]
    assert set(line.wrong_labels(both, 2, 1.0, seed=0).values()) == {()}


@pytest.fixture
def sample(tmp_path):
    return [*SAMPLE, f"data.root={tmp_path}/data"]


@pytest.fixture
def seen(monkeypatch) -> list[tuple[Run, list[dict]]]:
    """Let stages only note their table and write scores that follow the labels that it has."""
    tables = []

    def call(job: ablation.Job, words: list[str]) -> None:
        if words[1] != "make_cams":
            return
        run = Run(job.run_dir, load(job.args.config, [*job.args.set, *job.changes]))
        with Path(run.config.data.table).open(newline="") as file:
            tables.append((run, list(csv.DictReader(file))))
        for record in run.data.split("train"):
            k = int(record.name.split("_")[-1]) % run.num_classes  # whatever the label says
            cam = Cam(np.zeros((0, 2, 2)), np.zeros(0, int), np.eye(run.num_classes)[k])
            folder = run.cam_dir(run.config.pseudo_label.cam_type, "given")
            write_cam(folder / f"{record.name}.npz", cam)

    def judged(models, records, change=None):
        defective = sum(bool(record.classes) for record in records)
        return line.Judged(
            line.Counter({(True, DEFECTIVE): defective, (False, OK): len(records) - defective}),
            line.ConfusionMatrix(3),
        )

    monkeypatch.setattr(ablation.Job, "call", call)
    monkeypatch.setattr(line, "load_run", lambda folder, device: None)
    monkeypatch.setattr(line, "judged", judged)
    return tables


def lines(tmp_path, capsys, study, sample, *words):
    capsys.readouterr()
    flags = ["--config", "configs/sample.toml", "--out", f"{tmp_path}/{study}", *words]
    line.main([study, *flags, "--set", *sample])
    printed = capsys.readouterr().out.splitlines()
    return [
        [cell.strip() for cell in text.strip("|").split("|")] for text in printed if "|" in text
    ]


def test_runs_are_trained_on_the_wrong_labels_and_once(tmp_path, seen, capsys, sample):
    rows = lines(tmp_path, capsys, "labels", sample, "--shares", "0", "0.2")
    (_, clean), (run, table) = seen
    changed = [
        a["image"] for a, b in zip(clean, table, strict=True) if a["classes"] != b["classes"]
    ]
    assert len(changed) == 4 and rows[3][0] == "20 %, 4 of 20"
    assert [row["split"] for row in table] == ["train"] * 20 + ["test"] * 4
    assert run.data.class_names == ("inclusion", "patches", "scratches")
    assert all(record.mask is None for record in run.data.split("test"))
    assert rows[2][1] == "-" and rows[3][1].endswith(" %")
    assert lines(tmp_path, capsys, "labels", sample, "--shares", "0", "0.2") == rows
    assert len(seen) == 2  # nothing is trained again


def test_each_class_is_left_out_of_everything_but_the_verdicts(tmp_path, seen, capsys, sample):
    rows = lines(tmp_path, capsys, "unknown", sample)
    assert [row[0] for row in rows[2:]] == ["inclusion", "patches", "scratches"]
    for (run, table), row in zip(seen, rows[2:], strict=True):
        assert row[0] not in run.data.class_names and len(run.data.class_names) == 2
        assert not any(row[0] in line["classes"] for line in table)
        assert len(table) + int(row[1]) == 24
        assert row[2:5] == ["100.0", "0.0", "0.0"]
