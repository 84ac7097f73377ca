"""Text of a known width: measured, cut and wrapped."""

from matplotlib.backends.backend_agg import RendererAgg
from matplotlib.font_manager import FontProperties

DPI = 720  # of what is measured: widths are whole pixels


def text_width(text: str, size: float) -> float:
    """Return the width in inches of a line of text of a size in points."""
    renderer = RendererAgg(1, 1, DPI)
    font = FontProperties(size=size)
    return renderer.get_text_width_height_descent(text, font, ismath=False)[0] / DPI


def cut(text: str, size: float, width: float) -> str:
    """Return a text that is at most so wide: of a longer one, its beginning and its end."""
    if text_width(text, size) <= width:
        return text
    for kept in range(len(text) - 1, 0, -1):
        start = (kept + 1) // 2
        shorter = f"{text[:start]}…{text[len(text) - (kept - start) :]}"
        if text_width(shorter, size) <= width:
            return shorter
    return "…"


def wrap(text: str, size: float, width: float) -> list[str]:
    """Return lines that are at most so wide; a word that is wider is cut."""
    lines: list[str] = []
    for word in text.split():
        if lines and text_width(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return [cut(line, size, width) for line in lines]
