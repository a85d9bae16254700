"""Render a history as text for a terminal, as Markdown and as JSON.

Phrases come from `wording.py`, the table of rows from `tables.py`.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from harness import strict_json
from harness.errors import counted
from harness.tables import layout
from harness.tables.format import Column, Table, first, markdown
from harness.tables.history import wording
from harness.tables.history.series import Break, ChangePoint, History, Series
from harness.tables.history.tables import tables, unchanged
from harness.tables.report.render import markdown_table

SCHEMA_VERSION = 1
#: Keys of the JSON that are not the names of the fields.
NAMES = {"environment": "stand"}
#: Commits that a list shows, the newest.
LISTED = 15
#: Lines of one kind on a terminal.
MOST_LINES = 40


def to_text(history: History, width: int = layout.WIDTH) -> str:
    """Return commits, change points by commit, breaks, and the newest values of each row."""
    lines = [_title(history), "", "commits", *_commits(history)]
    changes = wording.listed_change_points(history)
    lines += ["", _counts(changes), *_changes(history, changes)]
    breaks = [f"  {text}" for text in wording.breaks(history)]
    lines += ["", "breaks: a series ends, another one begins", *_shown(breaks)] if breaks else []
    for table in tables(history):
        for piece in layout.pieces(table, width - 2):
            lines += ["", piece.title, *(f"  {line}" for line in layout.lines(piece, width - 2))]
    notes = _notes(history, _shown(wording.remarks(history)))
    notes += _shown([f"skipped: {note}" for note in history.skipped])
    lines += ["", *(f"- {note}" for note in notes)] if notes else []
    return "\n".join(lines) + "\n"


def to_markdown(history: History) -> str:
    """Return the same as Markdown, for a page or a comment."""
    changes = wording.listed_change_points(history)
    lines = [f"# {markdown(_title(history))}", "", f"**{markdown(_counts(changes))}**", ""]
    if changes:
        lines += [*markdown_table(_change_table(history, changes)), ""]
    breaks = wording.breaks(history)
    lines += ["## Breaks", "", *(f"- {markdown(text)}" for text in breaks), ""] if breaks else []
    for table in tables(history):
        lines += [f"## {markdown(table.title)}", "", *markdown_table(table), ""]
    lines += ["## Commits", "", *(f"- {markdown(text.strip())}" for text in _commits(history)), ""]
    notes = [*_notes(history, wording.remarks(history)), *(f"skipped: {note}" for note in history.skipped)]
    return "\n".join([*lines, *(f"- {markdown(note)}" for note in notes)]).rstrip() + "\n"


def to_json(history: History) -> str:
    """Return everything as JSON for programs; quantities by their keys."""
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
    return strict_json.text(content, indent=1, ensure_ascii=False)


def _plain(item: Series | ChangePoint | Break) -> dict[str, Any]:
    found = {NAMES.get(key, key): value for key, value in dataclasses.asdict(item).items()}
    found["quantity"] = item.quantity.key
    found.pop("change_points", None)
    return found


FORMATS: dict[str, Callable[[History], str]] = {"text": to_text, "md": to_markdown, "json": to_json}


# ------------------------------------------------------------------------------------------- parts
def _title(history: History) -> str:
    counts = [(len(history.commits), "commit"), (history.runs, "run"), (len(history.rows), "row")]
    counts += [(len(history.skipped), "skipped file")] if history.skipped else []
    text = ", ".join(counted(count, word) for count, word in counts)
    return f"history of {history.suite}: {text}"


def _counts(changes: Sequence[ChangePoint]) -> str:
    found = Counter(map(wording.verdict, changes))
    names = {"worse": "worse", "better": "better", "worse?": "maybe worse", "better?": "maybe better"}
    counts = ", ".join(f"{found[key]} {name}" for key, name in names.items() if found[key])
    return f"change points: {counts}" if counts else "no change points"


def _commits(history: History) -> list[str]:
    runs = {
        (point.order, point.run_id, point.when)
        for series in history.series
        for point in (*series.points, *series.lost)
    }
    counts = Counter(order for order, _, _ in runs)
    shown = [commit for commit in history.commits if counts[commit.order]]
    left = len(shown) - LISTED
    lines = [f"  {left} earlier commits"] if left > 0 else []
    width = max(len(commit.name) for commit in shown)
    for commit in shown[-LISTED:]:
        day = (commit.when or "")[:10]
        number = counts[commit.order]
        count = counted(number, "run")
        lines.append(f"  {commit.name:<{width}}  {day:<10}  {count:>8}  {commit.subject}".rstrip())
    return lines


def _changes(history: History, changes: Sequence[ChangePoint]) -> list[str]:
    """Write the change points below the commit where they appear, newest first."""
    lines: list[str] = []
    for place in sorted({(change.second, change.first) for change in changes}, reverse=True):
        here = [change for change in changes if (change.second, change.first) == place]
        before, after = (history.commits[order] for order in (place[1], place[0]))
        subject = f": {after.subject}" if after.subject else ""
        cells = [_cells(change) for change in here]
        lines += [f"  {before.name} -> {after.name}{subject}"]
        lines += _shown([f"    {text}" for text in _aligned(cells, [str.ljust] * 6)])
    return lines


def _aligned(rows: Sequence[Sequence[str]], sides: Sequence[Callable[[str, int], str]]) -> list[str]:
    """Pad cells to the width of their column; `sides` are `str.ljust` or `str.rjust`."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _cells(change: ChangePoint) -> tuple[str, ...]:
    levels, ratio = wording.levels(change), wording.ratio(change)
    return wording.verdict(change), change.row, change.quantity.name, levels, ratio, wording.why(change)


def _change_table(history: History, changes: Sequence[ChangePoint]) -> Table:
    names = [commit.name for commit in history.commits]
    between = tuple(f"{names[change.first]} -> {names[change.second]}" for change in changes)
    cells = list(zip(*map(_cells, changes), strict=True))
    heads = ("verdict", "row", "quantity", "between", "level", "ratio", "why")
    columns = zip(heads, (*cells[:3], between, *cells[3:]), strict=True)
    return Table("change points", (), tuple(Column(head, texts, numeric=False) for head, texts in columns))


def _notes(history: History, remarks: Sequence[str]) -> list[str]:
    """Return all notes but those on skipped files."""
    same = unchanged(history)
    notes = [f"the same at every commit, in every row: {', '.join(same)}"] if same else []
    notes += [*wording.method(history), *remarks, *history.notes]
    if len(history.commits) == 1:
        command = f'lorebench run {history.suite} --results "history/$(git rev-parse --short HEAD)"'
        notes.append(f"one commit, so nothing can have changed yet; at the next one: {command}")
    return notes


def _shown(lines: Sequence[str]) -> list[str]:
    return first(lines, MOST_LINES, "  … {} more: see --format json or --out")
