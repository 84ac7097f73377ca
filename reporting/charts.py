"""Charts as SVG for the page, and as SVG and PDF files for papers."""

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
from markupsafe import Markup
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from datasets.atomic import write_atomically
from reporting import curves
from reporting.facts import Facts

INK = "#123456"  # of lines and letters; on the page it becomes the colour of the text
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#8a8a8a",
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",  # letters stay letters
    "svg.hashsalt": "stac",
    "pdf.fonttype": 42,
    "text.parse_math": False,  # a class may be named "$x$"
    **dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK
    ),
}
SIZE = (4.4, 3.1)  # inches
ID = re.compile(r' id="([^"]*)"')


class Chart(NamedTuple):
    """One chart of the page.

    Attributes:
        name: of its files, without their ending.
        title: of the chart.
        text: what to read from it.
        svg: to stand in the page.
    """

    name: str
    title: str
    text: str
    svg: Markup


class Plan(NamedTuple):
    """How one chart is made.

    Attributes:
        title: of the chart.
        draw: draws into the figure and returns what to read from it; "" where nothing is to draw.
    """

    title: str
    draw: Callable[[Figure, Facts], str]


PLANS = {
    "training_localiser": Plan("Training of the localiser", curves.localiser_training),
    "training_segmentation": Plan("Training of the second stage", curves.segmentation_training),
    "threshold": Plan("IoU of the CAMs against the threshold", curves.thresholds),
    "confusion": Plan("Confusion of pixels", curves.confusion),
    "precision_recall": Plan("Precision and recall of whole images", curves.precision_recall),
    "image_iou": Plan("IoU of each image", curves.image_ious),
    "image_scores": Plan("Scores of good and defective images", curves.image_scores),
    "areas": Plan("Predicted areas", curves.areas),
    "calibration": Plan("Calibration of the image scores", curves.calibration),
}


def charts_of(facts: Facts, folder: Path) -> list[Chart]:
    """Draw what the run has data for, and write the files for papers.

    Args:
        facts: of the run.
        folder: gets <name>.svg and <name>.pdf of each chart; those of an earlier report are
            replaced, and removed where there is nothing to draw now.
    """
    charts = []
    for name, plan in PLANS.items():
        with matplotlib.rc_context(STYLE):
            figure = Figure(SIZE, layout="constrained")
            text = plan.draw(figure, facts)
            paths = [folder / f"{name}.{ending}" for ending in ("svg", "pdf")]
            if text:
                charts.append(Chart(name, plan.title, text, _inline(figure, name, plan.title)))
                _write(figure, paths)
            else:
                for path in paths:
                    path.unlink(missing_ok=True)
    return charts


def _write(figure: Figure, paths: Sequence[Path]) -> None:
    """Write a figure for papers, in black on clear ground."""
    svg, pdf = paths
    black = _svg(figure).replace(INK, "#000000")
    write_atomically(svg, lambda to: to.write_text(black, encoding="utf-8"))
    for text in figure.findobj(lambda part: hasattr(part, "get_color")):
        if text.get_color() == INK:
            text.set_color("black")
    about = {"CreationDate": None, "ModDate": None}
    canvas = FigureCanvasPdf(figure)
    write_atomically(pdf, lambda to: canvas.print_pdf(str(to), metadata=about))


def _svg(figure: Figure) -> str:
    content = io.StringIO()
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    FigureCanvasSVG(figure).print_svg(content, metadata={"Date": None})
    return content.getvalue()


def _inline(figure: Figure, name: str, title: str) -> Markup:
    """Return a figure as an element of a page: its ids are its own, its ink that of the text."""
    svg = _svg(figure)
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))

    def own(match: re.Match[str]) -> str:
        return f' id="{name}-{match[1]}"' if match[1] in used else ""

    svg = ID.sub(own, svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    width, height = (72 * inches for inches in figure.get_size_inches())
    head = Markup('<svg role="img" aria-label="{}" viewBox="0 0 {:g} {:g}" class="chart"').format(
        title, width, height
    )
    start = svg.index(">")
    spaces = 'xmlns:xlink="http://www.w3.org/1999/xlink" xmlns="http://www.w3.org/2000/svg"'
    return head + Markup(f" {spaces}" + svg[start:])
