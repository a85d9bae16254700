"""A history as text for a terminal, Markdown and JSON; cells hold one visible line each."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from harness.tables import history_text as say
from harness.tables.cells import DASH, Column, Table, markdown
from harness.tables.history_series import Commit, History, Quantity, Series, Step
from harness.tables.report import markdown_table

SCHEMA_VERSION = 1
BARS = "▁▂▃▄▅▆▇█"
#: Commits that a trend or the list of commits shows, the newest.
TREND, LISTED = 12, 15
#: A trend that spans less than this share of its value is drawn flat.
FLAT = 0.05
#: Lines of one kind on a terminal.
MOST_LINES = 40
Lines = dict[tuple[str, Quantity], list[Series]]


def to_text(history: History) -> str:
    """The commits, the steps by commit, the breaks, and where each row stands now."""
    lines = [_title(history), "", "commits", *_commits(history)]
    steps = say.told(history)
    lines += ["", _counts(steps), *_steps(history, steps)]
    breaks = [f"  {text}" for text in _breaks(history)]
    lines += ["", "breaks: series are not joined there", *_first(breaks)] if breaks else []
    for table in tables(history):
        lines += ["", table.title, *(f"  {line}" for line in _grid(table))]
    notes = [*say.method(history), *_first(say.remarks(history)), *history.notes, *_advice(history)]
    aside = [f"set aside: {note}" for note in history.set_aside]
    lines += ["", *(f"- {note}" for note in (*notes, *_first(aside)))] if notes or aside else []
    return "\n".join(lines) + "\n"


def to_markdown(history: History) -> str:
    """The same for a page or a comment."""
    lines = [f"# {markdown(_title(history))}", "", f"**{markdown(_counts(say.told(history)))}**", ""]
    steps = say.told(history)
    if steps:
        lines += [*markdown_table(_step_table(history, steps)), ""]
    breaks = _breaks(history)
    lines += ["## Breaks", "", *(f"- {markdown(text)}" for text in breaks), ""] if breaks else []
    for table in tables(history):
        lines += [f"## {markdown(table.title)}", "", *markdown_table(table), ""]
    lines += ["## Commits", "", *(f"- {markdown(text.strip())}" for text in _commits(history)), ""]
    notes = [*say.method(history), *say.remarks(history), *history.notes, *_advice(history)]
    notes += [f"set aside: {note}" for note in history.set_aside]
    return "\n".join([*lines, *(f"- {markdown(note)}" for note in notes)]).rstrip() + "\n"


def to_json(history: History) -> str:
    """Everything, for programs; quantities by their keys."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "suite": history.suite,
        "baseline": history.baseline,
        "runs": history.runs,
        "commits": [dataclasses.asdict(commit) for commit in history.commits],
        "quantities": {quantity.key: dataclasses.asdict(quantity) for quantity in history.quantities},
        "series": [_plain(series) for series in history.series],
        "steps": [_plain(step) | {"ratio": step.ratio, "worse": step.worse} for step in history.steps],
        "breaks": [_plain(each) for each in history.breaks],
        "method": say.method(history),
        "set_aside": history.set_aside,
        "notes": history.notes,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _plain(item: Series | Step | Any) -> dict[str, Any]:
    found = dataclasses.asdict(item)
    found["quantity"] = item.quantity.key
    found.pop("steps", None)
    return found


FORMATS: dict[str, Callable[[History], str]] = {"text": to_text, "md": to_markdown, "json": to_json}


# ------------------------------------------------------------------------------------------- parts
def _title(history: History) -> str:
    counts = ((len(history.commits), "commit"), (history.runs, "run"), (len(history.rows), "row"))
    said = ", ".join(f"{count} {word}{'' if count == 1 else 's'}" for count, word in counts)
    count = len(history.set_aside)
    aside = f", {count} file{'' if count == 1 else 's'} set aside" if count else ""
    return f"history of {history.suite}: {said}{aside}"


def _counts(steps: Sequence[Step]) -> str:
    found = Counter(map(say.verdict, steps))
    names = {"worse": "worse", "better": "better", "worse?": "maybe worse", "better?": "maybe better"}
    counts = ", ".join(f"{found[key]} {name}" for key, name in names.items() if found[key])
    return f"steps: {counts}" if counts else "steps: none"


def _commits(history: History) -> list[str]:
    runs = Counter(
        (point.order, point.run_id, point.when) for series in history.series for point in series.points
    )
    counts = Counter(order for order, _, _ in runs)
    left = len(history.commits) - LISTED
    lines = [f"  {left} earlier commits"] if left > 0 else []
    width = max(len(commit.name) for commit in history.commits)
    for commit in history.commits[max(0, left) :]:
        day = (commit.when or "")[:10]
        count = f"{counts[commit.order]} runs"
        lines.append(f"  {commit.name:<{width}}  {day:<10}  {count:>8}  {commit.subject}".rstrip())
    return lines


def _steps(history: History, steps: Sequence[Step]) -> list[str]:
    """The steps below the commit that they are seen at, newest first."""
    lines: list[str] = []
    for place in sorted({(step.second, step.first) for step in steps}, reverse=True):
        here = [step for step in steps if (step.second, step.first) == place]
        lines += [f"  {_where(history.commits, *place)}", *_first([f"    {text}" for text in _aligned(here)])]
    return lines


def _where(commits: Sequence[Commit], second: int, first: int) -> str:
    subject = f": {commits[second].subject}" if commits[second].subject else ""
    return f"{commits[first].name} -> {commits[second].name}{subject}"


def _aligned(steps: Sequence[Step]) -> list[str]:
    cells = [(say.verdict(s), s.row, s.quantity.name, say.levels(s), say.ratio(s)) for s in steps]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rows = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells]
    return [f"{row}  {say.why(step)}".rstrip() for row, step in zip(rows, steps, strict=True)]


def _step_table(history: History, steps: Sequence[Step]) -> Table:
    rows = [
        (
            say.verdict(step), step.row, step.quantity.name,
            f"{history.commits[step.first].name} -> {history.commits[step.second].name}",
            say.levels(step), say.ratio(step), say.why(step),
        )
        for step in steps
    ]  # fmt: skip
    names = ("verdict", "row", "quantity", "between", "level", "ratio", "why")
    columns = zip(names, zip(*rows, strict=True), strict=True)
    return Table("steps", (), tuple(Column(name, cells, numeric=False) for name, cells in columns))


def _breaks(history: History) -> list[str]:
    quantities = [quantity.name for quantity in history.quantities]
    found = []
    for each in say.broken(history):
        rows = say.listed(each.rows, history.rows, "rows")
        what = say.listed(each.quantities, quantities, "quantities")
        kind = "also" if each.beside else "from here"
        found.append(f"{history.commits[each.order].name}: {kind} {each.reason} ({rows}; {what})")
    return found


def _advice(history: History) -> list[str]:
    if len(history.commits) > 1:
        return []
    command = f"lorebench run {history.suite} --results history/$(git rev-parse --short HEAD)"
    return [f"one commit, so nothing can have moved yet; at the next one: {command}"]


def _first(lines: list[str]) -> list[str]:
    left = len(lines) - MOST_LINES
    return [*lines[:MOST_LINES], f"  … {left} more: see --format json or --out"] if left > 0 else lines


# ------------------------------------------------------------------------------------------ tables
def tables(history: History) -> list[Table]:
    """Where each row stands: the newest value of each quantity, its change since the start, its trend."""
    lines: Lines = {}
    for series in sorted(history.series, key=lambda series: (series.first, series.last)):
        lines.setdefault((series.row, series.quantity), []).append(series)
    chosen = [quantity for quantity in history.quantities if _is_headline(history, quantity)]
    stub = (Column("row", tuple(history.rows), numeric=False),)
    heads = say.heads(chosen)
    columns = tuple(
        c for quantity in chosen for c in _columns(history.rows, quantity, lines, heads[quantity])
    )
    if not columns:
        return []
    title = (
        "now"
        if len(history.commits) == 1
        else "now, the change since the series began, the trend over commits"
    )
    return Table(title, stub, columns).split()


def _is_headline(history: History, quantity: Quantity) -> bool:
    """Components and outcomes are shown where they are all there is, outcomes also where any run failed."""
    if quantity.kind == "status":
        points = [p for s in history.series if s.quantity == quantity for p in s.points]
        return any(point.value < 1 for point in points) or len(history.quantities) == 1
    whole = any(other.kind == "time" for other in history.quantities)
    return not (quantity.part and whole)


def _columns(rows: Sequence[str], quantity: Quantity, lines: Lines, name: str) -> list[Column]:
    found = [lines.get((row, quantity), []) for row in rows]
    columns = [Column(name, tuple(_cell(several, _newest) for several in found))]
    if any(len(series.by_commit) > 1 for several in found for series in several):
        columns.append(Column("change", tuple(_cell(several, _change) for several in found), joined=True))
    if any(sum(len(series.by_commit) for series in several) > 2 for several in found):
        trends = tuple(_trend(several) for several in found)
        columns.append(Column("trend", trends, numeric=False, joined=True))
    return columns


def _cell(several: Sequence[Series], write: Callable[[Series], str]) -> str:
    """What the series with the newest point says."""
    return write(max(several, key=lambda series: series.last)) if several else DASH


def _level(series: Series, order: int) -> float:
    return statistics.fmean(point.value for point in series.by_commit[order])


def _newest(series: Series) -> str:
    return say.number(series.quantity, _level(series, series.last))


def _change(series: Series) -> str:
    before, after = _level(series, series.first), _level(series, series.last)
    if series.first == series.last:
        return DASH
    if before == after:
        return "="
    if series.quantity.unit == "share":
        return f"{100 * (after - before):+.1f}"
    return f"{100 * (after / before - 1):+.1f} %" if before else DASH


def _trend(several: Sequence[Series]) -> str:
    """A bar for each of the newest commits, with `|` in front of a step and `/` in front of another series."""
    bars = [(_level(series, order), _mark(series, order)) for series in several for order in series.by_commit]
    bars = bars[-TREND:]
    if not bars:
        return DASH
    low, high = min(value for value, _ in bars), max(value for value, _ in bars)
    span = max(high - low, FLAT * max(abs(low), abs(high)), math.ulp(1.0))
    middle = (low + high) / 2
    text = "".join(f"{mark}{BARS[round(3.5 + 6.9 * (value - middle) / span)]}" for value, mark in bars)
    return text.lstrip("/|")


def _mark(series: Series, order: int) -> str:
    """What stands in front of a commit."""
    if order == series.first:
        return "/"
    return "|" if any(step.second == order for step in series.steps) else ""


def _grid(table: Table) -> list[str]:
    grid = [tuple(column.name for column in table.all_columns), *table.rows]
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    sides = [str.rjust if column.numeric else str.ljust for column in table.all_columns]
    return [
        "  ".join(side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True)).rstrip()
        for row in grid
    ]
