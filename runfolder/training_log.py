"""The log of a training: one line of JSON an epoch, TensorBoard, and what is printed.

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

import numpy as np

from datasets.files import append_lines, read_lines, write_lines

LOG_NAME = "log.jsonl"
NUM_PICTURES = 5  # of a whole training


def read_training_log(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a training's log.jsonl; none of one that is not there.

    Each has "val", which is empty without a validation; a value that is no number is None.

    Raises:
        ValueError: a line is not of the schema above.
    """
    log = []
    for number, line in enumerate(read_lines(path), start=1):
        try:
            entry = json.loads(line)
            entry["epoch"] = int(entry["epoch"])
            entry["lr"], entry["seconds"] = float(entry["lr"]), float(entry["seconds"])
            entry["train"] = _values(entry["train"])
            entry["val"] = _values(entry.get("val", {}))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(
                f"{path}, line {number}: expected an epoch of a training, got {line:.40}. "
                "Remove the line."
            ) from error
        log.append(entry)
    return log


def _values(of_part: Mapping[str, Any]) -> dict[str, float | None]:
    return {key: None if v is None else float(v) for key, v in of_part.items()}


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
        # Not above: it imports PyTorch, which readers of the log do not need.
        from torch.utils.tensorboard import SummaryWriter

        self.path = folder / LOG_NAME
        self.num_steps = num_steps
        lines = zip(read_lines(self.path), read_training_log(self.path), strict=True)
        write_lines(self.path, [line for line, entry in lines if entry["epoch"] < first_epoch])
        self.writer = SummaryWriter(folder / "tensorboard", purge_step=first_epoch)

    def close(self, settings: Mapping[str, Any]) -> None:
        """Add the settings and the last figures to TensorBoard's table of trainings (HParams).

        Args:
            settings: plain values by "section.key".
        """
        from torch.utils.tensorboard.summary import hparams

        # The table takes the figures from the curves. SummaryWriter.add_hparams would draw them a
        # second time, in a folder of its own for each call.
        last = read_training_log(self.path)[-1:]
        figures = {
            _tag(n, part): 0.0 for line in last for part in ("train", "val") for n in line[part]
        }
        plain = {k: v if isinstance(v, int | float | str) else str(v) for k, v in settings.items()}
        for summary in hparams(plain, figures):
            self.writer.file_writer.add_summary(summary)
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
                self.writer.add_scalar(_tag(name, part), value, line["epoch"])
        self.writer.add_scalar("lr", line["lr"], line["epoch"])
        self.writer.flush()  # the curves show each epoch at once
        terms = ", ".join(f"{name} {value:.3f}" for name, value in line["train"].items())
        took = f"({line['seconds']:.0f} s)"
        print(f"epoch {line['epoch']}, step {line['step']} of {self.num_steps}: {terms} {took}")
        if "val" in line:
            measures = ", ".join(f"{name} {value:.3f}" for name, value in line["val"].items())
            print(f"  validation: {measures}")

    def wants_picture(self, step: int, num_batches: int) -> bool:
        """Tell whether an epoch of `num_batches` steps that ends at `step` ends with a picture.

        A training has `NUM_PICTURES`, or one an epoch; the last epoch always has one.
        """
        before = max(step - num_batches, 0)
        return NUM_PICTURES * step // self.num_steps > NUM_PICTURES * before // self.num_steps

    def write_picture(self, epoch: int, picture: np.ndarray) -> None:
        """Add a picture of the held-out images, (H, W, 3) uint8, as they are after an epoch."""
        self.writer.add_image("held-out images", picture, epoch, dataformats="HWC")
        self.writer.flush()


def _tag(name: str, part: str) -> str:
    return f"{name}/{part}"


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
