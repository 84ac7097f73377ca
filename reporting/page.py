"""One run on one page: templates filled with figures, charts and pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from reporting import gallery, words
from reporting.charts import charts_of
from reporting.facts import Facts, by_stage, minutes_of
from reporting.images import PANELS
from reporting.pictures import IGNORE_COLOUR, SALIENCY_COLOUR, class_colours, data_uri
from runfolder.doubts import doubts
from runfolder.results import NO_RESULTS, image_cells, mask_cells, table_columns

TELLING_PANELS = (("prediction", "pseudo_label"), ("truth", "image"))  # the first that is there


class Group(NamedTuple):
    """The results of one stage.

    Attributes:
        stage: its name.
        lead: cells of the row that is always seen, by column.
        rest: cells of the others.
    """

    stage: str
    lead: dict[str, str]
    rest: list[dict[str, str]]


class Table(NamedTuple):
    """A table of results, folded by stage."""

    columns: list[str]
    groups: list[Group]


def environment() -> Environment:
    """Return what reads the templates; all that they are given is escaped."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.policies["json.dumps_kwargs"] = {"separators": (",", ":")}  # keys stay in their order
    return made


def report_page(facts: Facts, count: int | None) -> tuple[str, int]:
    """Return the page of a run, and how many images its gallery has.

    Args:
        facts: of the run.
        count: of images at most; None for all that fit.
    """
    run, names = facts.run, facts.class_names
    found = list(gallery.entries(facts, gallery.kept(facts, count)))
    tables = {"Against masks": mask_table(facts), "Whole images": image_table(facts)}
    title, bars = words.bars(facts)
    is_settled = run.config_path.is_file()
    page = (
        environment()
        .get_template("report.html.j2")
        .render(
            title=f"Run {run.folder.resolve().name}",
            source=run.config.data.source,
            split=facts.split,
            total=len(facts.images),
            kind=facts.kind,
            origin=_origin(facts),
            notes=[*facts.notes, *(f"To be doubted: {reason}" for reason in doubts(run))],
            sentences=words.sentences(facts),
            keys=words.keys(facts, minutes_of(run)),
            bars_title=title,
            bars=bars,
            telling=[_telling(facts, one) for one in words.telling(facts)],
            tables={name: table for name, table in tables.items() if table.groups},
            no_results="" if tables["Against masks"].groups else _why_no_table(facts),
            charts=charts_of(facts, run.figures_dir),
            legend=legend(names, found),
            entries=found,
            panels=panels_of(found),
            choices=gallery.choices(found, names),
            settings=run.config_path.read_text(encoding="utf-8") if is_settled else "",
        )
    )
    return page, len(found)


def panels_of(found: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Return the panels that any of the images has, in their order."""
    used = {key for one in found for key in one["pictures"]}
    return [
        {"key": key, "title": panel.title, "mime": panel.mime}
        for key, panel in PANELS.items()
        if key in used
    ]


def legend(
    class_names: Sequence[str], found: Sequence[dict[str, Any]] = ()
) -> list[tuple[str, str]]:
    """Return the colours of the pictures and what they stand for.

    Args:
        class_names: K.
        found: images of the gallery; further colours are those of pictures that they have.
    """
    used = {key for one in found for key in one["pictures"]}
    more = [
        (colour, name)
        for key, colour, name in (
            ("saliency", SALIENCY_COLOUR, "saliency"),
            ("pseudo_label", IGNORE_COLOUR, "not learnt from"),
        )
        if key in used
    ]
    named = [(f"rgb{colour}", name) for colour, name in more]
    return [*zip(class_colours(len(class_names)), class_names, strict=True), *named]


def mask_table(facts: Facts) -> Table:
    """Return the figures against masks."""
    rows = [row for row in facts.rows if "iou" in row]
    groups = [_group(facts, stage, of_stage) for stage, of_stage in by_stage(rows).items()]
    return Table(_columns(groups), groups)


def image_table(facts: Facts) -> Table:
    """Return the figures of whole images."""
    rows = [row for row in facts.rows if "image" in row]
    groups = [
        _group(facts, stage, of_stage, of_images=True) for stage, of_stage in by_stage(rows).items()
    ]
    return Table(_columns(groups), groups)


def _group(
    facts: Facts, stage: str, rows: Sequence[dict[str, Any]], of_images: bool = False
) -> Group:
    """Fold the results of a stage: that of the page's split and the config's threshold leads."""
    rule = facts.run.config.pseudo_label.threshold_rule

    def distance(row: dict[str, Any]) -> tuple[bool, bool, bool]:
        is_part = row.get("part", "all") != "all" or bool(row.get("bound"))
        return is_part, row["split"] != facts.split, row["threshold_rule"] not in ("none", rule)

    ordered = sorted(rows, key=distance)  # stable: of equals the order of the table
    lead, *rest = (image_cells(row) if of_images else mask_cells(row) for row in ordered)
    return Group(stage, lead, rest)


def _columns(groups: Sequence[Group]) -> list[str]:
    return table_columns([cells for group in groups for cells in (group.lead, *group.rest)])


def _why_no_table(facts: Facts) -> str:
    return NO_RESULTS if facts.run.results_path.is_file() else "not evaluated yet"


def _telling(facts: Facts, one: words.Telling) -> dict[str, Any]:
    """Return an image of the first screen: why it is there, and two pictures of it."""
    shown = facts.images[one.place]
    cells = []
    for wanted in TELLING_PANELS:
        key = next((key for key in wanted if key in shown.pictures), None)
        if key is None:
            continue
        over = "" if key == "image" else data_uri(shown.pictures[key], PANELS[key].mime)
        cells.append({"title": PANELS[key].title, "over": over})
    return {
        "why": one.why,
        "name": shown.record.name,
        "caption": words.caption(shown, facts.class_names),
        "size": shown.size,
        "base": data_uri(shown.pictures["image"], PANELS["image"].mime),
        "cells": cells,
    }


def _origin(facts: Facts) -> str:
    """Say when and with which code the latest result was made."""
    dated = [row for row in facts.rows if row.get("date")]
    if not dated:
        return ""
    last = max(dated, key=lambda row: row["date"])
    changed = ", changed" if last.get("dirty") else ""
    return f"results of {last['date'][:10]}, commit {last.get('commit', 'unknown')}{changed}"
