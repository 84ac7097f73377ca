"""Put what a run gave on one page, OUT/report.html, or draw its pictures for a paper.

  python report.py --out runs/neu_seg               the page: no server, no other file needed
  python report.py --out runs/neu_seg --sheet       OUT/sheet_<split>.png, a row an image
  python report.py --out runs/neu_seg --generators  OUT/generators_<split>.png

The page shows the table of results where there are masks, how much of the images each class covers,
and the predictions of a split beside their images, largest defective area first; where there are no
predictions yet, the pseudo labels. Nothing is computed anew.

The sheet has the columns image, saliency, CAM (its classes in their colours), pseudo label,
prediction, and ground truth where there are masks; what has not been made yet stays black. Colours
are those of PASCAL VOC masks, white is 255. With --generators the columns between image and truth
are the maps of every saliency generator that the data allows, made for these images, and last those
of the run.
"""

import argparse
import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from configs.command_line import run_stage, stage_parser
from datasets.files import read_image, read_mask, voc_palette, write_image, write_text
from datasets.pictures import colour_legend, fit_cell, paint_mask
from datasets.record import BACKGROUND, IGNORE, Record
from execution.progress import progress
from inference.sheets import choose_records, generator_sheet, run_sheet
from models.device import select_device
from runfolder.results import results_table
from runfolder.run import Run, open_run

MASKS = {  # kinds of masks in the order of preference: what they are called on the page
    "segmentation": "predictions of the segmentation network, made without any label",
    "pseudo_label": "pseudo labels, made with the labels of the images",
}
PAGE_COUNT, SHEET_COUNT = 60, 10  # images shown
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 }
th, td { border-bottom: 1px solid #ccc; padding: .25em .7em; text-align: left }
figure { display: inline-block; margin: 0 1em 1em 0; vertical-align: top; width: 330px }
figcaption { overflow-wrap: anywhere }
.key { border: 1px solid #888; display: inline-block; height: .8em; width: .8em }
"""


class Shown(NamedTuple):
    """One image of the page."""

    record: Record
    areas: dict[int, float]  # class: share of the image, those above 0


def main(argv: Sequence[str] | None = None) -> None:
    """Write the report of a run, or a sheet."""
    args = _parser().parse_args(argv)
    run = open_run(args)
    if args.count is not None and args.count < 1:
        raise ValueError(f"--count: expected 1 or more, got {args.count}.")
    split = args.split or run.config.data.eval_split
    if args.sheet or args.generators:
        _write_sheet(run, split, args)
        return
    count = args.count or PAGE_COUNT
    kind = _kind(run, run.data.split(split))
    folder = run.maps_dir(kind)
    shown = [
        _look(record, folder, run.num_classes)
        for record in progress(run.data.split(split), "report")
    ]
    shown.sort(key=lambda one: (-sum(one.areas.values()), one.record.name))
    write_text(run.report_path, _page(run, kind, split, shown, count))
    print(f"wrote {run.report_path}: {min(count, len(shown))} of {len(shown)} images of {split}")


def _write_sheet(run: Run, split: str, args: argparse.Namespace) -> None:
    """Draw one of the two sheets."""
    records = [r for r in run.data.split(split) if r.classes or not args.generators]
    records = choose_records(records, args.count or SHEET_COUNT, args.random)
    if args.generators:
        sheet = generator_sheet(run, records, select_device(args.device))
    else:
        sheet = run_sheet(run, records)
    path = run.folder / f"{'generators' if args.generators else 'sheet'}_{split}.png"
    write_image(path, sheet)
    print(f"wrote {path}: {len(records)} images; {colour_legend(run.data.class_names)}")


def _kind(run: Run, records: Sequence[Record]) -> str:
    """Return the kind of the masks that are shown.

    Raises:
        FileNotFoundError: neither predictions nor pseudo labels are there.
    """
    for kind in MASKS:
        if all((run.maps_dir(kind) / f"{record.name}.png").is_file() for record in records):
            return kind
    raise FileNotFoundError(
        f"{run.folder}: expected predictions/ or pseudo_labels/ of all {len(records)} images. "
        "Run python -m segmentation.infer or make_pseudo_labels.py first, or give another --split."
    )


def _look(record: Record, folder: Path, num_classes: int) -> Shown:
    mask = read_mask(folder / f"{record.name}.png", num_classes)
    values, counts = np.unique(mask, return_counts=True)
    shares = zip(values.tolist(), (counts / mask.size).tolist(), strict=True)
    return Shown(record, {v - 1: s for v, s in shares if v not in (BACKGROUND, IGNORE)})


def _page(run: Run, kind: str, split: str, shown: Sequence[Shown], count: int) -> str:
    folder = run.maps_dir(kind)
    class_names, colours = run.data.class_names, voc_palette()[1:]
    has_results = run.results_path.is_file()
    table = results_table(run.results_path) if has_results else "not evaluated yet"
    figures = "\n".join(_figure(one, folder, class_names) for one in shown[:count])
    keys = " &nbsp; ".join(
        f'<span class="key" style="background: rgb{tuple(colour.tolist())}"></span> '
        f"{html.escape(name)}"
        for name, colour in zip(class_names, colours, strict=False)
    )
    settings = html.escape(run.config_path.read_text(encoding="utf-8"))
    title = html.escape(f"{run.config.data.source}: {run.folder.name}")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head>
<body>
<h1>{title}</h1>
<p>{len(shown)} images of the split {html.escape(split)}; {MASKS[kind]}.</p>
<h2>Results in %, against pixel masks</h2>
{_results(table)}
<h2>Defective areas</h2>
{_areas(shown, class_names)}
<h2>Images, largest defective area first ({min(count, len(shown))} of {len(shown)})</h2>
<p>{keys}</p>
{figures}
<h2>Settings</h2>
<details><summary>config.toml</summary><pre>{settings}</pre></details>
</body></html>
"""


def _results(table: str) -> str:
    """Turn the Markdown of `results_table` into HTML; one line of text stays a paragraph."""
    if not table.startswith("|"):
        return f"<p>{html.escape(table)}</p>"
    head, _, *rows = (
        [cell.strip() for cell in line[1:-1].split("|")] for line in table.split("\n")
    )
    return _table(head, rows)


def _areas(shown: Sequence[Shown], class_names: Sequence[str]) -> str:
    rows = []
    for k, name in enumerate(class_names):
        shares = [one.areas[k] for one in shown if k in one.areas]
        mean = f"{100 * float(np.mean(shares)):.2f} %" if shares else "-"
        rows.append([name, str(len(shares)), mean])
    nothing = sum(not one.areas for one in shown)
    rows.append(["nothing", str(nothing), "-"])
    return _table(["class", "images", "mean area in these"], rows)


def _figure(one: Shown, folder: Path, class_names: Sequence[str]) -> str:
    image = read_image(one.record.image)
    mask = read_mask(folder / f"{one.record.name}.png", len(class_names))
    cells = np.concatenate([fit_cell(image / 255), fit_cell(paint_mask(image, mask))], axis=1)
    file = io.BytesIO()
    Image.fromarray(cells).save(file, format="JPEG", quality=88)
    data = base64.b64encode(file.getvalue()).decode()
    name = html.escape(one.record.name)
    areas = sorted(one.areas.items(), key=lambda item: -item[1])
    what = ", ".join(f"{class_names[k]} {100 * share:.2f} %" for k, share in areas) or "nothing"
    return (
        f'<figure><img src="data:image/jpeg;base64,{data}" alt="{name} and its mask">'
        f"<figcaption>{name}: {html.escape(what)}</figcaption></figure>"
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    body = "\n".join(line(row, "td") for row in rows)
    return f"<table>\n{line(head, 'th')}\n{body}\n</table>"


def _parser() -> argparse.ArgumentParser:
    parser = stage_parser(__doc__)
    add = parser.add_argument
    add("--split", help="split to show (default: data.eval_split)")
    shown = f"images to show (default: {PAGE_COUNT}, of a sheet {SHEET_COUNT})"
    add("--count", type=int, metavar="N", help=shown)
    random = "of a sheet: draw images at random (default: evenly spaced)"
    add("--random", type=int, metavar="SEED", help=random)
    add = parser.add_mutually_exclusive_group().add_argument
    add("--sheet", action="store_true", help="draw all stages of some images")
    add("--generators", action="store_true", help="draw the maps of all saliency generators")
    return parser


if __name__ == "__main__":
    run_stage(main)
