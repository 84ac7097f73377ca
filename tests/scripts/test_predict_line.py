"""A run in five lines of Python, and on a line where pictures come one after the other."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import predict
from configs.command_line import ROOT
from datasets.files import read_image, read_mask, write_image
from inference import Options, load_run
from inference.watching import new_pictures


def test_five_lines_of_python_say_what_predict_writes(untrained_run, photos, tmp_path):
    flags = ["--run", str(untrained_run), "--to", str(tmp_path), "--device", "cpu", "--keep-all"]
    predict.main([str(photos / "a.png"), *flags])
    with (tmp_path / "summary.csv").open() as file:
        (row,) = csv.DictReader(file)

    run = load_run(untrained_run, "cpu", Options(keep_all=True))
    result = run.predict(photos / "a.png")
    from_array = run.predict(read_image(photos / "a.png"))

    assert (result.mask == read_mask(tmp_path / "masks/a.png", 3)).all()
    assert result.verdict == row["verdict"] and result.defect_score is None
    for name, score in result.class_scores.items():
        assert float(row[f"{name}_score"]) == pytest.approx(score, abs=1e-4)
    assert sum(one["area_px"] for one in result.objects) == (result.mask > 0).sum()
    assert (from_array.mask == result.mask).all()
    assert from_array.class_scores == result.class_scores


def test_what_is_no_picture_is_refused(untrained_run, tmp_path):
    run = load_run(untrained_run, "cpu")
    with pytest.raises(ValueError, match=r"image: expected \(H, W, 3\) uint8 RGB, got \(4, 5\)"):
        run.predict(np.zeros((4, 5), np.uint8))
    with pytest.raises(ValueError, match="float64"):
        run.predict(np.zeros((4, 5, 3)))
    with pytest.raises(FileNotFoundError, match="none.png"):
        run.predict(tmp_path / "none.png")
    with pytest.raises(ValueError, match=r"min_recall: expected a number in \[0, 1\], got 99"):
        Options(min_recall=99)
    with pytest.raises(ValueError, match=r"threshold: expected classes among .*, got crack"):
        load_run(untrained_run, "cpu", Options(threshold={"crack": 0.5}))


def test_importing_inference_reads_and_prints_nothing(tmp_path):
    words = [sys.executable, "-W", "error", "-c", "import inference; print(inference.load_run)"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.startswith("<function load_run") and done.stderr == ""


class Looks:
    """Ends a watch after so many looks, and does something before each."""

    def __init__(self, *steps):
        self.steps = list(steps)

    def __call__(self) -> bool:
        if not self.steps:
            return False
        step = self.steps.pop(0)
        if step:
            step()
        return True


@pytest.fixture
def no_pauses(monkeypatch):
    monkeypatch.setattr("inference.watching.PAUSE", 0)


def put(path, size=(4, 4), value=0):
    def write():
        write_image(path, np.full((*size, 3), value, np.uint8))
        os.utime(path, ns=(value, value))

    return write


def test_a_picture_is_given_once_when_it_is_complete(tmp_path, no_pauses):
    looks = Looks(put(tmp_path / "a.png", value=1), put(tmp_path / "a.png", (9, 9), 2), None, None)
    assert list(new_pictures(tmp_path, lambda path: False, looks)) == [tmp_path / "a.png"]
    assert not looks.steps


def test_pictures_come_oldest_first_and_again_when_written_anew(tmp_path, no_pauses):
    late, early = tmp_path / "a.png", tmp_path / "deep/b.png"
    (tmp_path / "notes.txt").write_text("no picture")
    put(late, value=9)()
    put(early, value=3)()
    looks = Looks(None, None, put(early, value=12), None)
    assert list(new_pictures(tmp_path, lambda path: False, looks)) == [early, late, early]


def test_what_is_done_is_left_out_until_it_is_written_anew(tmp_path, no_pauses):
    put(tmp_path / "a.png", value=1)()
    looks = Looks(None, None, put(tmp_path / "a.png", value=2), None)
    assert list(new_pictures(tmp_path, lambda path: True, looks)) == [tmp_path / "a.png"]


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a folder to watch, found none"):
        list(new_pictures(tmp_path / "none", lambda path: False))


def waited_for(path, process):
    end = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.2)


def test_a_watch_goes_on_where_it_was_stopped(untrained_run, photos, tmp_path):
    folder, to = tmp_path / "incoming", tmp_path / "to"
    folder.mkdir()
    shutil.copy(photos / "a.png", folder)
    (folder / "broken.png").write_text("no picture")
    words = [sys.executable, "predict.py", "--watch", str(folder), "--run", str(untrained_run)]
    words += ["--to", str(to), "--device", "cpu"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}

    said = []
    for new, count in ((None, 1), (photos / "deep/b.JPG", 1)):
        if new:
            shutil.copy(new, folder)
        process = subprocess.Popen(words, **pipes)
        waited_for(to / f"json/{'b' if new else 'a'}.json", process)
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        out, error = process.communicate(timeout=60)
        assert process.returncode == 0 and error == "", error
        assert f"{count} pictures, " in out and out.count("not predicted: ") == 1
        said.append(out)

    assert "a.png: " in said[0] and "a.png: " not in said[1]
    with (to / "summary.csv").open() as file:
        assert [row["name"] for row in csv.DictReader(file)] == ["a", "b"]
    assert read_mask(to / "masks/b.png", 3).shape == (64, 33)


@pytest.mark.parametrize("flags", [(), ("a.png", "--watch", "b")], ids=["neither", "both"])
def test_pictures_or_a_folder_to_watch_are_needed(flags):
    with pytest.raises(ValueError, match="expected IMAGES, or --watch DIR, and not both"):
        predict.main([*flags, "--run", "x"])


def test_a_watch_writes_no_coco_file():
    with pytest.raises(ValueError, match="--format: expected IMAGES with it, got --watch"):
        predict.main(["--watch", "b", "--run", "x", "--format", "coco"])


def test_outside_the_region_of_interest_nothing_is_found(untrained_run, photos, tmp_path):
    whole = load_run(untrained_run, "cpu", Options(keep_all=True)).predict(photos / "a.png")
    assert whole.mask[:, 25:].any() and whole.mask[:, :25].any()

    options = Options(keep_all=True, roi="0,0 24,0 24,39 0,39")
    left = load_run(untrained_run, "cpu", options).predict(photos / "a.png")

    assert (left.mask[:, :25] == whole.mask[:, :25]).all() and not left.mask[:, 25:].any()
    assert all(x + width <= 25 for x, _, width, _ in (one["box"] for one in left.objects))
    alone = load_run(untrained_run, "cpu", Options(keep_all=True, roi="0,0 49,0 49,39 0,39"))
    of_all = alone.predict(photos / "a.png").class_scores
    # A part of the pixels can have no higher score than all; nothing comes from the localiser.
    assert all(left.class_scores[name] <= of_all[name] for name in of_all)
    assert of_all != whole.class_scores

    flags = ["--run", str(untrained_run), "--to", str(tmp_path), "--device", "cpu", "--keep-all"]
    predict.main([str(photos / "a.png"), *flags, "--roi", options.roi])
    assert (read_mask(tmp_path / "masks/a.png", 3) == left.mask).all()
