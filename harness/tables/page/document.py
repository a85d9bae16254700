"""Build the page of a suite: one HTML file with tables and charts that needs no network.

Its numbers are those of the report. The drawing library is embedded once; the page's Content-Security-Policy
allows only the scripts of this module and loads nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

from harness.errors import counted
from harness.inputs import Inputs
from harness.record import Record
from harness.tables.history.series import History
from harness.tables.page import compare, papers, provenance, ranks, rates, tradeoffs, training
from harness.tables.page import curves as page_curves
from harness.tables.page import history as page_history
from harness.tables.page import spectra as page_spectra
from harness.tables.page import tables as page_tables
from harness.tables.page.chart import Chart, library_script
from harness.tables.page.html import escape, json_block, script_hash, tag
from harness.tables.papers.lookup import Sources
from harness.tables.report.at_scale import AtScale
from harness.tables.report.build import Report, rows_shown
from harness.tables.report.view import View

_TEMPLATES = Path(__file__).with_name("templates")
Section = tuple[str, str, Sequence[Chart], Sequence[str]]  # id, title, charts, notes


def build(
    report: Report,
    records: Sequence[Record],
    *,
    baseline: str | None,
    order: Sequence[str] = (),
    published: Sources | None = None,
    history: History | None = None,
    today: Mapping[str, Inputs] | None = None,
    scale: AtScale | None = None,
    targets: Mapping[str, float] | None = None,
) -> str:
    """Return the page of a report as HTML; UserError where plotly is not installed.

    Takes the arguments that `report.build` had. `published` are the sources of published numbers and ours,
    `history` is the history over commits; without them the page has no such section.
    """
    shown, _ = rows_shown(records, list(dict.fromkeys(order)), today)
    cells = papers.section(records, published) if published and records else ""
    return render(report, View(tuple(shown), baseline, targets or {}), scale, cells, history)


def render(report: Report, view: View, scale: AtScale | None, published: str, history: History | None) -> str:
    """Render the page; the same records always make the same text. `published` is HTML already."""
    ahead, shown = _sections(view, scale, history)
    drawn = {chart.name: chart.content for _, _, charts, _ in (*ahead, *shown) for chart in charts}
    runs = [record for row in view.rows for record in row.records]
    plotly = library_script()
    script, drawing = _template("page.js"), _template("charts.js")
    links = [(name, title) for name, title, *_ in ahead]
    links += [("results", "Results"), *((name, title) for name, title, *_ in shown)]
    links += [("published", papers.TITLE)] if published else []
    links += [("made", provenance.TITLE), ("runs", "Run it again")]
    return Template(_template("page.html")).substitute(
        policy=" ".join(map(script_hash, (script, drawing, plotly))),
        title=escape(report.title),
        said="".join(
            tag("p", escape(text), class_=name)
            for name, text in (("question", report.question), ("answer", report.answer))
            if text
        ),
        counts=escape(f"{counted(len(view.rows), 'row')} from {counted(len(runs), 'run')}"),
        links="".join(tag("a", escape(text), href=f"#{name}") for name, text in links),
        style=_template("page.css"),
        overview="".join(_section(*section) for section in ahead),
        tables=page_tables.tables(report, view),
        notes=_list(report.notes),
        charts="".join(_section(*section) for section in shown),
        published=_block("published", papers.TITLE, published) if published else "",
        made=page_tables.words("made-table", provenance.TITLE, provenance.HEADS, provenance.made(view)),
        shared=_list(report.caption),
        runs=page_tables.runs(view),
        data=json_block(drawn),
        plotly=plotly,
        script=script,
        drawing=drawing,
    )


def _sections(
    view: View, scale: AtScale | None, history: History | None
) -> tuple[list[Section], list[Section]]:
    """Return the sections that are not empty, before the tables and after them."""
    over_rates, best = rates.charts(view), rates.best(view)
    rank_maps, equal_ranks = ranks.maps(best)
    spectra, same_weights = page_spectra.spectra(best)
    overview = [] if over_rates else tradeoffs.tradeoffs(view, scale)
    first: list[Section] = [
        ("rates", "Learning rates", over_rates, []),
        ("tradeoffs", "What quality costs", overview, []),
    ]
    sections: list[Section] = [
        ("figures", "Results with error bars", [] if over_rates else compare.figures(view), []),
        ("memory", "Where the memory goes", compare.components(best), []),
        ("training", "Training", *training.losses(best)),
        ("curves", "Perplexity in training", *page_curves.charts(best)),
        ("ranks", "Ranks by layer and kind of matrix", rank_maps, equal_ranks),
        ("moves", "Ranks over time", *ranks.moves(best)),
        ("spectra", "Singular values", spectra, same_weights),
    ]
    if history is not None:
        sections.append(("history", "History over commits", *page_history.charts(history)))
    ahead, after = ([each for each in part if each[2] or each[3]] for part in (first, sections))
    return ahead, after


def _template(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def _section(name: str, title: str, charts: Sequence[Chart], notes: Sequence[str]) -> str:
    figures = "".join(_chart(chart) for chart in charts)
    grid = tag("div", figures, class_="charts") if figures else ""
    return _block(name, title, grid + _list(notes))


def _block(name: str, title: str, content: str) -> str:
    return tag("section", tag("h2", escape(title)) + content, id=name)


def _chart(chart: Chart) -> str:
    height = chart.content["layout"]["height"]
    place = tag(
        "div", class_="chart", id=chart.name, style=f"height:{height}px", role="img", aria_label=chart.title
    )
    return tag("figure", tag("h3", escape(chart.title)) + place + tag("figcaption", escape(chart.caption)))


def _list(items: Sequence[str]) -> str:
    return tag("ul", "".join(tag("li", escape(text)) for text in items)) if items else ""
