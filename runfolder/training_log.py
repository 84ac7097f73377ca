"""The log of a training: one line of JSON an epoch, TensorBoard curves, and what is printed.

Both trainings have this schema:

    {"epoch": 1, "step": 18, "lr": 0.001, "train": {term: mean}, "val": {measure: value},
     "seconds": 3.2}

"val" is there in epochs that end with a validation. A value that is no number is null.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from datasets.files import append_lines, read_lines, write_lines


class TrainingLog:
    """Writes log.jsonl and tensorboard/ of a training's folder."""

    def __init__(self, folder: Path, num_steps: int, first_epoch: int):
        """Begin, or go on.

        Args:
            folder: stac/ or segmentation/ of a run.
            num_steps: of the whole training.
            first_epoch: number of the next epoch, from 1; what an earlier log says of it and of
                later ones is removed.
        """
        self.path = folder / "log.jsonl"
        self.num_steps = num_steps
        kept = [line for line in read_lines(self.path) if self._epoch(line) < first_epoch]
        write_lines(self.path, kept)
        self.writer = SummaryWriter(folder / "tensorboard", purge_step=first_epoch)

    def _epoch(self, line: str) -> int:
        try:
            return int(json.loads(line)["epoch"])
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            raise ValueError(
                f"{self.path}: expected an epoch in each line, got {line:.40}. Remove the line."
            ) from error

    def close(self) -> None:
        """Write what TensorBoard still holds back."""
        self.writer.close()

    def write(self, line: Mapping[str, Any]) -> None:
        """Append an epoch's line, add its numbers to the curves, and print them."""
        plain = {
            key: {k: _number(v) for k, v in value.items()} if isinstance(value, Mapping) else value
            for key, value in line.items()
        }
        append_lines(self.path, [json.dumps(plain, allow_nan=False)])
        for part in ("train", "val"):
            for name, value in line.get(part, {}).items():
                self.writer.add_scalar(f"{name}/{part}", value, line["epoch"])
        self.writer.add_scalar("lr", line["lr"], line["epoch"])
        self.writer.flush()  # the curves show each epoch at once
        terms = ", ".join(f"{name} {value:.3f}" for name, value in line["train"].items())
        took = f"({line['seconds']:.0f} s)"
        print(f"epoch {line['epoch']}, step {line['step']} of {self.num_steps}: {terms} {took}")
        if "val" in line:
            measures = ", ".join(f"{name} {value:.3f}" for name, value in line["val"].items())
            print(f"  validation: {measures}")


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
