"""The command `lorebench report`: the tables of a suite from its records, and its page. Runs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harness.cli import options
from harness.cli.show import publish, say
from harness.errors import UserError
from harness.files import visible

if TYPE_CHECKING:
    from harness.suite import Suite
    from harness.tables.history.series import History


@options.selects
def report(
    selection: options.Selection,
    results: options.Results = Path("runs"),
    out: Annotated[Path | None, typer.Option(help="Folder for the written tables.")] = None,
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also write a page with charts that opens offline."),
    ] = None,
    history: Annotated[
        list[Path] | None,
        typer.Option(metavar="FOLDER", help="Records of earlier commits for the page; repeatable."),
    ] = None,
) -> None:
    """Print and write the tables of a suite from its records, without running anything."""
    from harness.engine import runner
    from harness.tables.records import load

    if html is not None:
        from harness.tables.page import document

        document.check(html)
    elif history:
        raise UserError("--history belongs to a page: add --html FILE")
    chosen = selection.load()
    earlier = _history(chosen, history) if history else None
    wanted = runner.resolve(chosen.runs).runs
    folders = [path for path in visible(results, f"*/{chosen.name}") if path.is_dir()]
    if not folders:
        raise UserError(
            f"no records of suite {chosen.name!r} under {results}; run: lorebench run {selection.suite}"
        )
    for folder in folders:
        found, notes = load(folder)
        by_id = runner.labelled(wanted, {record.run_id: record for record in found})
        records = list(by_id.values())
        if not records:
            for note in notes:
                say(note)
            continue
        missing, other = len(wanted) - len(by_id), len(found) - len(by_id)
        notes += [f"{missing} of {len(wanted)} runs have no record yet"] if missing else []
        notes += [f"{other} records of other configurations are not shown"] if other else []
        machine = "" if len(folders) == 1 else f"-{folder.parent.name}"
        publish(chosen, records, notes, out or folder / "tables", chosen.name + machine)
        if html is not None:
            _page(chosen, records, notes, html.with_stem(html.stem + machine), results, earlier)


def _history(suite: Suite, folders: Sequence[Path]) -> History:
    """Return the history of a suite from the records of earlier commits."""
    from harness.tables.history.build import build
    from harness.tables.history.loading import collect

    labels = list(dict.fromkeys(run.name for run in suite.runs))
    return build(collect(folders, suite.name), folders, suite.baseline, labels=labels)


def _page(
    suite: Suite,
    records: Sequence[Any],
    notes: Sequence[str],
    path: Path,
    results: Path,
    history: History | None,
) -> None:
    from harness.files import ROOT
    from harness.tables.page import document
    from harness.tables.papers.lookup import sources

    built = document.build(
        records,
        baseline=suite.baseline,
        question=suite.question,
        notes=notes,
        order=[record.config_id for record in records],
        published=sources(ROOT, results),
        history=history,
    )
    document.write(built, path)
    typer.echo(f"page: {path}")
