"""How tables reach a person: printed to a terminal or a pipe, and written as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from harness.errors import UserError

if TYPE_CHECKING:
    from harness.suite import Suite
    from harness.tables.report.build import Report


PIPED_COLUMNS = 140


def publish(suite: Suite, records: Sequence[Any], notes: Sequence[str], folder: Path, name: str) -> None:
    """Print the tables of a suite and write them in all formats, with what must be said beside them."""
    from harness.tables.report import build as tables
    from harness.tables.report import render

    records, unsound = _believed(records)
    if not records:
        for note in unsound or ["nothing has run yet, so there is no table"]:
            typer.echo(note)
        return
    notes = [*notes, *unsound]
    order = [record.config_id for record in records]
    built = tables.build(records, baseline=suite.baseline, question=suite.question, notes=notes, order=order)
    show(built)
    try:
        written = render.write(built, folder, name)
    except OSError as error:
        raise UserError(f"{folder}: no tables can be written there: {error.strerror}") from error
    typer.echo("tables: " + ", ".join(str(path) for path in written))


def _believed(records: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """The records that can be, and a line for each other: a folder that a sweep goes on in may hold any."""
    from harness.tables.records import believed

    kept, aside = [], []
    for each in records:
        try:
            kept.append(believed(each))
        except UserError as error:
            aside.append(f"{each.run_id} is set aside: {error}; move it away and run again")
    return kept, aside


def show(built: Report) -> None:
    """Print tables to a terminal, or as wide as a reader of a file may want them."""
    from rich.console import Console

    from harness.tables.report.render import to_terminal

    console = Console()
    # A pipe or a file has no width of its own; narrow tables would be hard to read there.
    to_terminal(built, console if console.is_terminal else Console(width=PIPED_COLUMNS))
