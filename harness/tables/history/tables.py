"""The table of a history: the newest value of each row and quantity, its change, its trend over commits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from harness.tables.aggregate import grouped
from harness.tables.format import DASH, Column, Table, points
from harness.tables.history import wording
from harness.tables.history.series import History, Quantity, Series

BARS = "▁▂▃▄▅▆▇█"
#: Commits that a trend shows, the newest.
TREND = 12
#: A trend that spans less than this share of its value is drawn flat.
FLAT = 0.05
MOVED = "now, change since the series began, trend over commits (| a change point, / another series)"
Lines = dict[tuple[str, Quantity], list[Series]]


def tables(history: History) -> list[Table]:
    """Return the newest value of each row and quantity, the change since the series began, the trend."""
    lines = _lines(history)
    chosen = [quantity for quantity in history.quantities if _is_headline(history, quantity)]
    heads = wording.heads(chosen)
    columns = [
        each for quantity in chosen for each in _columns(history.rows, quantity, lines, heads[quantity])
    ]
    if not columns:
        return []
    title = "now" if len(history.commits) == 1 else MOVED
    return [Table(title, (Column("row", tuple(history.rows), numeric=False),), tuple(columns))]


def _lines(history: History) -> Lines:
    """Return the series of each row and quantity, oldest first."""
    ordered = sorted(history.series, key=lambda series: (series.first, series.last))
    return grouped(ordered, lambda series: (series.row, series.quantity))


def _is_headline(history: History, quantity: Quantity) -> bool:
    """Show components and outcomes where there is nothing else, outcomes also where any run failed."""
    if quantity.kind == "status":
        shares = [p.value for s in history.series if s.quantity == quantity for p in s.points]
        return any(share < 1 for share in shares) or len(history.quantities) == 1
    others = any(other.kind in ("time", "perplexity", "accuracy") for other in history.quantities)
    return not (quantity.part and others)


def _columns(rows: Sequence[str], quantity: Quantity, lines: Lines, name: str) -> list[Column]:
    found = [lines.get((row, quantity), []) for row in rows]
    columns = [Column(name, tuple(_cell(several, _newest) for several in found))]
    if _constant(found):
        return columns
    if any(len(series.by_commit) > 1 for several in found for series in several):
        columns.append(Column("change", tuple(_cell(several, _change) for several in found), joined=True))
    if any(sum(len(series.by_commit) for series in several) > 2 for several in found):
        trends = tuple(_trend(several) for several in found)
        columns.append(Column("trend", trends, numeric=False, joined=True))
    return columns


def unchanged(history: History) -> list[str]:
    """Return the quantities that have one value at every commit of every row, where commits are several."""
    if len(history.commits) == 1:
        return []
    lines = _lines(history)
    heads = wording.heads([quantity for quantity in history.quantities if _is_headline(history, quantity)])
    return [
        head
        for quantity, head in heads.items()
        if _constant([several for (_, own), several in lines.items() if own == quantity])
    ]


def _constant(rows: Sequence[Sequence[Series]]) -> bool:
    """Return whether no row ever moved or lost a value, not even from one series to the next.

    Values that depend on the seed are compared seed by seed.
    """
    for several in rows:
        levels: dict[int | None, set[float]] = {}
        for series in several:
            for (_, seed), values in _by_seed(series).items():
                levels.setdefault(seed, set()).add(series.middle(values))
        if any(series.lost for series in several) or any(len(found) > 1 for found in levels.values()):
            return False
    return True


def _by_seed(series: Series) -> dict[tuple[int, int | None], list[float]]:
    """Return the values by commit and seed; by commit alone where values do not follow the seed, as times."""
    found: dict[tuple[int, int | None], list[float]] = {}
    alike = series.quantity.kind == "time"
    for point in series.points:
        found.setdefault((point.order, None if alike else point.seed), []).append(point.value)
    return found


def _cell(several: Sequence[Series], write: Callable[[Series], str]) -> str:
    """Write a cell from the series with the newest point."""
    return write(max(several, key=lambda series: series.last)) if several else DASH


def _newest(series: Series) -> str:
    value = series.lost[-1].value if _ends_lost(series) else series.level(series.last)
    return wording.number(series.quantity, value)


def _ends_lost(series: Series) -> bool:
    return bool(series.lost) and series.lost[-1].order > series.last


def _change(series: Series) -> str:
    """Write the change from the first to the last commit, over the seeds of both."""
    ends = series.first, series.last
    seeds = series.seeds(ends)
    if series.first == series.last or _ends_lost(series) or (seeds is not None and not seeds):
        return DASH
    before, after = (series.level(order, seeds) for order in ends)
    if before == after:
        return "="
    if series.quantity.unit == "share":
        return points(after - before)
    return f"{100 * (after / before - 1):+.1f} %" if before else DASH


def _trend(several: Sequence[Series]) -> str:
    """Draw a bar per commit, the newest; `|` precedes a change point and `/` another series."""
    bars = [bar for series in several for bar in _bars(series)][-TREND:]
    if not bars:
        return DASH
    low, high = min(value for value, _ in bars), max(value for value, _ in bars)
    span = max(high - low, FLAT * max(abs(low), abs(high)), math.ulp(1.0))
    middle = (low + high) / 2
    text = "".join(f"{mark}{BARS[round(3.5 + 6.9 * (value - middle) / span)]}" for value, mark in bars)
    return text.lstrip("/|")


def _bars(series: Series) -> list[tuple[float, str]]:
    """Return the level of each commit, over the seeds that all have where there are any, and its mark."""
    seeds = series.seeds(series.by_commit) or None
    marks = {change.second: "|" for change in series.change_points} | {series.first: "/"}
    return [(series.level(order, seeds), marks.get(order, "")) for order in series.by_commit]
