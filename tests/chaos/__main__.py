"""Stop runs at random moments, and compare what they give in the end with an undisturbed run.

    python tests/chaos --kills 100 --disks 20 --denials 10 --seed 0

A small run of all stages (built-in sample, one thread) is made once in peace. Others are

- killed: SIGKILL to all of its processes, SIGTERM or SIGINT to run_STAC.sh's, at a random moment,
  and the same command again, until the run is complete;
- given a full disk: the run folder lies on a file system of a random size (tmpfs, needs root),
  which grows once the run has ended with an error;
- refused: a folder of the run or of the images cannot be read any more, until the run has ended.
  As root may read everything, the user nobody makes the run then, and must be able to run Python.

Final table, maps, masks and weights must equal those of the undisturbed run, and an error is one
line. The exit code is 1 if not.
"""

import argparse
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from configs.command_line import ROOT, run_stage
from runfolder.checkpoint import load_checkpoint
from runfolder.results import latest_results

SETTINGS = (
    "data.sample_train=24", "data.sample_test=6", "data.val_fraction=0.25", "data.workers=0",
    "saliency.weights=none", "train.depth=2", "train.image_size=[64,64]", "train.epochs=3",
    "train.pixel_block=1", "train.projection_width=16", "train.attention_layers=1",
    "train.eval_every=1", "train.batch_size=4", "loss.num_anchors=16", "loss.num_negatives=16",
    "segmentation.epochs=3", "segmentation.image_size=[64,64]", "segmentation.batch_size=4",
)  # fmt: skip
VARYING = ("commit", "dirty", "date", "seconds")  # of a row of results.jsonl
FOLDERS = ("saliency", "cams", "pseudo_labels", "predictions")
NOBODY = 65534
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
LONGEST = 1800  # seconds of a call


class Chaos:
    """Runs of one config below a folder."""

    def __init__(self, folder: Path, seed: int):
        self.folder = folder
        self.random = random.Random(seed)
        self.outcomes: Counter[str] = Counter()
        self.faults: list[str] = []
        self.seconds = 0.0  # of the undisturbed run
        self.expected: dict[str, Any] = {}

    def call(self, out: Path, user: int | None = None) -> subprocess.Popen:
        """Begin or continue a run."""
        log = (self.folder / "log").open("wb")
        command = [sys.executable, "pipeline.py", "configs/sample.toml", "--out", str(out)]
        settings = ["--set", f"data.root={self.folder / 'data'}", *SETTINGS, "--device", "cpu"]
        return subprocess.Popen(
            [*command, *settings],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            user=user,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )

    def in_peace(self) -> None:
        """Make the run that others are compared with."""
        begun = time.monotonic()
        if self.call(self.folder / "peace").wait():
            raise RuntimeError(f"the undisturbed run failed:\n{self.log()}")
        self.seconds = time.monotonic() - begun
        self.expected = made(self.folder / "peace")
        print(f"undisturbed: {self.seconds:.0f} s, {len(self.expected)} files and rows", flush=True)

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def compare(self, out: Path, what: str) -> None:
        """Compare a finished run, and remove it if it is equal."""
        found = made(out)
        other = sorted(
            name
            for name in self.expected.keys() | found.keys()
            if self.expected.get(name) != found.get(name)
        )
        if other:
            self.faults.append(f"{what}: {len(other)} differ: {', '.join(other[:5])}, see {out}")
            print(self.faults[-1], flush=True)
        else:
            self.outcomes[f"{what}: equal"] += 1
            shutil.rmtree(out)

    def refuse_traceback(self, what: str) -> None:
        """Note an error that is more than a line, but for Ctrl-C while a library is loaded."""
        log = self.log()
        if "Traceback" in log and not re.search(r"^KeyboardInterrupt$", log, re.MULTILINE):
            self.faults.append(f"{what}: traceback\n{self.log()[-3000:]}")
            print(self.faults[-1], flush=True)

    def killed_runs(self, kills: int) -> None:
        """Kill so many times; a run that is complete gives way to a new one."""
        number, done = 0, 0
        while done < kills:
            out = self.folder / f"killed_{number}"
            own, code = [], None
            while code != 0:
                process = self.call(out)
                if done < kills:
                    # Early ones are more frequent; late ones let it come through all stages.
                    moment = self.seconds * self.random.random() ** 2
                    code = wait(process, moment)
                    if code is None:
                        own.append(self.kill(process))
                        done += 1
                        continue
                code = wait(process, LONGEST)
                if code:
                    self.faults.append(f"ended with {code} by itself\n{self.log()[-3000:]}")
                    print(self.faults[-1], flush=True)
                    return
            self.compare(out, "killed run")
            number += 1
            print(f"{done} of {kills} kills, {' '.join(own)}", flush=True)

    def kill(self, process: subprocess.Popen) -> str:
        """End a run by a signal; return its name and the stage that it met."""
        name = self.random.choice(SIGNALS)
        if name == signal.SIGTERM:
            process.terminate()  # as a cluster does; the stage is told
        else:
            os.killpg(process.pid, name)  # as a power cut, or Ctrl-C
        wait(process, LONGEST)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        stages = [line for line in self.log().splitlines() if line.startswith("[")]
        stage = stages[-1].split("]")[1].split(":")[0].split()[0] if stages else "before"
        self.outcomes[f"{name.name} in {stage}"] += 1
        self.refuse_traceback(name.name)
        return f"{name.name}:{stage}"

    def full_disks(self, count: int) -> None:
        """Let a disk be full at so many sizes, from nothing to nearly the whole run."""
        size = sum(path.stat().st_size for path in (self.folder / "peace").rglob("*"))
        for number in range(count):
            disk = self.folder / "disk"
            disk.mkdir(exist_ok=True)
            room = 64_000 + round(size * (number + self.random.random()) / count)
            mount = ["mount", "-t", "tmpfs", "-o", f"size={room}", "tmpfs", str(disk)]
            subprocess.run(mount, check=True)
            try:
                code = self.call(disk / "run").wait()
                self.outcomes[f"full disk: exit code {code}"] += 1
                self.refuse_traceback(f"disk of {room} bytes")
                grow = ["mount", "-o", f"remount,size={4 * size + 10**8}", str(disk)]
                subprocess.run(grow, check=True)
                if self.call(disk / "run").wait():
                    raise RuntimeError(f"disk of {room} bytes, after it grew:\n{self.log()}")
                self.compare(disk / "run", "full disk")
            finally:
                subprocess.run(["umount", str(disk)], check=True)
            print(f"{number + 1} of {count} disks, the last of {room} bytes", flush=True)

    def denials(self, count: int) -> None:
        """Take away a read permission so many times, each in a run of its own."""
        user = NOBODY if os.geteuid() == 0 else None  # root may read everything
        for number in range(count):
            out = self.folder / f"denied_{number}"
            if user:
                out.mkdir()
                for path in (self.folder, *self.folder.rglob("*")):
                    os.chown(path, user, user)
            process = self.call(out, user)
            wait(process, self.random.uniform(3, 0.8 * self.seconds))
            folders = [path for path in (*out.iterdir(), self.folder / "data") if path.is_dir()]
            folder = self.random.choice(folders)
            mode = folder.stat().st_mode
            folder.chmod(0)
            code = wait(process, LONGEST)
            self.outcomes[f"no permission: exit code {code}"] += 1
            self.refuse_traceback(f"no permission for {folder.name}")
            folder.chmod(mode)
            if self.call(out, user).wait():
                raise RuntimeError(f"no permission for {folder}, given back:\n{self.log()}")
            self.compare(out, "no permission")
            print(f"{number + 1} of {count} denials, the last of {folder.name}", flush=True)


def wait(process: subprocess.Popen, seconds: float) -> int | None:
    """Return the exit code of a process, None if it is still at work after so long."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None


def made(out: Path) -> dict[str, Any]:
    """Return what a run has made: rows of the table, hashes of maps and masks, weights."""
    found: dict[str, Any] = {}
    for number, row in enumerate(latest_results(out / "results.jsonl")):
        found[f"row {number}"] = {k: v for k, v in row.items() if k not in VARYING}
    for folder in FOLDERS:
        for path in sorted((out / folder).rglob("*")):
            if path.is_file():
                name = str(path.relative_to(out))
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    for name in ("stac", "segmentation"):
        weights = load_checkpoint(out / name / "checkpoint.pt", "run_STAC.sh")["model"]
        for key, values in weights.items():
            found[f"{name} {key}"] = hashlib.sha256(values.numpy().tobytes()).hexdigest()
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Disturb runs and count what comes of it."""
    parser = argparse.ArgumentParser(
        prog="python tests/chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--kills", type=int, default=0, metavar="N")
    add("--disks", type=int, default=0, metavar="N", help="file systems of N sizes; needs root")
    add("--denials", type=int, default=0, metavar="N")
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("/tmp/chaos"), metavar="DIR", help="default: /tmp/chaos")
    args = parser.parse_args(argv)
    # Background jobs of a shell ignore Ctrl-C, and what they start would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    args.out.mkdir(parents=True)
    chaos = Chaos(args.out.resolve(), args.seed)
    chaos.in_peace()
    chaos.killed_runs(args.kills)
    chaos.full_disks(args.disks)
    chaos.denials(args.denials)
    for outcome, count in sorted(chaos.outcomes.items()):
        print(f"{count:5d} {outcome}")
    if chaos.faults:
        sys.exit(f"error: {len(chaos.faults)} faults, see above")


if __name__ == "__main__":
    run_stage(main)
