"""The command `lorebench report`, and how tables reach a person: printed, as files, as a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness import arguments, options
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.suite import Suite
    from harness.tables.history.series import History
    from harness.tables.report import Report

PIPED_COLUMNS = 140


def report(
    suite: arguments.SuiteName,
    model: arguments.ModelOption = None,
    data: arguments.DataOption = None,
    settings: arguments.SetOption = None,
    only: arguments.OnlyOption = None,
    seed: arguments.Seeds = None,
    results: arguments.Results = Path("runs"),
    out: Annotated[Path | None, typer.Option(help="Folder for the written tables.")] = None,
    html: Annotated[
        Path | None,
        typer.Option("--html", metavar="FILE", help="Also write a page with charts that opens offline."),
    ] = None,
    history: Annotated[
        list[Path] | None,
        typer.Option(
            "--history", metavar="FOLDER", help="Records of earlier commits for the page; repeatable."
        ),
    ] = None,
) -> None:
    """Print and write the tables of a suite from its records, without running anything."""
    from harness.engine import runner
    from harness.tables import report as tables

    _check_page(html, history)
    chosen = options.load(suite, model, data, settings, only, seed)
    earlier = _history(chosen, history)
    wanted = runner.resolve(chosen.runs).runs
    folders = sorted(path for path in results.glob(f"*/{chosen.name}") if path.is_dir())
    if not folders:
        raise UserError(f"no records of suite {chosen.name!r} under {results}; run: lorebench run {suite}")
    for folder in folders:
        found, notes = tables.load(folder)
        by_id = runner.labelled(wanted, {record.run_id: record for record in found})
        records = list(by_id.values())
        if not records:
            for note in notes:
                typer.echo(note, err=True)
            continue
        missing, other = len(wanted) - len(by_id), len(found) - len(by_id)
        notes += [f"{missing} of {len(wanted)} runs have no record yet"] if missing else []
        notes += [f"{other} records of other configurations are not shown"] if other else []
        name = chosen.name if len(folders) == 1 else f"{chosen.name}-{folder.parent.name}"
        publish(chosen, records, notes, out or folder / "tables", name)
        if html is not None:
            machine = "" if len(folders) == 1 else f"-{folder.parent.name}"
            _page(chosen, records, notes, html.with_stem(html.stem + machine), results, earlier)


def publish(suite: Suite, records: Sequence[Any], notes: Sequence[str], folder: Path, name: str) -> None:
    """Print the tables of a suite and write them in all formats, with what must be said beside them."""
    from harness.tables import report as tables

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
        written = tables.write(built, folder, name)
    except OSError as error:
        raise UserError(f"{folder}: no tables can be written there: {error.strerror}") from error
    typer.echo("tables: " + ", ".join(str(path) for path in written))


def _believed(records: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """The records that can be, and a line for each other: a folder that a sweep goes on in may hold any."""
    from harness.tables.soundness import believed

    kept, aside = [], []
    for each in records:
        try:
            kept.append(believed(each))
        except UserError as error:
            aside.append(f"{each.run_id} is set aside: {error}; move it away and run again")
    return kept, aside


def _check_page(html: Path | None, history: Sequence[Path] | None) -> None:
    """UserError for a page that could not be written, or a history without one."""
    if html is not None:
        from harness.tables.page import document

        document.check(html)
    elif history:
        raise UserError("--history belongs to a page: add --html FILE")


def _history(suite: Suite, folders: Sequence[Path] | None) -> History | None:
    """What the records of some folders say of a suite at earlier commits."""
    from harness.tables.history.building import load

    labels = list(dict.fromkeys(run.name for run in suite.runs))
    return load(folders, suite.name, baseline=suite.baseline, labels=labels) if folders else None


def _page(
    suite: Suite,
    records: Sequence[Any],
    notes: Sequence[str],
    path: Path,
    results: Path,
    history: History | None,
) -> None:
    from harness.tables.drift import ROOT
    from harness.tables.page import document
    from harness.tables.papers import pages

    built = document.build(
        records,
        baseline=suite.baseline,
        question=suite.question,
        notes=notes,
        order=[record.config_id for record in records],
        published=pages.sources(ROOT, results),
        history=history,
    )
    document.write(built, path)
    typer.echo(f"page: {path}")


def show(built: Report) -> None:
    """Print tables to a terminal, or as wide as a reader of a file may want them."""
    from rich.console import Console

    from harness.tables.report import to_terminal

    console = Console()
    # A pipe or a file has no width of its own; narrow tables would be hard to read there.
    to_terminal(built, console if console.is_terminal else Console(width=PIPED_COLUMNS))
