"""Render the tables of a report as HTML: the cells of the Markdown, each with the value it is sorted by."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from harness.errors import counted
from harness.record import Record
from harness.tables.aggregate import Row
from harness.tables.format import Column, Table, bytes_text, plain
from harness.tables.page.html import escape, lines, tag
from harness.tables.page.quantities import names
from harness.tables.report.build import Report
from harness.tables.report.sections import ENDINGS
from harness.tables.report.view import View

STATUS = "status"
_MESSAGE = 300
_LOG_LINES, _LOG_WIDTH = 20, 300
_NUMBER = re.compile(r"[+-]?\d[\d,]*(?:\.\d+)?")


def tables(report: Report, view: View) -> str:
    """Return every table of the report, with a button in each heading that sorts by its column."""
    whole = merged(report.tables)
    return "".join(_sortable(report, view, table, place) for place, table in enumerate(whole))


def merged(tables: Sequence[Table]) -> list[Table]:
    """Return the tables with the columns of that of endings behind those of the overview before it."""
    if len(tables) < 2 or tables[1].title != ENDINGS:
        return list(tables)
    main, ends, *others = tables
    columns = (*main.columns, *_filled(ends.columns, len(main.stub[0].cells)))
    return [replace(main, columns=columns), *others]


def _filled(columns: Sequence[Column], count: int) -> list[Column]:
    """Pad columns with empty cells below the rows."""
    return [replace(c, cells=(*c.cells, *[""] * (count - len(c.cells)))) for c in columns]


def _sortable(report: Report, view: View, table: Table, number: int) -> str:
    columns = table.all_columns
    described = f"table-{number}"
    known = len(view.rows)
    body = "".join(
        tag("tr", _cells(report, view, columns, place), data_row=str(place), data_ok=_ok(view.rows[place]))
        for place in range(known)
    )
    below = "".join(
        tag(
            "tr",
            "".join(tag("td", escape(cell), class_=_kind(c)) for c, cell in zip(columns, cells, strict=True)),
        )
        for cells in table.rows[known:]
    )
    heads = [(column.name, _kind(column)) for column in columns]
    return sortable(described, tag("caption", escape(table.title), id=described), heads, body, below)


def sortable(
    described: str,
    caption: str,
    heads: Sequence[tuple[str, str]],
    body: str,
    foot: str = "",
    class_: str = "sortable",
) -> str:
    """Return a table that scrolls, with a button in each heading that sorts by its column.

    `heads` are names of columns with their kind, `number` or `words`; `described` is
    the id of the caption; caption, body and foot are HTML already.
    """
    buttons = "".join(
        tag("th", tag("button", escape(name), type="button"), scope="col", class_=kind)
        for name, kind in heads
    )
    content = caption + tag("thead", tag("tr", buttons)) + tag("tbody", body)
    return box(tag("table", content + (tag("tfoot", foot) if foot else ""), class_=class_), described)


def box(drawn: str, described: str) -> str:
    """Wrap a table in a box that scrolls, by keyboard as well, where the table is wider."""
    return tag("div", drawn, class_="box", tabindex="0", role="region", aria_labelledby=described)


def _cells(report: Report, view: View, columns: Sequence[Column], place: int) -> str:
    first, *rest = columns
    link = tag("a", escape(first.cells[place]), href=f"#row-{place}")
    found = [tag("th", link, scope="row")]
    for column in rest:
        text = escape(column.cells[place])
        if column.name == STATUS and not column.numeric:
            text = tag("span", text, class_=f"ending {_ok(view.rows[place])}") + _reasons(view.rows[place])
        value = _value(report, column, place)
        sort = None if value is None else repr(value)
        found.append(tag("td", text, class_=_kind(column), data_value=sort, data_key=column.key or None))
    return "".join(found)


def _value(report: Report, column: Column, place: int) -> float | None:
    """Return the value of a cell to sort by: that of the CSV, else the number in its text."""
    if not column.numeric:
        return None
    line = report.lines[place]
    if column.key in line:
        value = line[column.key]
        return float(value) if isinstance(value, (int, float)) else None
    number = _NUMBER.search(column.cells[place])
    return float(number[0].replace(",", "")) if number else None


def _kind(column: Column) -> str:
    return "number" if column.numeric else "words"


def _ok(row: Row) -> str:
    """Return whether `all`, `some` or `none` of the runs of a row succeeded."""
    good = sum(record.outcome.status == "ok" for record in row.records)
    return "all" if good == len(row.records) else "some" if good else "none"


def _reasons(row: Row) -> str:
    """Write status, phase and reason of every failed run, each once."""
    reasons = dict.fromkeys(_reason(record) for record in row.records if record.outcome.status != "ok")
    return "".join(tag("small", escape(text), class_="reason") for text in reasons)


def _reason(record: Record) -> str:
    outcome = record.outcome
    if outcome.status == "ok":
        return "ok"
    where = f" in {outcome.phase}" if outcome.phase else ""
    size = f", requested {bytes_text(outcome.requested_bytes)}" if outcome.requested_bytes else ""
    message = f": {plain(outcome.message, _MESSAGE)}" if outcome.message else ""
    return f"{outcome.status}{where}{size}{message}"


# ---------------------------------------------------------------------------------- other tables
def words(name: str, title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Render a table of text that is not sorted; `name` is the id of its hidden caption."""
    head = "".join(tag("th", escape(text), scope="col") for text in heads)
    lines = (
        tag("th", escape(first), scope="row") + "".join(tag("td", escape(cell)) for cell in rest)
        for first, *rest in rows
    )
    body = "".join(tag("tr", line) for line in lines)
    caption = tag("caption", escape(title), id=name, class_="hidden")
    content = caption + tag("thead", tag("tr", head)) + tag("tbody", body)
    return box(tag("table", content, class_="prose"), name)


def runs(view: View) -> str:
    """Return each row with the command that repeats each run, and the log of a failed run."""
    found = []
    for place, (label, row) in enumerate(zip(names(view), view.rows, strict=True)):
        summary = tag("summary", escape(f"{label} ({counted(len(row.records), 'run')})"))
        found.append(tag("details", summary + "".join(map(_run, row.records)), id=f"row-{place}"))
    return "".join(found)


def _run(record: Record) -> str:
    repeat = f", repeat {record.repeat}" if record.repeat else ""
    parts = [
        tag("h3", escape(f"seed {record.seed}{repeat}: {_reason(record)}")),
        tag("pre", tag("code", lines(record.rerun)), class_="command", tabindex="0"),
        *(tag("p", escape(f"Warning: {warning}")) for warning in record.warnings),
    ]
    if record.outcome.status != "ok" and record.outcome.log_tail:
        log = "\n".join(plain(line, _LOG_WIDTH) for line in record.outcome.log_tail[-_LOG_LINES:])
        parts.append(tag("pre", lines(log), class_="log", tabindex="0"))
    return "".join(parts)
