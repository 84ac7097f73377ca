"""Put what a run found on one page, OUT/report.html: no server, no other file needed.

Shows the table of results where there are masks, how much of the images each class covers, and the
predictions of a split beside their images, largest defective area first; where there are no
predictions yet, the pseudo labels. Nothing is computed anew.
"""

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from configs.command_line import load_run, run_stage, stage_parser
from configs.schema import Config
from datasets.files import read_image, read_mask, voc_palette
from datasets.pictures import fit_cell, paint_mask
from datasets.record import BACKGROUND, IGNORE, Record
from datasets.sources import read_data
from results import results_table

FOLDERS = {  # in the order of preference: what their masks are called on the page
    "predictions": "predictions of the segmentation network, made without any label",
    "pseudo_labels": "pseudo labels, made with the labels of the images",
}
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 60em; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 }
th, td { border-bottom: 1px solid #ccc; padding: .25em .7em; text-align: left }
figure { display: inline-block; margin: 0 1em 1em 0; vertical-align: top; width: 330px }
figcaption { overflow-wrap: anywhere }
.key { border: 1px solid #888; display: inline-block; height: .8em; width: .8em }
"""


class Found(NamedTuple):
    """What was found in one image."""

    record: Record
    areas: dict[int, float]  # class: share of the image, those above 0


def main(argv: Sequence[str] | None = None) -> None:
    """Write the report of a run."""
    parser = stage_parser(__doc__)
    parser.add_argument("--split", help="split to show (default: data.eval_split)")
    parser.add_argument("--count", type=int, default=60, help="images to show (default: 60)")
    args = parser.parse_args(argv)
    config, out_dir = load_run(args)
    if args.count < 1:
        raise ValueError(f"--count: expected 1 or more, got {args.count}.")
    split = args.split or config.data.eval_split
    data = read_data(config.data, out_dir / "labels.csv")
    folder = _folder(out_dir, data.split(split))
    found = [
        _look(record, folder, len(data.class_names))
        for record in tqdm(data.split(split), "report", disable=None)
    ]
    found.sort(key=lambda one: (-sum(one.areas.values()), one.record.name))
    page = _page(config, out_dir, folder, split, found, data.class_names, args.count)
    path = out_dir / "report.html"
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(page, encoding="utf-8")
    temporary.replace(path)
    print(f"wrote {path}: {min(args.count, len(found))} of {len(found)} images of {split}")


def _folder(out_dir: Path, records: Sequence[Record]) -> Path:
    """Return the folder whose masks are shown.

    Raises:
        FileNotFoundError: neither predictions nor pseudo labels are there.
    """
    for name in FOLDERS:
        if all((out_dir / name / f"{record.name}.png").is_file() for record in records):
            return out_dir / name
    raise FileNotFoundError(
        f"{out_dir}: expected predictions/ or pseudo_labels/ of all {len(records)} images. "
        "Run segmentation/infer.py or make_pseudo_labels.py first, or give another --split."
    )


def _look(record: Record, folder: Path, num_classes: int) -> Found:
    mask = read_mask(folder / f"{record.name}.png", num_classes)
    values, counts = np.unique(mask, return_counts=True)
    shares = zip(values.tolist(), (counts / mask.size).tolist(), strict=True)
    return Found(record, {v - 1: s for v, s in shares if v not in (BACKGROUND, IGNORE)})


def _page(
    config: Config,
    out_dir: Path,
    folder: Path,
    split: str,
    found: Sequence[Found],
    class_names: Sequence[str],
    count: int,
) -> str:
    colours = voc_palette()[1:]
    results = out_dir / "results.jsonl"
    table = results_table(results) if results.is_file() else "not evaluated yet"
    figures = "\n".join(_figure(one, folder, class_names) for one in found[:count])
    keys = " &nbsp; ".join(
        f'<span class="key" style="background: rgb{tuple(colour.tolist())}"></span> '
        f"{html.escape(name)}"
        for name, colour in zip(class_names, colours, strict=False)
    )
    settings = html.escape((out_dir / "config.toml").read_text(encoding="utf-8"))
    title = html.escape(f"{config.data.source}: {out_dir.name}")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head>
<body>
<h1>{title}</h1>
<p>{len(found)} images of the split {html.escape(split)}; {FOLDERS[folder.name]}.</p>
<h2>Results in %, against pixel masks</h2>
{_results(table)}
<h2>What was found</h2>
{_areas(found, class_names)}
<h2>Images, largest defective area first ({min(count, len(found))} of {len(found)})</h2>
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


def _areas(found: Sequence[Found], class_names: Sequence[str]) -> str:
    rows = []
    for k, name in enumerate(class_names):
        shares = [one.areas[k] for one in found if k in one.areas]
        mean = f"{100 * float(np.mean(shares)):.2f} %" if shares else "-"
        rows.append([name, str(len(shares)), mean])
    nothing = sum(not one.areas for one in found)
    rows.append(["nothing", str(nothing), "-"])
    return _table(["class", "images", "mean area in these"], rows)


def _figure(one: Found, folder: Path, class_names: Sequence[str]) -> str:
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


if __name__ == "__main__":
    run_stage(main)
