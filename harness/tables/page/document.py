"""Build the page of a suite: one HTML file with tables and charts that needs no network.

Its numbers are those of the report. The drawing library is embedded once; the page's Content-Security-Policy
allows only the scripts of this module and loads nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template

from harness.inputs import Inputs
from harness.record import Record
from harness.tables.history.series import History
from harness.tables.page import compare, papers, provenance, ranks, training
from harness.tables.page import history as page_history
from harness.tables.page import spectra as page_spectra
from harness.tables.page import tables as page_tables
from harness.tables.page.chart import Chart, library_script
from harness.tables.page.html import escape, json_block, script_hash, tag
from harness.tables.papers.lookup import Sources
from harness.tables.report import build as reports
from harness.tables.report.build import Report
from harness.tables.report.view import View

_TEMPLATES = Path(__file__).with_name("templates")


def build(
    records: Sequence[Record],
    *,
    baseline: str | None,
    question: str = "",
    notes: Iterable[str] = (),
    order: Sequence[str] = (),
    published: Sources | None = None,
    history: History | None = None,
    today: Mapping[str, Inputs] | None = None,
) -> str:
    """Return the page of one suite as HTML; UserError where plotly is not installed.

    Takes the arguments of `report.build`. `published` are the sources of published numbers and ours,
    `history` is the history over commits; without them the page has no such section.
    """
    report = reports.build(
        records, baseline=baseline, question=question, notes=notes, order=order, today=today
    )
    shown, _ = reports.rows_shown(records, list(dict.fromkeys(order)), today)
    view = View(tuple(shown), baseline)
    cells = papers.section(records, published) if published and records else ""
    return render(report, view, cells, history)


def render(report: Report, view: View, published: str = "", history: History | None = None) -> str:
    """Render the page; the same records always make the same text. `published` is HTML already."""
    rank_maps, equal_ranks = ranks.maps(view)
    spectra, same_weights = page_spectra.spectra(view)
    sections = [
        ("figures", "Results with error bars", compare.figures(view), []),
        ("fronts", "Quality and throughput against memory", compare.fronts(view), []),
        ("memory", "Where the memory goes", compare.components(view), []),
        ("training", "Training", *training.losses(view)),
        ("ranks", "Ranks by layer and kind of matrix", rank_maps, equal_ranks),
        ("moves", "Ranks over time", *ranks.moves(view)),
        ("spectra", "Singular values", spectra, same_weights),
    ]
    if history is not None:
        sections.append(("history", "History over commits", *page_history.charts(history)))
    shown = [section for section in sections if section[2] or section[3]]
    drawn = {chart.name: chart.content for _, _, charts, _ in shown for chart in charts}
    runs = [record for row in view.rows for record in row.records]
    plotly = library_script()
    script, drawing = _template("page.js"), _template("charts.js")
    links = [("results", "Results"), *((name, title) for name, title, *_ in shown)]
    links += [("published", papers.TITLE)] if published else []
    links += [("made", provenance.TITLE), ("runs", "Run it again")]
    return Template(_template("page.html")).substitute(
        policy=" ".join(map(script_hash, (script, drawing, plotly))),
        title=escape(report.title),
        question=escape(f"{report.question} {report.answer}".strip()),
        counts=escape(f"{len(view.rows)} rows from {len(runs)} runs"),
        links="".join(tag("a", escape(text), href=f"#{name}") for name, text in links),
        style=_template("page.css"),
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
