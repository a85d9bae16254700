"""Print tables to a terminal or a pipe, and write them as files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from harness.cli import output
from harness.errors import UserError
from harness.plain_text import plain

if TYPE_CHECKING:
    from rich.console import Console

    from harness.config import Run
    from harness.suite import Suite
    from harness.tables.history.series import History
    from harness.tables.report.at_scale import AtScale
    from harness.tables.report.build import Report


def publish(
    suite: Suite,
    records: Sequence[Any],
    notes: Sequence[str],
    to: Mapping[Path, str],
    name: str,
    today: Mapping[str, Mapping[str, str]] | None = None,
    form: str = "text",
    more: Mapping[str, Callable[[Report], str]] | None = None,
    scale: AtScale | None = None,
    tune: str = "",
    full: bool = False,
) -> None:
    """Print the tables of a suite, with notes beside them, and write them to files.

    `today` are the hashes of what each run would read now, by its id, where they are known, `scale` the
    forecasts on the large model of the suite, `tune` the command that tunes its learning rates. As text, the
    overview is printed unless all is wanted (`full`). For the rest see `report`.
    """
    from harness.tables.records import only_valid
    from harness.tables.report import build as tables

    records, skipped = only_valid(records)
    if not records:
        for note in skipped or ["no run has ended yet, so there is no table"]:
            typer.echo(plain(note))
        return
    notes = [*notes, *skipped]
    order = [record.config_id for record in records]
    built = tables.build(
        records,
        baseline=suite.baseline,
        question=suite.question,
        notes=notes,
        order=order,
        today=today,
        scale=scale,
        tune=tune,
        targets=suite.targets,
    )
    report(built, to, name, form, more, full)


def report(
    built: Report,
    to: Mapping[Path, str],
    name: str,
    form: str = "text",
    more: Mapping[str, Callable[[Report], str]] | None = None,
    full: bool = True,
) -> None:
    """Write a report to files in their formats, and print it in one.

    A folder gets the files `name`.md, .csv and .tex. `more` are formats beside those of every report.
    """
    from harness.tables.report import render

    formats = {**render.FORMATS, **(more or {})}
    folders = [path for path, kind in to.items() if kind == output.FOLDER]
    single = {path: kind for path, kind in to.items() if kind != output.FOLDER}
    written: list[Path] = []
    try:
        for folder in folders:
            try:
                written += render.write(built, folder, name)
            except OSError as error:
                raise UserError(f"{folder}: no tables can be written there: {error.strerror}") from error
    finally:
        output.publish(built, form, single, formats, partial(show, full=full))
    if written:
        typer.echo("tables: " + ", ".join(map(str, written)), err=True)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a list of things with their properties; numbers stand to the right."""
    from harness.tables.format import DASH, Column, Table
    from harness.tables.report.render import print_table

    def numbers(cells: Sequence[str]) -> bool:
        return all(cell.replace(",", "").replace(".", "").isdigit() or cell in ("-", DASH) for cell in cells)

    cells = list(zip(*rows, strict=True)) or [()] * len(head)
    first, *others = (
        Column(name, column, numeric=numbers(column)) for name, column in zip(head, cells, strict=True)
    )
    print_table(Table("", (first,), tuple(others)), console())


def say(text: str) -> None:
    """Print a line on standard error; labels and names of files in it do no harm to a terminal or a build."""
    typer.echo(plain(text), err=True)


def doubts(runs: Sequence[Run]) -> None:
    """Print what is doubtful in the settings of runs, before any of them starts."""
    from harness import no_effect

    for text in no_effect.doubts(runs):
        say(text)


def show(built: Report, full: bool = True) -> None:
    """Print tables, or their overview, to a terminal, or at a fixed width to a pipe or file."""
    from harness.tables.report.render import overview, to_terminal

    here = console()
    to_terminal(built if full else overview(built, here.width), here)


def history(found: History) -> None:
    """Print a history to a terminal, or at a fixed width to a pipe or file."""
    from harness.tables.history.rendering import to_text

    lines(to_text(found, console().width))


def lines(text: str) -> None:
    """Print text; a terminal gets lines that are broken at blanks, where it would break words and numbers."""
    from harness.tables import layout

    here = console()
    if here.is_terminal:
        text = "\n".join(layout.folded(line, here.width) for line in text.split("\n"))
    typer.echo(text, nl=False)


def console() -> Console:
    """Return the terminal; a pipe or a file has no width of its own."""
    from rich.console import Console

    from harness.tables.layout import WIDTH

    made = Console()
    return made if made.is_terminal else Console(width=WIDTH)
