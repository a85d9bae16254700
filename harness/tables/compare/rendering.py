"""A comparison as text for a terminal, Markdown, JSON and JUnit XML; cells hold one visible line each."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from xml.etree import ElementTree

from harness.tables.compare.comparison import VERDICTS, Cell, Comparison, Verdict
from harness.tables.format import markdown

#: A page of GitHub's has at most 1 MiB; a table of so many cells stays below.
MOST_ROWS = 1000
SCHEMA_VERSION = 1
#: Lines of one verdict on a terminal.
MOST_LINES = 12
#: Verdicts whose cells a person must see, the others are counted.
SHOWN: tuple[Verdict, ...] = tuple(verdict for verdict in VERDICTS if verdict != "ok")


def to_text(found: Comparison) -> str:
    """A line for each cell that is not ok, the worst first, and the counts; all cells where they are few.

    Of a verdict other than `regression` the first lines are shown; the other formats have all.
    """
    lines: list[str] = []
    for verdict in VERDICTS if found.whole else SHOWN:
        cells = [cell for cell in found.cells if cell.verdict == verdict and not _silent(cell)]
        said = [f"{verdict}: {cell.suite}/{cell.row} ({cell.runs}) {_said(cell)}" for cell in cells]
        lines += said if verdict == "regression" else _first(verdict, said)
    lines += _first("skipped", [f"skipped: {note}" for note in found.skipped])
    return "\n".join([*lines, *found.notes, found.summary]) + "\n"


def _silent(cell: Cell) -> bool:
    """Whether a cell says only that a run ended as before."""
    return cell.verdict == "ok" and cell.quantity == "status"


def _first(verdict: str, lines: list[str]) -> list[str]:
    left = len(lines) - MOST_LINES
    return [*lines[:MOST_LINES], f"{verdict}: {left} more"] if left > 0 else lines


def _said(cell: Cell) -> str:
    """The cause with its quantity, which a peak says itself."""
    return cell.cause if cell.cause.startswith("peak ") else f"{cell.quantity}: {cell.cause}"


def _sorted(found: Comparison) -> list[Cell]:
    return [cell for verdict in SHOWN for cell in found.cells if cell.verdict == verdict]


def to_markdown(found: Comparison) -> str:
    """The counts and a table of every cell."""
    every = [*_sorted(found), *(cell for cell in found.cells if cell.verdict == "ok")]
    return "\n".join([f"**{markdown(found.summary)}**", "", *_table(every), *_aside(found)]) + "\n"


def to_github(found: Comparison) -> str:
    """Markdown for a step's summary: regressions in sight, everything else folded."""
    worst = [cell for cell in found.cells if cell.verdict == "regression"]
    rest = [cell for cell in _sorted(found) if cell.verdict != "regression"]
    fine = sum(cell.verdict == "ok" for cell in found.cells)
    lines = [f"### {markdown(found.summary)}", ""]
    lines += [*_table(worst), ""] if worst else []
    if rest:
        title = f"{len(rest)} cells with another verdict, {fine} ok"
        lines += ["<details>", f"<summary>{title}</summary>", "", *_table(rest), "", "</details>"]
    return "\n".join([*lines, *_aside(found)]) + "\n"


def _table(cells: Sequence[Cell]) -> list[str]:
    columns = ("verdict", "suite", "row", "runs", "quantity", "cause")
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for cell in cells[:MOST_ROWS]:
        lines.append(f"| {' | '.join(markdown(getattr(cell, name)) for name in columns)} |")
    left = len(cells) - MOST_ROWS
    return [*lines, "", f"{left} more cells are not shown."] if left > 0 else lines


def _aside(found: Comparison) -> list[str]:
    notes = [f"* {markdown(note)}" for note in found.notes]
    notes += [f"* skipped: {markdown(note)}" for note in found.skipped[:MOST_ROWS]]
    return ["", *notes] if notes else []


def to_json(found: Comparison) -> str:
    """Everything, for programs."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "summary": found.summary,
        "exit_code": found.exit_code,
        "counts": found.counts,
        "cells": [dataclasses.asdict(cell) for cell in found.cells],
        "set_aside": found.skipped,
        "notes": found.notes,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def to_junit(found: Comparison) -> str:
    """JUnit XML, as CI systems read it: a test case for each cell and each file that was set aside.

    A regression is a failure. What nobody judged is skipped with its cause, so that it is seen and does
    not fail.
    """
    root = ElementTree.Element(
        "testsuites", _counted(f"lorebench {found.name}", found.cells, len(found.skipped))
    )
    for suite in dict.fromkeys(cell.suite for cell in found.cells):
        cells = [cell for cell in found.cells if cell.suite == suite]
        element = ElementTree.SubElement(root, "testsuite", _counted(suite, cells))
        for cell in cells:
            _case(element, cell)
    if found.skipped:
        files = ElementTree.SubElement(root, "testsuite", _counted("files", (), len(found.skipped)))
        for note in found.skipped:
            case = ElementTree.SubElement(files, "testcase", classname="files", name=note)
            ElementTree.SubElement(case, "skipped", message="skipped")
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _counted(name: str, cells: Sequence[Cell], others: int = 0) -> dict[str, str]:
    failed = sum(cell.verdict == "regression" for cell in cells)
    skipped = sum(cell.verdict not in ("regression", "improvement", "ok") for cell in cells) + others
    counts = {"tests": len(cells) + others, "failures": failed, "errors": 0, "skipped": skipped}
    return {"name": name, **{key: str(value) for key, value in counts.items()}}


def _case(suite: ElementTree.Element, cell: Cell) -> None:
    names = {"classname": f"{cell.suite}.{cell.row}", "name": f"{cell.quantity} ({cell.runs})"}
    case = ElementTree.SubElement(suite, "testcase", names)
    if cell.verdict == "regression":
        ElementTree.SubElement(case, "failure", message=cell.cause, type="regression")
    elif cell.verdict in ("improvement", "ok"):
        ElementTree.SubElement(case, "system-out").text = f"{cell.verdict}: {cell.cause}"
    else:
        ElementTree.SubElement(case, "skipped", message=f"{cell.verdict}: {cell.cause}")


FORMATS: dict[str, Callable[[Comparison], str]] = {
    "text": to_text,
    "md": to_markdown,
    "json": to_json,
    "github": to_github,
    "junit": to_junit,
}
