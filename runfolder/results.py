"""The results of a run: one JSON line each in results.jsonl, and the table they make."""

import json
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from configs import fingerprint
from configs.fields import SPLITS
from datasets.files import append_lines, read_lines, write_csv
from runfolder.run import KINDS, Run
from scoring.lines import percent, with_interval

NO_RESULTS = "no results: none of the images has a mask to be scored against."
TABLE_END = ("mIoU", "fg IoU", "report mIoU", "threshold")  # columns after those of the classes


def results_table(path: Path) -> str:
    """Return the `latest_results` of a file as a Markdown table."""
    results = latest_results(path)
    tables = [
        _table([mask_cells(row) for row in results if "iou" in row], NO_RESULTS),
        _table([image_cells(row) for row in results if "image" in row], ""),
    ]
    return "\n\n".join(filter(None, tables))


def _table(rows: Sequence[Mapping[str, str]], otherwise: str) -> str:
    if not rows:
        return otherwise
    columns = table_columns(rows)
    widths = {c: max(len(row.get(c, "-")) for row in [{c: c}, *rows]) for c in columns}
    lines = [dict(zip(columns, columns, strict=True)), {c: "-" * widths[c] for c in columns}, *rows]
    return "\n".join(
        "| " + " | ".join(line.get(c, "-").ljust(widths[c]) for c in columns) + " |"
        for line in lines
    )


def table_columns(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the columns of a table of cells: stage, classes, and last their means."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return [c for c in columns if c not in TABLE_END] + [c for c in TABLE_END if c in columns]


def write_results_csv(path: Path, to: Path) -> None:
    """Write the results of the table as CSV, all figures of a result in a row.

    Args:
        path: results.jsonl.
        to: file to write; nested figures get names such as detailed.dice.0.
    """
    rows = [_flat(row) for row in latest_results(path)]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    write_csv(to, [columns, *([row.get(column, "") for column in columns] for row in rows)])


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return the plain values in nested ones, by their path."""
    if isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, list):
        parts = enumerate(value)
    else:
        return {name: value}
    flat: dict[str, Any] = {}
    for key, part in parts:
        flat |= _flat(part, f"{name}.{key}" if name else str(key))
    return flat


def latest_results(path: Path) -> list[dict[str, Any]]:
    """Return the latest result of each kind, split, part, labels and threshold rule.

    Raises:
        FileNotFoundError: no results yet.
        ValueError: a line is not a result.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: expected results. Run evaluation.py with --kind first.")
    latest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for number, line in enumerate(read_lines(path), start=1):
        try:
            row = json.loads(line)
            latest[_place(row)] = row
            mask_cells(row) if "iou" in row else image_cells(row)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise not_a_result(path, number, line) from error
    return [latest[place] for place in sorted(latest)]


def not_a_result(path: Path, number: int, line: str) -> ValueError:
    """Return the error of a line, counted from 1, that evaluation.py has not written."""
    return ValueError(
        f"{path}, line {number}: expected a result of evaluation.py, got {line:.40}. "
        "Remove the line."
    )


def _place(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return where a result stands in the table; of equal places the latest result counts."""
    stage, split = list(KINDS).index(row["kind"]), SPLITS.index(row["split"])
    part, bound = row.get("part", "all"), row.get("bound", False)
    return stage, row.get("cam_type", ""), row["labels"], split, part, row["threshold_rule"], bound


def image_cells(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the figures of whole images of a result, by the column of their table."""
    figures = row["image"]
    of_classes = {
        f"F1 {name}": percent(of_class["f1"]) for name, of_class in figures["classes"].items()
    }
    return {
        "of whole images": "localiser" if row["kind"] == "cam" else row["kind"],
        "split": row["split"] + ("" if row.get("part", "all") == "all" else f" ({row['part']})"),
        "labels": row["labels"],
        "defective, good": f"{figures['defective']}, {figures['good']}",
        "flagged %": with_interval(figures, "found"),
        "false alarms %": with_interval(figures, "false_alarms"),
        "AUROC": with_interval(figures, "auroc"),
        **of_classes,
    }


def stage_of(row: Mapping[str, Any]) -> str:
    """Return the name of the stage that a result is of, as tables have it."""
    return f"cam ({row['cam_type']})" if row["kind"] == "cam" else row["kind"]


def mask_cells(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the figures of a result against masks, by the column of their table."""
    threshold = row["threshold"]
    several = threshold if isinstance(threshold, list) else [threshold]  # one for each class
    levels = " ".join("-" if level is None else f"{level:.3f}" for level in several)
    chosen = levels if threshold is None else f"{levels} ({row['threshold_rule']})"
    masks = f" + {row['masks_used']} masks" if row.get("masks_used") else ""
    bound = ", bound" if row.get("bound") else ""
    part = "" if row.get("part", "all") == "all" else f" ({row['part']})"
    start = {
        "stage": stage_of(row),
        "split": row["split"] + part,
        "labels": row["labels"] + masks + bound,
    }
    ious = {name: percent(iou) for name, iou in row["iou"].items()}
    end = {"mIoU": percent(row["miou"]), "fg IoU": percent(row["fg_iou"]), "threshold": chosen}
    report = {"report mIoU": percent(row["report"]["miou"])} if row.get("report") else {}
    return start | ious | end | report


def append_results(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON line a row; without rows the file is there all the same."""
    append_lines(path, [json.dumps(row, allow_nan=False) for row in rows])


def origin(run: Run | None = None) -> dict[str, Any]:
    """Return where a result comes from: hash of the settings, commit of the code, date.

    "dirty" tells whether tracked files differed from the commit, None where git does not say.
    """
    commit = _git("rev-parse", "--short", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return {
        **({} if run is None else {"config_sha": fingerprint(run.config)}),
        "commit": commit or "unknown",
        "dirty": None if changes is None else bool(changes),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _git(*words: str) -> str | None:
    """Return what git says of this repository, None where it says nothing."""
    try:
        done = subprocess.run(
            ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
