"""A run of pipeline.py whose stages are noted instead of run."""

import sys
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

import pipeline
from configs.command_line import load_run, stage_parser
from inference import preflight

FOLDERS = {  # of the run folder, by the module that writes them
    "make_saliency": "saliency",
    "train_stac": "stac",
    "make_cams": "cams",
    "make_pseudo_labels": "pseudo_labels",
    "segmentation.train": "segmentation",
    "segmentation.infer": "predictions",
}
ALL_CALLS = [
    "make_saliency",
    "evaluation.py saliency train test",
    "train_stac --resume",
    "make_cams",
    "evaluation.py cam fused given test",
    "evaluation.py cam given train",
    "make_pseudo_labels",
    "evaluation.py pseudo_label train test",
    "segmentation.train --resume",
    "segmentation.infer",
    "evaluation.py segmentation test",
    "evaluation.py --table",
    "report.py",
]


class Runner:
    """Calls pipeline.main as from `folder`.

    Attributes:
        words: of each call of the last run, but for the check of the data.
        calls: short forms of `words`.
        all_calls: short forms of a whole run.
        forecast: minutes by stage.
        fails: part of a call, as one line; a call with it ends with `code`.
    """

    all_calls = ALL_CALLS

    def __init__(self, folder):
        self.folder = folder
        self.out = folder / "run"
        self.words, self.fails, self.code = [], None, 0
        self.forecast = dict(zip(FOLDERS.values(), (9, 8, 2, 4, 1, 5), strict=True))
        self.forecast["train"] = self.forecast.pop("stac")
        (folder / "mine.toml").write_text(
            f'[data]\nroot = "{folder}/sample"\nsample_train = 3\nsample_test = 1\n'
        )

    def __call__(self, *arguments, fails=None, code=7):
        """Return the exit code."""
        self.words, self.fails, self.code = [], fails, code
        try:
            pipeline.main([*arguments, "--called-from", str(self.folder)])
        except SystemExit as stopped:
            return stopped.code
        return 0

    def whole(self, *arguments):
        assert self("mine.toml", "--out", "run", *arguments) == 0

    def call(self, words):
        """Stand in for pipeline._call."""
        module = words[1] if words[0] == "-m" else words[0]
        if module == "inference.preflight":
            return check_data(words[2:])
        self.words.append(list(words))
        if module in FOLDERS:
            folder = Path(words[words.index("--out") + 1], FOLDERS[module])
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "file").touch()
        return self.code if self.fails and self.fails in " ".join(words) else 0

    @property
    def calls(self):
        return [short_form(words) for words in self.words]


def check_data(arguments):
    try:
        config, _ = load_run(stage_parser("").parse_args(arguments))
        with TemporaryDirectory() as folder:
            preflight.look(config, Path(folder))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def short_form(words):
    shown = [words[1] if words[0] == "-m" else words[0]]
    for flag in ("--kind", "--cam-type", "--labels", "--split"):
        values = words[words.index(flag) + 1 :] if flag in words else []
        shown += takewhile(lambda word: not word.startswith("--"), values)
    return " ".join(shown + [word for word in ("--resume", "--table") if word in words])


@pytest.fixture
def runner(tmp_path, monkeypatch):
    runner = Runner(tmp_path)
    monkeypatch.setattr(pipeline, "_call", runner.call)
    monkeypatch.setattr(pipeline, "_expected", lambda args: runner.forecast)
    return runner
