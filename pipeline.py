"""The stages of a run, in order, and how all of them are run: bash run_STAC.sh calls this.

STAGES is the one table of the stages. A stage is a module with a `main`; it reads and writes files
of the run folder and depends on sections of the config. `stages/` of the run folder remembers what
each stage was made with, so that a stopped run goes on where it was, and other settings make anew
what they concern.
"""

import argparse
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from configs import Config, fingerprint
from configs.command_line import ROOT, run_stage
from execution import forked, ranks
from execution.locks import taken
from runfolder.marks import Marks, Stage
from runfolder.run import Run, open_run

SCRIPT = "bash run_STAC.sh"
INTERRUPTED = 130  # exit code of what Ctrl-C stopped


STAGES = (
    Stage(
        "saliency",
        "make_saliency",
        "images, image labels",
        ("saliency",),
        ("data", "saliency", "refinement"),
        "saliency",
    ),
    Stage("train", "train_stac", "images, image labels, saliency/", ("stac",), ("train", "loss")),
    Stage("cams", "make_cams", "images, stac/", ("cams",), ("cam",), "cam"),
    Stage(
        "pseudo_labels",
        "make_pseudo_labels",
        "images, cams/, saliency/",
        ("pseudo_labels", "thresholds.json"),
        ("pseudo_label",),
        "pseudo_label",
    ),
    Stage(
        "segmentation",
        "segmentation.train",
        "images, pseudo_labels/",
        ("segmentation",),
        ("segmentation",),
    ),
    Stage(
        "predictions",
        "segmentation.infer",
        "images, segmentation/",
        ("predictions",),
        (),
        "segmentation",
    ),
)
RESUMED = ("train", "segmentation")  # stages that go on where they were with --resume


def main(argv: Sequence[str] | None = None) -> None:
    """Run all stages of one config that are not up to date, score them, and write the report."""
    args = _parser().parse_intermixed_args(argv)
    args.configs += [word for word in args.set if "=" not in word and word.endswith(".toml")]
    args.set = [word for word in args.set if word not in args.configs]
    args.config, args.out = _from_anywhere(args)
    run = open_run(args)
    marks = Marks(run, STAGES)
    again = _command_again(args)

    # One call at a time, and nothing is removed before every file was found usable.
    lock = taken(marks.folder / "lock")
    if lock is None:
        raise ValueError(
            f"{run.folder}: expected no other run, found one at work. Wait for it, or give another "
            "--out."
        )
    os.set_inheritable(lock.fileno(), True)
    modules = [stage.module for stage in STAGES]
    has_maps = marks.done(STAGES[0]) == fingerprint(run.config, sections_of(STAGES[0]))
    if args.restart or args.skip_bad or not has_maps:
        forked.load(modules, args.device)
        flags = ["--device", args.device, *(["--skip-bad"] if args.skip_bad else [])]
        if code := _call(["-m", "inference.preflight", *_common(args), *flags]):
            sys.exit(code if code > 0 else 1)  # below 0: killed, mostly for want of memory
    if args.restart:
        marks.forget_from(0)
        run.results_path.unlink(missing_ok=True)
    marks.refuse_foreign_files()
    marks.forget_other_labels(args.restart)

    # The stages in order.
    total = len(STAGES) + 1  # and the table
    batch_sizes = run.config.train.batch_size, run.config.segmentation.batch_size // 2
    launcher = ranks.launcher(args.device, min(batch_sizes))
    configs = " ".join(args.config)
    print(f"config {configs}, run folder {run.folder}, device {args.device}", flush=True)
    begun = time.monotonic()
    expected: dict[str, float] | None = None  # minutes by stage; measured before the first one
    for number, stage in enumerate(STAGES, start=1):
        title = f"[{number}/{total}] {stage.name}"
        wanted = fingerprint(run.config, sections_of(stage))
        if marks.done(stage) == wanted and marks.has_files(stage):
            print(f"{title}: up to date", flush=True)
            continue
        if marks.started(stage) == wanted and not marks.done(stage):
            title += " (continued)"
        else:
            marks.forget_from(number - 1)
        marks.start(stage, wanted)
        forked.load(modules, args.device)
        expected = _expected(args) if expected is None else expected
        rest = sum(expected.get(later.name, 0) for later in STAGES[number - 1 :])
        forecast = f", about {expected[stage.name]:.0f} of {rest:.0f} min" if expected else ""
        print(f"{title}: reads {stage.reads} -> writes {stage.writes[0]}/{forecast}", flush=True)
        begun_stage = time.monotonic()
        try:
            for words in commands(stage, run.config):
                if words[0] != "evaluation.py":
                    words = [*launcher, *words, "--device", args.device]
                code = _call([*words, *_common(args)])
                if code:
                    _stop(stage.name, code, again)
        finally:
            marks.add_seconds(stage, time.monotonic() - begun_stage)
        marks.finish(stage, wanted)
        print(f"[{number}/{total}] {stage.name}: {_minutes_since(begun_stage)}", flush=True)

    # The table and the report.
    print(f"[{total}/{total}] table: reads results.jsonl, predictions/ -> writes report.html")
    for words in (["evaluation.py", "--table", "--out", args.out], ["report.py", *_common(args)]):
        code = _call(words)
        if code:
            _stop("table", code, again)
    print(f"every stage in {run.folder} is up to date, {_minutes_since(begun)}")
    print(f"next, {_what_next(run.config, args)}")


def sections_of(stage: Stage) -> list[str]:
    """Return the sections of the config that a stage's files depend on, earlier stages' first."""
    before = STAGES[: STAGES.index(stage) + 1]
    return [section for earlier in before for section in earlier.sections]


def commands(stage: Stage, config: Config) -> Iterator[list[str]]:
    """Give the words of each call of a stage: itself, then what scores it."""
    yield ["-m", stage.module, *(["--resume"] if stage.name in RESUMED else [])]
    if stage.kind is None:
        return
    score = ["evaluation.py", "--kind", stage.kind]
    eval_split = config.data.eval_split
    if stage.kind == "cam":
        every = ["--cam-type", *config.cam.types, "--labels", *config.cam.labels]
        yield [*score, *every, "--split", eval_split]
        if "given" in config.cam.labels and eval_split != "train":
            yield [*score, "--labels", "given", "--split", "train"]
        return
    splits = [eval_split] if stage is STAGES[-1] else ["train", eval_split]
    yield [*score, "--split", *dict.fromkeys(splits)]


def next_step(name: str, run: Run) -> str:
    """Return the line that a stage ends with: the command of the one after it."""
    names = [stage.name for stage in STAGES]
    place = names.index(name) + 1
    if place == len(STAGES):
        last = f"evaluation.py --kind {STAGES[-1].kind}"
        return f"next: python {last} --config {run.config_path} --out {run.folder}"
    module = STAGES[place].module
    script = f"-m {module}" if "." in module else f"{module}.py"
    return f"next: {run.command(script)}"


def _call(words: Sequence[str]) -> int:
    """Run Python with these words, as `forked.begin` does, and return its exit code."""
    # The lock is inherited: a stage that outlives this process still keeps others out.
    process = forked.begin(words, ROOT)
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())  # a training then saves
    try:
        process.join()
        return process.exitcode
    except KeyboardInterrupt:  # the stage got it too, and ends by itself
        process.join()
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)


def _expected(args: argparse.Namespace) -> dict[str, float]:
    """Return the minutes that each stage will take; nothing where that cannot be told."""
    words = ["-m", "inference.expected", *_common(args), "--device", args.device]
    try:
        return json.loads(forked.printed(words, ROOT).splitlines()[-1])
    except (IndexError, ValueError):
        return {}  # what is wrong the stage itself will say


def _stop(stage: str, code: int, again: str) -> NoReturn:
    """Leave with the exit code of a stage and say how to go on."""
    interrupted = code in (-signal.SIGINT, INTERRUPTED)
    what = "was interrupted" if interrupted else f"ended with exit code {code}, see above"
    print(f"error: stage {stage} {what}. This continues there:\n  {again}", file=sys.stderr)
    sys.exit(INTERRUPTED if interrupted else max(code, 1))


def _common(args: argparse.Namespace) -> list[str]:
    settings = ["--set", *args.set] if args.set else []
    return ["--config", *args.config, *settings, "--out", args.out]


def _command_again(args: argparse.Namespace) -> str:
    settings = ["--set", *args.set] if args.set else []
    words = [*args.config, *settings, "--out", args.out, "--device", args.device]
    return f"bash {shlex.quote(str(ROOT / 'run_STAC.sh'))} {shlex.join(words)}"


def _from_anywhere(args: argparse.Namespace) -> tuple[list[str], str]:
    """Return the configs and the run folder as absolute paths.

    They are relative to the folder the call came from (--from); shipped configs are looked for in
    this repository too. Without a config it is that of the run folder, else the sample.
    """
    base = Path(args.called_from)
    configs = [
        ROOT / name if (ROOT / name).exists() and not (base / name).exists() else base / name
        for name in args.configs
    ]
    if not configs:
        saved = base / (args.out or "") / "config.toml"
        has_saved = args.out and saved.is_file()
        configs = [saved if has_saved else ROOT / "configs/sample.toml"]
    name = "_".join(path.stem for path in configs)
    out = base / args.out if args.out else ROOT / "runs" / name
    return [str(path.resolve()) for path in configs], str(out.resolve())


def _what_next(config: Config, args: argparse.Namespace) -> str:
    if config.data.source == "sample":
        command = f"{SCRIPT} configs/neu_seg_cpu.toml --set data.root=/path/to/NEU-Seg"
        return f"real images: {command}"
    other = f"--set loss.contrast=0.1 --out {args.out}-contrast-0.1"
    return f"other settings, kept apart: {SCRIPT} {shlex.join(args.config)} {other}"


def _minutes_since(begun: float) -> str:
    return f"{(time.monotonic() - begun) / 60:.1f} min"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=SCRIPT, description=f"Called by run_STAC.sh; {SCRIPT} --help says what for."
    )
    add = parser.add_argument
    add("configs", nargs="*", metavar="CONFIG")
    add("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE")
    add("--out", metavar="DIR")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto")
    add("--restart", action="store_true")
    add("--skip-bad", action="store_true")
    add("--called-from", default=".", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    run_stage(main)
