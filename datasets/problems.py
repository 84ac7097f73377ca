"""What can be wrong with a data set, and how it is told."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

STOPS_TRAINING = "stops training"
STOPS_SCORING = "stops evaluation.py, not training"
KINDS = {  # kind of problem: what comes of it
    "unreadable image": STOPS_TRAINING,
    "unusable name": STOPS_TRAINING,
    "duplicate name": STOPS_TRAINING,
    "folder without pictures": STOPS_TRAINING,
    "picture too small or too narrow": STOPS_TRAINING,
    "one picture under different labels": STOPS_TRAINING,
    "saliency map": STOPS_TRAINING,
    "left out beside the images": "not read: other kinds of files, sub-folders",
    "class without training images": "never learnt; its folder or cell may be mistyped",
    "similar class names": "two classes to the network; one may be mistyped",
    "names that differ in case only": "one file where a system takes both for the same",
    "long name": "some file systems and tools take less than 200 bytes",
    "nearly black 16-bit picture": "65,535 is read as white; multiply its values",
    "CMYK picture": "turned to RGB without its colour profile",
    "near copies in different splits": "leakage: scores measure memory; see data.clean_test",
    "near copies in one split": "seen more than once; no draw of val or test divides them",
    "identical images in different splits": "leakage, scores come out too high",
    "identical images in one split": "trained on or scored more than once",
    "unreadable mask": STOPS_SCORING,
    "unknown mask value": STOPS_SCORING,
    "mask of another size than its image": STOPS_SCORING,
    "outline beyond the image": "cut at the edges; it may belong to another picture",
    "label without mask": "not scored, though other images of its split have masks",
    "label without mask content": "label or mask is wrong",
    "mask content without label": "label or mask is wrong",
}
SHOWN = 5  # of many


class Problem(NamedTuple):
    """One thing wrong.

    Attributes:
        kind: key of `KINDS`.
        text: what was found, with the file it was found in.
        paths: the pictures, or the folder, that a run goes on without (`datasets.skipped`).
    """

    kind: str
    text: str
    paths: tuple[Path, ...] = ()


class Refused(ValueError):
    """What a reader cannot use, all at once.

    Attributes:
        problems: with the paths that it goes on without, once they are passed over.
    """

    def __init__(self, problems: Sequence[Problem]):
        self.problems = list(problems)
        count = f"{len(problems)} problems; the first: " if len(problems) > 1 else ""
        super().__init__(count + " | ".join(problem.text for problem in self.problems[:SHOWN]))


def problem_list(problems: Sequence[Problem]) -> str:
    """Return lines of all kinds of problems: their number, what comes of them, the first five."""
    lines = []
    for kind, consequence in KINDS.items():
        texts = [problem.text for problem in problems if problem.kind == kind]
        if texts:
            lines.append(f"{kind}: {len(texts)} ({consequence})")
            lines += [f"  {text}" for text in texts[:SHOWN]]
            lines += [f"  ... and {len(texts) - SHOWN} more"] if len(texts) > SHOWN else []
    return "\n".join(lines) or "no problems found"


def that_stop(problems: Iterable[Problem], *consequences: str) -> list[Problem]:
    """Return the problems that have one of these consequences."""
    return [problem for problem in problems if KINDS[problem.kind] in consequences]
