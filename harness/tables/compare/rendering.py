"""Render a comparison as text for a terminal, Markdown, JSON and JUnit XML.

Text and Markdown name verdicts by `LABELS`; JSON and JUnit keep the tokens, which programs read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from xml.etree import ElementTree

from harness import strict_json
from harness.errors import counted
from harness.tables.aggregate import grouped
from harness.tables.compare.comparison import JUDGED, LABELS, STATUS, VERDICTS, Cell, Comparison, Verdict
from harness.tables.format import first, markdown

#: Cells of a table: a page on GitHub has at most 1 MiB.
MOST_ROWS = 1000
SCHEMA_VERSION = 1
#: Lines per verdict on a terminal.
MOST_LINES = 12
#: Verdicts whose cells are listed; those that are ok are counted.
LISTED = tuple(verdict for verdict in VERDICTS if verdict != "ok")


def to_text(found: Comparison) -> str:
    """Return a line per cell that is not ok, the worst first, and the counts; all cells where they are few.

    Of verdicts other than `regression` only the first lines are shown; the other formats have all.
    """
    lines: list[str] = []
    for verdict in VERDICTS if found.whole else LISTED:
        cells = _joined(_of(found, verdict))
        if verdict == "ok":  # that a run ended as before says nothing
            cells = [cell for cell in cells if cell.quantity != STATUS]
        label = LABELS.get(verdict, verdict)
        shown = [f"{label}: {cell.suite}/{cell.row} ({cell.runs}) {_sentence(cell)}" for cell in cells]
        lines += shown if verdict == "regression" else first(shown, MOST_LINES, f"{label}: {{}} more")
    lines += first([f"skipped: {note}" for note in found.skipped], MOST_LINES, "skipped: {} more")
    return "\n".join([*lines, *found.notes, found.summary]) + "\n"


def _joined(cells: Sequence[Cell]) -> list[Cell]:
    """Join cells that are not comparable for one cause, as all are of two machines, into one that counts."""
    found = []
    for (suite, verdict, cause), alike in grouped(
        cells, lambda each: (each.suite, each.verdict, each.cause)
    ).items():
        if verdict != "x" or len(alike) == 1:
            found += alike
            continue
        rows, quantities = ({getattr(cell, name) for cell in alike} for name in ("row", "quantity"))
        row = alike[0].row if len(rows) == 1 else f"{len(rows)} rows"
        runs = alike[0].runs if len({cell.runs for cell in alike}) == 1 else f"{len(alike)} cells"
        quantity = alike[0].quantity if len(quantities) == 1 else f"{len(quantities)} quantities"
        found.append(Cell(suite, row, runs, quantity, verdict, cause, alike[0].differences))
    return found


def _sentence(cell: Cell) -> str:
    """Return quantity and cause; the cause of a peak names it already."""
    return cell.cause if cell.cause.startswith("peak ") else f"{cell.quantity}: {_cause(cell)}"


def _cause(cell: Cell) -> str:
    """Return the cause without what the label of its verdict says."""
    return cell.cause.removeprefix(f"{LABELS.get(cell.verdict)}: ")


def to_markdown(found: Comparison) -> str:
    """Return the counts and a table of cells; all that are not comparable for one cause are one line."""
    lines = [f"**{markdown(found.summary)}**", "", *_table(_joined(_of(found, *VERDICTS))), *_notes(found)]
    return "\n".join(lines) + "\n"


def to_github(found: Comparison) -> str:
    """Return Markdown for a GitHub step summary: regressions in sight, everything else folded."""
    worst = _of(found, "regression")
    rest = [cell for cell in _of(found, *LISTED) if cell.verdict != "regression"]
    lines = [f"### {markdown(found.summary)}", ""]
    lines += [*_table(worst), ""] if worst else []
    if rest:
        title = f"{counted(len(rest), 'cell')} with another verdict, {len(_of(found, 'ok'))} ok"
        lines += ["<details>", f"<summary>{title}</summary>", "", *_table(_joined(rest)), "", "</details>"]
    return "\n".join([*lines, *_notes(found)]) + "\n"


def _of(found: Comparison, *verdicts: Verdict) -> list[Cell]:
    """Return the cells with these verdicts, in the order of the verdicts."""
    return [cell for verdict in verdicts for cell in found.by_verdict.get(verdict, ())]


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
    return strict_json.text(content, indent=1, ensure_ascii=False)


def to_junit(found: Comparison) -> str:
    """Return JUnit XML for CI systems: a test case for each cell and each skipped file.

    A regression is a failure. A cell without a verdict on the candidate is skipped with its cause, so that it
    is seen and does not fail.
    """
    root = ElementTree.Element(
        "testsuites", _counted(f"lorebench {found.name}", found.cells, len(found.skipped))
    )
    for suite, cells in grouped(found.cells, lambda cell: cell.suite).items():
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
    skipped = sum(cell.verdict not in JUDGED for cell in cells) + others
    counts = {"tests": len(cells) + others, "failures": failed, "errors": 0, "skipped": skipped}
    return {"name": name, **{key: str(value) for key, value in counts.items()}}


def _case(suite: ElementTree.Element, cell: Cell) -> None:
    names = {"classname": f"{cell.suite}.{cell.row}", "name": f"{cell.quantity} ({cell.runs})"}
    case = ElementTree.SubElement(suite, "testcase", names)
    if cell.verdict == "regression":
        ElementTree.SubElement(case, "failure", message=cell.cause, type="regression")
    elif cell.verdict in JUDGED:
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
