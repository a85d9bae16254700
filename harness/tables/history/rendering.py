"""A history as text for a terminal, Markdown and JSON; cells hold one visible line each."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from harness.tables.format import Column, Table, markdown
from harness.tables.history import wording
from harness.tables.history.series import ChangePoint, Commit, History, Series
from harness.tables.history.tables import tables, unchanged
from harness.tables.report.render import markdown_table

SCHEMA_VERSION = 1
#: Commits that a list shows, the newest.
LISTED = 15
#: Lines of one kind on a terminal.
MOST_LINES = 40


def to_text(history: History) -> str:
    """The commits, the steps by commit, the breaks, and where each row stands now."""
    lines = [_title(history), "", "commits", *_commits(history)]
    changes = wording.listed_change_points(history)
    lines += ["", _counts(changes), *_changes(history, changes)]
    breaks = [f"  {text}" for text in wording.breaks(history)]
    lines += ["", "breaks: series are not joined there", *_first(breaks)] if breaks else []
    for table in tables(history):
        lines += ["", table.title, *(f"  {line}" for line in _grid(table))]
    notes = [*_same(history), *wording.method(history), *_first(wording.remarks(history))]
    notes += [*history.notes, *_advice(history)]
    aside = [f"skipped: {note}" for note in history.skipped]
    lines += ["", *(f"- {note}" for note in (*notes, *_first(aside)))] if notes or aside else []
    return "\n".join(lines) + "\n"


def to_markdown(history: History) -> str:
    """The same for a page or a comment."""
    lines = [
        f"# {markdown(_title(history))}",
        "",
        f"**{markdown(_counts(wording.listed_change_points(history)))}**",
        "",
    ]
    changes = wording.listed_change_points(history)
    if changes:
        lines += [*markdown_table(_change_table(history, changes)), ""]
    breaks = wording.breaks(history)
    lines += ["## Breaks", "", *(f"- {markdown(text)}" for text in breaks), ""] if breaks else []
    for table in tables(history):
        lines += [f"## {markdown(table.title)}", "", *markdown_table(table), ""]
    lines += ["## Commits", "", *(f"- {markdown(text.strip())}" for text in _commits(history)), ""]
    notes = [
        *_same(history),
        *wording.method(history),
        *wording.remarks(history),
        *history.notes,
        *_advice(history),
    ]
    notes += [f"skipped: {note}" for note in history.skipped]
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
        "steps": [
            _plain(change) | {"ratio": change.ratio, "worse": change.worse}
            for change in history.change_points
        ],
        "breaks": [_plain(each) for each in history.breaks],
        "method": wording.method(history),
        "set_aside": history.skipped,
        "notes": history.notes,
    }
    return json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _finite(content: Any) -> Any:
    """The same for JSON, which knows no infinite number: `Infinity` and `NaN` as text, as in records."""
    if isinstance(content, float) and not math.isfinite(content):
        return "NaN" if math.isnan(content) else "Infinity" if content > 0 else "-Infinity"
    if isinstance(content, dict):
        return {key: _finite(value) for key, value in content.items()}
    return [_finite(value) for value in content] if isinstance(content, (list, tuple)) else content


def _plain(item: Series | ChangePoint | Any) -> dict[str, Any]:
    found = dataclasses.asdict(item)
    found["quantity"] = item.quantity.key
    found.pop("change_points", None)
    return found


FORMATS: dict[str, Callable[[History], str]] = {"text": to_text, "md": to_markdown, "json": to_json}


# ------------------------------------------------------------------------------------------- parts
def _title(history: History) -> str:
    counts = ((len(history.commits), "commit"), (history.runs, "run"), (len(history.rows), "row"))
    said = ", ".join(f"{count} {word}{'' if count == 1 else 's'}" for count, word in counts)
    count = len(history.skipped)
    aside = f", {count} file{'' if count == 1 else 's'} skipped" if count else ""
    return f"history of {history.suite}: {said}{aside}"


def _counts(changes: Sequence[ChangePoint]) -> str:
    found = Counter(map(wording.verdict, changes))
    names = {"worse": "worse", "better": "better", "worse?": "maybe worse", "better?": "maybe better"}
    counts = ", ".join(f"{found[key]} {name}" for key, name in names.items() if found[key])
    return f"steps: {counts}" if counts else "steps: none"


def _commits(history: History) -> list[str]:
    runs = Counter(
        (point.order, point.run_id, point.when)
        for series in history.series
        for point in (*series.points, *series.lost)
    )
    counts = Counter(order for order, _, _ in runs)
    shown = [commit for commit in history.commits if counts[commit.order]]
    left = len(shown) - LISTED
    lines = [f"  {left} earlier commits"] if left > 0 else []
    width = max(len(commit.name) for commit in shown)
    for commit in shown[-LISTED:]:
        day = (commit.when or "")[:10]
        number = counts[commit.order]
        count = f"{number} run{'' if number == 1 else 's'}"
        lines.append(f"  {commit.name:<{width}}  {day:<10}  {count:>8}  {commit.subject}".rstrip())
    return lines


def _changes(history: History, changes: Sequence[ChangePoint]) -> list[str]:
    """The steps below the commit that they are seen at, newest first."""
    lines: list[str] = []
    for place in sorted({(change.second, change.first) for change in changes}, reverse=True):
        here = [change for change in changes if (change.second, change.first) == place]
        lines += [f"  {_where(history.commits, *place)}", *_first([f"    {text}" for text in _aligned(here)])]
    return lines


def _where(commits: Sequence[Commit], second: int, first: int) -> str:
    subject = f": {commits[second].subject}" if commits[second].subject else ""
    return f"{commits[first].name} -> {commits[second].name}{subject}"


def _aligned(changes: Sequence[ChangePoint]) -> list[str]:
    cells = [
        (wording.verdict(s), s.row, s.quantity.name, wording.levels(s), wording.ratio(s)) for s in changes
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    rows = ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in cells]
    return [f"{row}  {wording.why(change)}".rstrip() for row, change in zip(rows, changes, strict=True)]


def _change_table(history: History, changes: Sequence[ChangePoint]) -> Table:
    rows = [
        (
            wording.verdict(change), change.row, change.quantity.name,
            f"{history.commits[change.first].name} -> {history.commits[change.second].name}",
            wording.levels(change), wording.ratio(change), wording.why(change),
        )
        for change in changes
    ]  # fmt: skip
    names = ("verdict", "row", "quantity", "between", "level", "ratio", "why")
    columns = zip(names, zip(*rows, strict=True), strict=True)
    return Table("steps", (), tuple(Column(name, cells, numeric=False) for name, cells in columns))


def _same(history: History) -> list[str]:
    names = unchanged(history)
    return [f"the same at every commit, in every row: {', '.join(names)}"] if names else []


def _advice(history: History) -> list[str]:
    if len(history.commits) > 1:
        return []
    command = f'lorebench run {history.suite} --results "history/$(git rev-parse --short HEAD)"'
    return [f"one commit, so nothing can have moved yet; at the next one: {command}"]


def _first(lines: list[str]) -> list[str]:
    left = len(lines) - MOST_LINES
    return [*lines[:MOST_LINES], f"  … {left} more: see --format json or --out"] if left > 0 else lines


def _grid(table: Table) -> list[str]:
    grid = [tuple(column.name for column in table.all_columns), *table.rows]
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    sides = [str.rjust if column.numeric else str.ljust for column in table.all_columns]
    return [
        "  ".join(side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True)).rstrip()
        for row in grid
    ]
