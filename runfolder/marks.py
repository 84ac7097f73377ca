"""What a run folder remembers of its stages, so that a stopped run goes on where it was."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from datasets.files import append_lines, read_lines, write_json, write_lines, write_text
from datasets.sources import GROUPS_NAME
from runfolder.results import not_a_result
from runfolder.run import Run

SECONDS_NAME = "seconds.json"  # of stages/


class Stage(NamedTuple):
    """One stage of a run.

    Attributes:
        name: of the stage, as messages and marks have it.
        module: that is run with python -m.
        reads: what it takes, for messages.
        writes: what is its own in the run folder, the main folder first.
        sections: of the config that its files depend on, added to those of earlier stages.
        kind: as evaluation.py scores its files, or None.
    """

    name: str
    module: str
    reads: str
    writes: tuple[str, ...]
    sections: tuple[str, ...]
    kind: str | None = None


class Marks:
    """What `stages/` of a run folder remembers of each stage.

    <stage>.started holds the hash of the settings from the stage's first file on, <stage>.done when
    all its files are complete and scored; `labels` says which data set labels.csv was made from,
    seconds.json how long each stage took.
    """

    def __init__(self, run: Run, stages: Sequence[Stage]):
        self.run = run
        self.stages = stages
        self.folder = run.folder / "stages"

    def started(self, stage: Stage) -> str:
        """Return the settings' hash a stage was begun with, empty if it was not."""
        return self._read(f"{stage.name}.started")

    def done(self, stage: Stage) -> str:
        """Return the settings' hash a stage was finished with, empty if it was not."""
        return self._read(f"{stage.name}.done")

    def start(self, stage: Stage, settings: str) -> None:
        """Remember that a stage is begun."""
        write_text(self.folder / f"{stage.name}.started", f"{settings}\n")

    def finish(self, stage: Stage, settings: str) -> None:
        """Remember that a stage is complete."""
        write_text(self.folder / f"{stage.name}.done", f"{settings}\n")

    def add_seconds(self, stage: Stage, seconds: float) -> None:
        """Remember that a stage was at work; what continued a stopped one adds up."""
        spent = seconds_of(self.run)
        spent[stage.name] = spent.get(stage.name, 0.0) + seconds
        write_json(self.folder / SECONDS_NAME, spent)

    def has_files(self, stage: Stage) -> bool:
        """Tell whether the stage's own folder is there."""
        return (self.run.folder / stage.writes[0]).exists()

    def refuse_foreign_files(self) -> None:
        """Check that no stage's folder was made otherwise, so that none is removed by mistake.

        Raises:
            ValueError: names the first one.
        """
        for stage in self.stages:
            if not self.started(stage) and self.has_files(stage):
                raise ValueError(
                    f"{self.run.folder}: expected only files of run_STAC.sh, got some of stage "
                    f"{stage.name} that were made otherwise. Remove them, or give another --out."
                )

    def forget_other_labels(self, restart: bool) -> None:
        """Remove labels.csv if it was made from another data set; one of the user's stays.

        So too groups.csv, which is made anew anyway where it does not fit the images.
        """
        data, path = self.run.config.data, self.run.labels_path
        origin, made_from = f"{data.source} {data.root}", self._read("labels")
        if made_from and (made_from != origin or restart):
            path.unlink(missing_ok=True)
            path.with_name(GROUPS_NAME).unlink(missing_ok=True)
        if not path.exists():
            write_text(self.folder / "labels", f"{origin}\n")

    def forget_from(self, first: int) -> None:
        """Remove what the stages from a place on have made, the last one first."""
        made = [stage for stage in self.stages[first:] if self.started(stage)][::-1]
        if made:
            names = " ".join(stage.name for stage in made)
            print(f"removing what an earlier call made, stages {names}", flush=True)
        for stage in made:
            self._forget(stage)

    def _forget(self, stage: Stage) -> None:
        """Remove a stage's files and results; these leave the table, as their files are gone."""
        gone, kept = self._results_of(stage)
        (self.folder / f"{stage.name}.done").unlink(missing_ok=True)
        for name in stage.writes:
            path = self.run.folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        if gone:
            append_lines(self.folder / "old_results.jsonl", gone)
            write_lines(self.run.results_path, kept)
        spent = seconds_of(self.run)
        if spent.pop(stage.name, None) is not None:
            write_json(self.folder / SECONDS_NAME, spent)
        (self.folder / f"{stage.name}.started").unlink(missing_ok=True)

    def _results_of(self, stage: Stage) -> tuple[list[str], list[str]]:
        """Return the lines of results.jsonl that are a stage's, and the others."""
        path = self.run.results_path
        if not stage.kind or not path.is_file():
            return [], []
        gone, kept = [], []
        for number, line in enumerate(read_lines(path), start=1):
            try:
                is_of_stage = json.loads(line)["kind"] == stage.kind
            except (ValueError, KeyError, TypeError) as error:
                raise not_a_result(path, number, line) from error
            (gone if is_of_stage else kept).append(line)
        return gone, kept

    def _read(self, name: str) -> str:
        path = self.folder / name
        return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


def seconds_of(run: Run) -> dict[str, float]:
    """Return how long each stage took, its scores too; nothing of stages that ran by themselves.

    Raises:
        ValueError: the file is damaged.
    """
    path: Path = run.folder / "stages" / SECONDS_NAME
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): float(seconds) for name, seconds in content.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: expected seconds by stage, got: {error}. Remove the file."
        ) from error
