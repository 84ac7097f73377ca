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


class TrainingLog:
    """Writes log.jsonl and tensorboard/ of a training's folder."""

    def __init__(self, folder: Path, num_steps: int, first_epoch: int):
        """Begin, or go on.

        Args:
            folder: stac/ or segmentation/ of a run.
            num_steps: of the whole training.
            first_epoch: number of the next epoch, from 1; with 1 an earlier log is removed.
        """
        self.path = folder / "log.jsonl"
        self.num_steps = num_steps
        if first_epoch == 1:
            self.path.unlink(missing_ok=True)
        self.writer = SummaryWriter(folder / "tensorboard", purge_step=first_epoch)

    def close(self) -> None:
        """Write what TensorBoard still holds back."""
        self.writer.close()

    def write(self, line: Mapping[str, Any]) -> None:
        """Append an epoch's line, add its numbers to the curves, and print them."""
        plain = {
            key: {k: _number(v) for k, v in value.items()} if isinstance(value, Mapping) else value
            for key, value in line.items()
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain, allow_nan=False) + "\n")
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
