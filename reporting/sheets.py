"""Sheets for papers: a row an image, a captioned column for each stage of a run, or for each run.

All lengths are in inches.
"""

from collections.abc import Sequence
from itertools import compress
from operator import not_
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from datasets.atomic import write_atomically
from datasets.record import IGNORE, Record
from execution.progress import progress
from reporting.columns import Column, Row, read_row
from reporting.lettering import cut, text_width, wrap
from reporting.pictures import class_colours

WIDTH, MOST_CELL = 7.16, 1.5  # both columns of an IEEE page; the widest picture
LEAST_ROW = 0.55  # height that a name needs
GAP, MARGIN, LABEL = 0.05, 0.04, 0.32
LINE, LEGEND_LINE = 0.14, 0.18  # heights
SWATCH, RAMP = 0.14, 0.5  # widths, in the legend
SCALE_SHARE = 0.3  # of the width of an image: the longest scale bar
ROUND_LENGTHS = [n * 10**power for power in range(6) for n in (1, 2, 5)]  # pixels
LEAST_SCALED = 0.3  # height of a picture with room for the bar
SECOND_INK, FRAME = "#444444", "#999999"
CAPTION_SIZE, NAME_SIZE, SMALL_SIZE = 8, 7, 6  # points
PICTURE_DPI, PNG_DPI = 300, 150
STYLE = {
    "svg.fonttype": "none",  # letters stay letters
    "svg.hashsalt": "stac",
    "pdf.fonttype": 42,
    "text.hinting": "none",  # which would make letters wider than they are measured
    "text.parse_math": False,  # a class may be named "$x$"
}
FORMATS = {  # without dates: the same sheet has the same bytes
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "ModDate": None},
    "svg": {"Date": None},
}


class Key(NamedTuple):
    """One entry of the legend.

    Attributes:
        text: what it says.
        colour: of its swatch; None for the ramp from black to white.
    """

    text: str
    colour: str | None


def write_sheet(
    path: Path, records: Sequence[Record], columns: Sequence[Column], names: Sequence[str]
) -> list[Column]:
    """Draw a sheet and write it as PNG, PDF and SVG.

    Args:
        path: of the files, without their ending.
        records: images, one or more.
        columns: what is shown of each.
        names: of the K classes.

    Returns:
        The columns that were left out, as there is nothing in them.

    Raises:
        ValueError: that are all.
    """
    side = round(_cell_width(len(columns)) * PICTURE_DPI)
    rows = [read_row(record, columns, names, side) for record in progress(records, "sheet")]
    is_empty = [not any(row.pictures[i] is not None for row in rows) for i in range(len(columns))]
    kept = [column for column, empty in zip(columns, is_empty, strict=True) if not empty]
    if not kept:
        raise ValueError(
            f"--columns: expected something to show of {len(rows)} images, got nothing in "
            f"{', '.join(column.caption for column in columns)}. Name other columns."
        )
    rows = [
        row._replace(pictures=list(compress(row.pictures, map(not_, is_empty)))) for row in rows
    ]
    with matplotlib.rc_context(STYLE):
        figure = draw_sheet(rows, kept, names)
        for ending, about in FORMATS.items():
            # PDF and SVG keep the pixels of the pictures, which viewers scale.
            smooth = "antialiased" if ending == "png" else "none"
            for axes in figure.axes:
                for image in axes.images:
                    image.set_interpolation(smooth)
            dpi = PNG_DPI if ending == "png" else PICTURE_DPI
            how = {"format": ending, "dpi": dpi, "metadata": about}
            target = path.with_name(f"{path.name}.{ending}")
            write_atomically(target, lambda to, how=how: figure.savefig(to, **how))
    return list(compress(columns, is_empty))


def _cell_width(num_columns: int) -> float:
    return min(MOST_CELL, (WIDTH - 2 * MARGIN - LABEL + GAP) / num_columns - GAP)


def draw_sheet(rows: Sequence[Row], columns: Sequence[Column], names: Sequence[str]) -> Figure:
    """Draw a sheet.

    Args:
        rows: one or more.
        columns: of the pictures in each row.
        names: of the K classes.
    """
    # Lengths.
    count = len(columns)
    cell = _cell_width(count)
    inner = count * (cell + GAP) - GAP
    captions = [wrap(column.caption, CAPTION_SIZE, cell) for column in columns]
    keys = [_cut_key(key, inner) for key in _keys(rows, columns, names)]
    legend = _flow(keys, inner)
    head = LINE * max(map(len, captions)) + GAP
    heights = [max(LEAST_ROW, cell * min(1.0, row.size[0] / row.size[1])) for row in rows]
    body = sum(heights) + GAP * len(rows)
    page = Page(2 * MARGIN + LABEL + inner, 2 * MARGIN + head + body + LEGEND_LINE * len(legend))

    # Captions, rows, legend.
    lefts = [MARGIN + LABEL + i * (cell + GAP) for i in range(count)]
    for left, lines in zip(lefts, captions, strict=True):
        for number, line in enumerate(reversed(lines)):
            middle = MARGIN + head - GAP - (number + 0.5) * LINE
            page.text(left + cell / 2, middle, line, CAPTION_SIZE, ha="center")
    top = MARGIN + head
    sizes = [row.size for row in rows]
    for number, (row, height) in enumerate(zip(rows, heights, strict=True)):
        _write_name(page, row, names, (top, height))
        for left, picture in zip(lefts, row.pictures, strict=True):
            page.picture((left, top, cell, height), picture, row.size)
        if number == 0 or len(set(sizes)) > 1:
            _draw_scale(page.pictures[-count], row.size)
        top += height + GAP
    for line in legend:
        _draw_keys(page, line, top + LEGEND_LINE / 2)
        top += LEGEND_LINE
    return page.figure


class Page:
    """A figure whose places are inches from its left and upper borders.

    Attributes:
        figure: what is drawn on.
        pictures: the axes of all pictures, in pixels of their images.
    """

    def __init__(self, width: float, height: float):
        self.width, self.height = width, height
        self.figure = Figure((width, height), facecolor="white")
        self.ground = self.figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
        self.ground.axis("off")
        self.pictures: list[Axes] = []

    def text(self, x: float, y: float, text: str, size: float, **how: object) -> None:
        """Write one line, by default to the right of a place."""
        self.ground.text(x, y, text, size=size, **{"va": "center_baseline", **how})

    def picture(
        self,
        box: tuple[float, float, float, float],
        picture: np.ndarray | None,
        size: tuple[int, int],
    ) -> None:
        """Draw a picture in the middle of a box (left, top, width, height), at its own aspect.

        Args:
            box: that it fills as far as its aspect allows.
            picture: (h, w, 3) in [0, 1]; None draws an empty frame.
            size: (H, W) of the image that it is of.
        """
        left, top, width, height = box
        scale = min(width / size[1], height / size[0])
        height, width = scale * size[0], scale * size[1]
        left, top = left + (box[2] - width) / 2, top + (box[3] - height) / 2
        bottom = self.height - top - height
        axes = self.figure.add_axes(
            (left / self.width, bottom / self.height, width / self.width, height / self.height),
            xlim=(0, size[1]),
            ylim=(size[0], 0),
            xticks=(),
            yticks=(),
        )
        axes.spines[:].set_visible(picture is None)
        axes.spines[:].set(color=FRAME, linewidth=0.6)
        if picture is not None:
            axes.imshow(picture, extent=(0, size[1], size[0], 0), aspect="auto")
        else:
            axes.text(0.5, 0.5, "–", transform=axes.transAxes, ha="center", va="center")
        self.pictures.append(axes)


def _write_name(page: Page, row: Row, names: Sequence[str], place: tuple[float, float]) -> None:
    """Write the name and the label of an image beside its pictures, from below to above."""
    top, height = place
    label = ", ".join(names[k] for k in row.record.classes) or "defect-free"
    for x, text, size, colour in (
        (MARGIN + 0.07, row.record.name, NAME_SIZE, "black"),
        (MARGIN + 0.2, label, SMALL_SIZE, SECOND_INK),
    ):
        how = {"rotation": 90, "ha": "center", "va": "center", "color": colour}
        page.text(x, top + height / 2, cut(text, size, height - GAP), size, **how)


def _draw_scale(axes: Axes, size: tuple[int, int]) -> None:
    """Draw a bar of a round number of pixels: into the lower left corner, or below a flat image."""
    height, width = size
    length = max((n for n in ROUND_LENGTHS if n <= SCALE_SHARE * width), default=1)
    shown = axes.figure.get_figheight() * axes.get_position().height
    inch = height / shown  # in pixels of the image
    is_flat = shown < LEAST_SCALED
    bottom = height + 0.07 * inch if is_flat else height - GAP * inch
    bar = (GAP * inch, bottom - 0.03 * inch)
    look = {"fc": "white", "ec": "black", "lw": 0.5, "clip_on": False}
    axes.add_patch(Rectangle(bar, length, 0.03 * inch, **look))
    place = (GAP * inch, bottom + 0.02 * inch) if is_flat else (GAP * inch, bar[1] - 0.02 * inch)
    axes.text(
        *place,
        f"{length} px",
        size=SMALL_SIZE,
        color="white",
        va="top" if is_flat else "bottom",
        path_effects=[withStroke(linewidth=1.2, foreground="black")],
    )


def _keys(rows: Sequence[Row], columns: Sequence[Column], names: Sequence[str]) -> list[Key]:
    """Return what the legend explains: what the rows show."""
    kinds = {column.kind for column in columns}
    values = set().union(*(row.values for row in rows))
    keys = []
    if kinds & {"mask", "cam"}:
        colours = class_colours(len(names))
        keys += [Key(names[v - 1], colours[v - 1]) for v in sorted(values - {IGNORE})]
        keys += [Key("unknown", "white")] * (IGNORE in values)
    return [*keys, Key("saliency from 0 to 1", None)] if "map" in kinds else keys


def _cut_key(key: Key, width: float) -> Key:
    return key._replace(text=cut(key.text, CAPTION_SIZE, width - _key_width(key._replace(text=""))))


def _key_width(key: Key) -> float:
    swatch = RAMP if key.colour is None else SWATCH
    return swatch + 0.06 + text_width(key.text, CAPTION_SIZE) + 0.18


def _flow(keys: Sequence[Key], width: float) -> list[list[Key]]:
    """Divide the keys into lines."""
    lines: list[list[Key]] = []
    room = 0.0
    for key in keys:
        if _key_width(key) > room:
            lines.append([])
            room = width + 0.18  # nothing follows the last one
        lines[-1].append(key)
        room -= _key_width(key)
    return lines


def _draw_keys(page: Page, keys: Sequence[Key], y: float) -> None:
    """Draw one line of the legend."""
    x, half = MARGIN + LABEL, 0.045
    for key in keys:
        width = RAMP if key.colour is None else SWATCH
        box = (x, x + width, y + half, y - half)
        if key.colour is None:
            ramp = np.linspace(0, 1, 64)[None]
            page.ground.imshow(ramp, cmap="gray", extent=box, aspect="auto", zorder=1)
        colour = "none" if key.colour is None else key.colour
        frame = Rectangle((x, y - half), width, 2 * half, fc=colour, ec="black", lw=0.5, zorder=2)
        page.ground.add_patch(frame)
        page.text(x + width + 0.06, y, key.text, CAPTION_SIZE)
        x += _key_width(key)
