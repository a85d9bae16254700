"""Render a comparison as text for a terminal, Markdown, JSON and JUnit XML.

Text and Markdown name verdicts by `LABELS`; JSON and JUnit keep the tokens, which programs read.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from xml.etree import ElementTree

from harness.tables.compare.comparison import LABELS, VERDICTS, Cell, Comparison, Verdict
from harness.tables.format import markdown

#: Cells of a table: a page on GitHub has at most 1 MiB.
MOST_ROWS = 1000
SCHEMA_VERSION = 1
#: Lines per verdict on a terminal.
MOST_LINES = 12
#: Verdicts whose cells are listed; the others are counted.
LISTED: tuple[Verdict, ...] = tuple(verdict for verdict in VERDICTS if verdict != "ok")


def to_text(found: Comparison) -> str:
    """Return a line per cell that is not ok, the worst first, and the counts; all cells where they are few.

    Of verdicts other than `regression` only the first lines are shown; the other formats have all.
    """
    lines: list[str] = []
    for verdict in VERDICTS if found.whole else LISTED:
        cells = [cell for cell in found.cells if cell.verdict == verdict and not _silent(cell)]
        label = LABELS.get(verdict, verdict)
        shown = [f"{label}: {cell.suite}/{cell.row} ({cell.runs}) {_sentence(cell)}" for cell in cells]
        lines += shown if verdict == "regression" else _first(label, shown)
    lines += _first("skipped", [f"skipped: {note}" for note in found.skipped])
    return "\n".join([*lines, *found.notes, found.summary]) + "\n"


def _silent(cell: Cell) -> bool:
    """Return whether a cell is no more than a run that ended as before."""
    return cell.verdict == "ok" and cell.quantity == "status"


def _first(label: str, lines: list[str]) -> list[str]:
    left = len(lines) - MOST_LINES
    return [*lines[:MOST_LINES], f"{label}: {left} more"] if left > 0 else lines


def _sentence(cell: Cell) -> str:
    """Return quantity and cause; the cause of a peak names it already."""
    return cell.cause if cell.cause.startswith("peak ") else f"{cell.quantity}: {_cause(cell)}"


def _cause(cell: Cell) -> str:
    """Return the cause without what the label of its verdict says."""
    return cell.cause.removeprefix(f"{LABELS.get(cell.verdict)}: ")


def _sorted(found: Comparison) -> list[Cell]:
    return [cell for verdict in LISTED for cell in found.cells if cell.verdict == verdict]


def to_markdown(found: Comparison) -> str:
    """Return the counts and a table of every cell."""
    every = [*_sorted(found), *(cell for cell in found.cells if cell.verdict == "ok")]
    return "\n".join([f"**{markdown(found.summary)}**", "", *_table(every), *_notes(found)]) + "\n"


def to_github(found: Comparison) -> str:
    """Return Markdown for a GitHub step summary: regressions in sight, everything else folded."""
    worst = [cell for cell in found.cells if cell.verdict == "regression"]
    rest = [cell for cell in _sorted(found) if cell.verdict != "regression"]
    fine = sum(cell.verdict == "ok" for cell in found.cells)
    lines = [f"### {markdown(found.summary)}", ""]
    lines += [*_table(worst), ""] if worst else []
    if rest:
        title = f"{len(rest)} cells with another verdict, {fine} ok"
        lines += ["<details>", f"<summary>{title}</summary>", "", *_table(rest), "", "</details>"]
    return "\n".join([*lines, *_notes(found)]) + "\n"


def _table(cells: Sequence[Cell]) -> list[str]:
    columns = ("verdict", "suite", "row", "runs", "quantity", "cause")
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for cell in cells[:MOST_ROWS]:
        label = LABELS.get(cell.verdict, cell.verdict)
        texts = (label, cell.suite, cell.row, cell.runs, cell.quantity, _cause(cell))
        lines.append(f"| {' | '.join(map(markdown, texts))} |")
    left = len(cells) - MOST_ROWS
    return [*lines, "", f"{left} more cells are not shown."] if left > 0 else lines


def _notes(found: Comparison) -> list[str]:
    notes = [f"* {markdown(note)}" for note in found.notes]
    notes += [f"* skipped: {markdown(note)}" for note in found.skipped[:MOST_ROWS]]
    return ["", *notes] if notes else []


def to_json(found: Comparison) -> str:
    """Return everything as JSON for programs."""
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
    """Return JUnit XML for CI systems: a test case for each cell and each skipped file.

    A regression is a failure. A cell without a verdict on the candidate is skipped with its cause, so that it
    is seen and does not fail.
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
