"""One published table as a small table of text: published, ours, verdict, and notes below by letters.

Remarks, why published values differ from ours, have their sizes filled in from forecasts.
"""

from __future__ import annotations

import math
import shlex
import string
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from harness.errors import UserError, nearest
from harness.suite import suites_folder
from harness.tables.format import DASH, Column, Table, plain
from harness.tables.format import ratio as ratio_text
from harness.tables.papers.judge import Judged
from harness.tables.papers.lookup import Sources, command, converted
from harness.tables.papers.published import Cell, fits
from harness.tables.papers.schema import Predicted, Remark, Tolerance

#: Digits that ours has at least where it is no whole number.
DIGITS = 3
GIB = 2**30


def tables_of(judged: Sequence[Judged], sources: Sources) -> list[Table]:
    """Return one table for the primary values of rows, one for each further column of values."""
    found = []
    for quantity in dict.fromkeys(item.cell.quantity for item in judged):
        own = [item for item in judged if item.cell.quantity == quantity]
        first = own[0].cell
        title = first.table.id if first.primary else f"{first.table.id}, further: {quantity}"
        remarks = remarks_of(own, sources)
        noted = [[*notes(item, sources), *texts] for item, texts in zip(own, remarks, strict=True)]
        marks = {text: _letter(place) for place, text in enumerate(dict.fromkeys(chain(*noted)))}
        columns = _columns(own, [" ".join(marks[text] for text in texts) for texts in noted])
        marked = [f"{letter}: {text}" for text, letter in marks.items()]
        below = [*_head(first), *_tolerances(own), *marked, *_commands(own)]
        found.append(Table(title, _stub(own), columns, tuple(map(plain, below))))
    return found


def _stub(judged: Sequence[Judged]) -> tuple[Column, ...]:
    """Return the columns of the keys that tell rows apart."""
    keys = judged[0].cell.table.keys
    rows = [[shown(item.cell.keys.get(key, DASH)) for key in keys] for item in judged]
    kept = [place for place in range(len(keys)) if len({row[place] for row in rows}) > 1] or [0]
    return tuple(
        Column(keys[at].replace("_", " "), tuple(row[at] for row in rows), numeric=False) for at in kept
    )


def _columns(judged: Sequence[Judged], noted: Sequence[str]) -> tuple[Column, ...]:
    """Return the columns of values; `noted` are the letters of the notes on each of them."""
    units = {item.cell.unit for item in judged}
    unit = f", {next(iter(units))}" if len(units) == 1 and units != {""} else ""
    published = [shown(item.cell.published) + ("" if unit else _unit_beside(item)) for item in judged]
    return (
        Column(f"published{unit}", tuple(published)),
        Column("ours", tuple(ours(item) for item in judged)),
        Column("ratio", tuple(DASH if item.ratio is None else ratio_text(item.ratio) for item in judged)),
        Column("ours is", tuple(item.ours.by if item.ours else DASH for item in judged), numeric=False),
        Column("verdict", tuple(item.verdict for item in judged), numeric=False),
        Column("notes", tuple(noted), numeric=False),
    )


def _unit_beside(item: Judged) -> str:
    """Return the unit of a number, where a column has several; a text contains its own."""
    return f" {item.cell.unit}".rstrip() if isinstance(item.cell.published, (int, float)) else ""


def _letter(number: int) -> str:
    return (chr(ord("a") + number // 26 - 1) if number >= 26 else "") + chr(ord("a") + number % 26)


def _head(cell: Cell) -> list[str]:
    """Return the notes on the table as a whole, or on one further column."""
    if not cell.primary:
        return [cell.values.metric]
    table = cell.table
    notes = ["; ".join(filter(None, (table.caption, table.model, table.dataset, table.metric)))]
    notes += [f"protocol: {table.protocol}"] if table.protocol else []
    notes += [f"source: {table.source} ({table.confidence}); in the paper: {table.obtained}"]
    return [*notes, table.note] if table.note else notes


def _tolerances(judged: Iterable[Judged]) -> list[str]:
    """Return every tolerance that a value of ours is or would be held to."""
    wanted = [item.cell for item in judged if item.cell.answer.selectors and item.number is not None]
    texts = [_tolerance(cell.tolerance, cell.unit) for cell in wanted if cell.tolerance]
    return [f"tolerance: {text}" for text in dict.fromkeys(texts)]


def _tolerance(tolerance: Tolerance, unit: str) -> str:
    parts = [f"{100 * tolerance.relative:g} %"] if tolerance.relative else []
    parts += [f"{tolerance.absolute:g} {unit}".rstrip()] if tolerance.absolute else []
    return f"{' or '.join(parts) or 'none'}: {tolerance.reason}"


def notes(item: Judged, sources: Sources) -> list[str]:
    """Return the notes on one row: how ours was obtained or what is missing, and conditions that differ."""
    answer, found = item.cell.answer, item.ours
    said = [answer.why] if answer.why else []
    said += [found.how] if found and found.how and found.by != "predicted" else []
    if item.cell.obtained != item.cell.values.obtained:
        said.append(f"in the paper: {item.cell.obtained}")
    if answer.copied_from:
        other = sources.printed_cell(answer.copied_from)
        same = other.published == item.cell.published
        where = f"{other.paper}, {other.table.id}"
        said.append(f"equal to {where}" if same else f"{where} has {shown(other.published)}")
    differs = conditions(item) if found or answer.selectors else ""
    return [*said, differs] if differs else said


def conditions(item: Judged) -> str:
    """Return the conditions of the paper and ours where they differ."""
    theirs = item.cell.table.conditions
    own = {**item.cell.answer.conditions, **dict(item.ours.conditions if item.ours else ())}
    differ = {key: value for key, value in own.items() if theirs.get(key) != value}
    return "; ".join(f"{key}: paper {theirs.get(key, 'not said')}, ours {differ[key]}" for key in differ)


def _commands(judged: Iterable[Judged]) -> list[str]:
    """Return the commands that would fill rows without a value of ours, each once."""
    open_cells = [item.cell for item in judged if item.ours is None and not item.cell.answer.does_not_run]
    found = [words for cell in open_cells if (words := command(cell.answer.selectors))]
    missing = sorted({words[2] for words in found if not (suites_folder().parents[1] / words[2]).exists()})
    said = [f"to fill: {text}" for text in dict.fromkeys(map(shlex.join, found))]
    return [*said, *(f"{name} does not exist yet" for name in missing)]


# ------------------------------------------------------------------------------------------ remarks
def remarks_of(judged: Sequence[Judged], sources: Sources) -> list[list[str]]:
    """Return the remarks on each of the values of one column, in the order of the values."""
    found: list[list[str]] = [[] for _ in judged]
    for remark in judged[0].cell.values.remarks if judged else ():
        places = [at for at, item in enumerate(judged) if fits(remark.when, item.cell.row)]
        if not places:
            raise UserError(f"{judged[0].cell.table.id}: no row fits the remark {remark.text[:40]!r}")
        text = _filled(remark, [judged[at] for at in places], sources)
        for at in places:
            found[at].append(text)
    return found


def _filled(remark: Remark, judged: Sequence[Judged], sources: Sources) -> str:
    """Fill in sizes in GiB, those over rows as `1.20 GiB` or `1.20 to 3.40 GiB`."""
    names = {name for _, name, _, _ in string.Formatter().parse(remark.text) if name}
    where = judged[0].cell.table.id
    if unused := sorted(set(remark.sizes) - names):
        raise UserError(f"{where}: a remark does not use {', '.join(unused)}; name it or drop it")
    if not names:
        return remark.text
    sizes: dict[str, list[float]] = {}
    for item in judged:
        for name, size in _sizes(item, sources):
            sizes.setdefault(name, []).append(size / GIB)
    for name, selector in remark.sizes.items():
        sizes[name] = [sources.size(selector) / GIB]
    for name in names - set(sizes):
        raise UserError(f"{where}: a remark names {{{name}}}, which no row has; {nearest(name, sizes)}")
    return remark.text.format_map({name: _range(values) for name, values in sizes.items()})


def _sizes(item: Judged, sources: Sources) -> Iterator[tuple[str, float]]:
    """Yield what a remark may name, in bytes, for a value that is compared with a forecast.

    `gap` is between the published value and ours; the others are of the forecast: its peak, its weights, its
    optimizer states, and what is beyond these two at the peak and (`paper_beyond`) in the published value.
    """
    selector = next((each for each in item.cell.answer.selectors if isinstance(each, Predicted)), None)
    if selector is None or item.number is None:
        return
    published = converted(item.number, item.cell.unit, "bytes")
    predicted = sources.predicted(selector, "bytes").value
    peak, weights, optimizer = (
        sources.forecast_bytes(selector.forecast, part) for part in ("peak", "weights", "optimizer")
    )
    yield "gap", abs(published - float(predicted))
    yield "peak", peak
    yield "weights", weights
    yield "optimizer", optimizer
    yield "beyond", peak - weights - optimizer
    yield "paper_beyond", published - weights - optimizer


def _range(sizes: Sequence[float]) -> str:
    least, most = f"{min(sizes):.2f}", f"{max(sizes):.2f}"
    return f"{least} GiB" if least == most else f"{least} to {most} GiB"


# --------------------------------------------------------------------------------------------- text
def shown(value: Any) -> str:
    """Return a printed value as text; a list is its values in order."""
    if isinstance(value, (list, tuple)):
        return ", ".join(shown(part) for part in value)
    return plain(f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))


def ours(item: Judged) -> str:
    """Return our value as text, in the unit of the cell."""
    value = item.ours.value if item.ours else None
    if value is None:
        return DASH
    if isinstance(value, bool):
        return "holds" if value else "does not hold"
    return plain(value) if isinstance(value, str) else _significant(float(value), item.number)


def _significant(value: float, beside: float | None) -> str:
    """Write with one decimal more than the published value, or three digits where these are more."""
    if not math.isfinite(value):
        return str(value)
    printed = f"{beside:g}" if beside is not None else ""
    decimals = 0 if "e" in printed else len(printed.partition(".")[2])
    if value != int(value):
        decimals = max(decimals + 1, DIGITS - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}" if decimals < 6 else f"{value:g}"
