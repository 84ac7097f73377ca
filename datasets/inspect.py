"""Look at a data set before training on it: what it holds, and what is wrong with it.

Opens every image and mask. Prints counts, sizes, picture modes, mask areas and the first five
problems of each kind with their number. Draws five images with their masks, OUT/inspect.png, and
five groups of pictures that show the same thing, OUT/copies.png. The exit code is 1 if training
would fail.
"""

import sys

if not __package__:  # run as a file, this folder would hide the standard library's inspect
    sys.exit("error: run it from the repository root as python -m datasets.inspect")

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, zip_longest
from pathlib import Path

import numpy as np

from configs.command_line import load_run, run_stage, stage_parser
from datasets.checks import area_quantiles, check_data, copies_in, count_labels, left_out
from datasets.files import read_image, read_truth, write_image
from datasets.pictures import colour_legend, fit_cell, paint_mask
from datasets.problems import SHOWN, STOPS_TRAINING, problem_list, that_stop
from datasets.record import Record
from datasets.record_checks import Facts
from datasets.sources import Data, annotated_in, draw_warnings, read_data

NUM_EXAMPLES = 5


def main(argv: Sequence[str] | None = None) -> None:
    """Inspect the data set of a config."""
    config, out_dir = load_run(stage_parser(__doc__).parse_args(argv))
    data = read_data(config.data, out_dir / "labels.csv")
    data.split(config.data.eval_split)  # refuses one that is not there, as the stages do
    facts, problems = check_data(data)
    if config.data.source == "folder":
        problems += left_out(data)

    print(f"{config.data.source}, {config.data.root}\n")
    print(f"{_counts(data)}\nfit is trained on, val is held out; copies count as one picture\n")
    if config.data.annotations:
        print(f"{_annotated(annotated_in(data, config.data), config.data.annotations)}\n")
    print(f"{_sizes(facts)}\n{_modes(facts)}\n")
    print(f"{_areas(facts, data.class_names)}\n")
    examples = choose_examples(facts)
    if examples:
        _draw(out_dir / "inspect.png", examples, data.class_names)
    copies = copies_in(facts)
    if copies:
        _draw_copies(out_dir / "copies.png", copies)
    for line in draw_warnings(data):
        print(f"warning: {line}")
    print(f"\n{problem_list(problems)}")
    fatal = that_stop(problems, STOPS_TRAINING)
    if fatal:
        raise ValueError(
            f"{config.data.root}: expected data to train on, got {len(fatal)} problems that stop "
            "training. Replace or remove the files named above."
        )


def _counts(data: Data) -> str:
    heads = ("split", "images", "pictures", *data.class_names, "several classes", "defect-free")
    rows = [heads]
    for split, records in data.splits.items():
        classes, *special = count_labels(records, len(data.class_names))
        shares = [f"{n} ({100 * n / max(1, len(records)):.1f} %)" for n in special]
        pictures = len({record.group for record in records})
        rows.append((split, str(len(records)), str(pictures), *map(str, classes), *shares))
    return _table(rows)


def _annotated(by_split: Mapping[str, Sequence[Record]], given: str) -> str:
    """Say how many images have their mask from data.annotations."""
    names = {record.name for records in by_split.values() for record in records}
    counts = ", ".join(f"{split} {len(records)}" for split, records in by_split.items())
    return f"masks from {given}: {len(names)} images ({counts}); they are masks, not labels"


def _sizes(facts: Iterable[Facts]) -> str:
    sizes = Counter(one.size for one in facts if one.size)
    shown = ", ".join(f"{h} x {w} ({n})" for (h, w), n in sizes.most_common(SHOWN))
    if len(sizes) > SHOWN:
        heights, widths = zip(*sizes, strict=True)
        shown += f", ... {len(sizes)} different, heights {min(heights)} to {max(heights)}, "
        shown += f"widths {min(widths)} to {max(widths)}"
    return f"sizes, H x W: {shown}"


def _modes(facts: Iterable[Facts]) -> str:
    modes = Counter(one.mode for one in facts if one.mode)
    return "picture modes: " + ", ".join(f"{mode} ({n})" for mode, n in modes.most_common())


def _areas(facts: Sequence[Facts], class_names: Sequence[str]) -> str:
    if all(one.areas is None for one in facts):
        return "no masks: they are needed to score masks, not to learn"
    rows = [("area in %", "masks", "min", "25 %", "median", "75 %", "max")]
    for k, class_name in enumerate(class_names):
        count, shares = area_quantiles(facts, k)
        rows.append((class_name, str(count), *(f"{100 * share:.3f}" for share in shares)))
    return _table(rows)


def choose_examples(facts: Iterable[Facts]) -> list[Facts]:
    """Choose readable images: of each label in turn, frequent ones first, defect-free last."""
    by_label: dict[tuple[int, ...], list[Facts]] = {}
    for one in facts:
        if one.size:
            by_label.setdefault(one.record.classes, []).append(one)
    groups = sorted(by_label.values(), key=lambda g: (not g[0].record.classes, -len(g)))
    for group in groups:
        random.Random(0).shuffle(group)
        group.sort(key=lambda one: one.areas is None)  # those with masks first
    turns = chain.from_iterable(zip_longest(*groups))
    return [one for one in turns if one][:NUM_EXAMPLES]


def _draw(path: Path, examples: Sequence[Facts], class_names: Sequence[str]) -> None:
    """Write the examples side by side, and below them, if there are any, their masks."""
    columns = []
    has_masks = any(one.areas is not None for one in examples)
    for one in examples:
        image = read_image(one.record.image)
        cells = [image / 255]
        if one.areas is not None:
            cells.append(paint_mask(image, read_truth(one.record, len(class_names))))
        elif has_masks:
            cells.append(image / 255)
        columns.append(np.concatenate([fit_cell(cell) for cell in cells]))
    write_image(path, np.concatenate(columns, axis=1))
    print(f"wrote {path}: {'images above, with their masks below' if has_masks else 'images'}")
    for one in examples:
        label = ", ".join(class_names[k] for k in one.record.classes) or "defect-free"
        print(f"  {one.record.name}: {label}")
    if has_masks:
        print(colour_legend(class_names))


def _draw_copies(path: Path, copies: Sequence[Sequence[Facts]]) -> None:
    """Write the first groups as rows of pictures."""
    blank = np.zeros_like(fit_cell(np.zeros((1, 1, 3))))
    rows = []
    for group in copies[:NUM_EXAMPLES]:
        readable = [one for one in group if one.size][:NUM_EXAMPLES]
        cells = [fit_cell(read_image(one.record.image) / 255) for one in readable]
        rows.append(np.concatenate([*cells, *[blank] * (NUM_EXAMPLES - len(cells))], axis=1))
    write_image(path, np.concatenate(rows))
    images, largest = sum(map(len, copies)), max(map(len, copies))
    print(
        f"\nwrote {path}: {len(rows)} of {len(copies)} groups that show the same thing, one a row; "
        f"{images} images are in such groups, the largest has {largest}"
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Align columns, the first to the left and the others to the right."""
    columns = zip_longest(*rows, fillvalue="-")
    widths = [max(map(len, column)) for column in columns]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=False)]
        lines.append("  ".join(cells))
    return "\n".join(lines)


if __name__ == "__main__":
    run_stage(main)
