"""The command `lorebench paper`: compare published values with ours. Runs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from harness.cli import options, output, show
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.tables.report.build import Report

Format = Literal["text", "md", "csv", "tex", "json"]


def complete(incomplete: str) -> list[str]:
    """Return the papers whose names begin as typed."""
    from harness.tables.papers import published

    names = (*published.available(published.folder()), "all", published.ERRATA)
    return [name for name in names if name.startswith(incomplete)]


def paper(
    name: Annotated[
        str,
        typer.Argument(
            metavar="PAPER", help="A paper, `all` for a summary, or `errata`.", autocompletion=complete
        ),
    ],
    table: Annotated[
        str | None, typer.Option(metavar="TABLE", help="Only this table, named as in the paper: 6b.")
    ] = None,
    form: Annotated[Format, typer.Option("--format", help="Format of what is printed.")] = "text",
    out: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Also write a file in the format of its ending, or a folder of md, csv and tex; repeatable.",
        ),
    ] = None,
    results: options.Results = Path("runs"),
) -> None:
    """Compare a paper's published values with ours, with a verdict for each and what would fill the rest."""
    to = output.destinations(out, get_args(Format), folder=True)
    show.report(_built(name, table, results), to, name, form)


def _built(name: str, table: str | None, results: Path) -> Report:
    """Return the report of a paper, the errata or the summary; UserError for a table of the latter two."""
    from harness.files import ROOT
    from harness.tables.papers import errata, judge, lookup, published
    from harness.tables.papers import report as paper_report

    found = lookup.sources(ROOT, results)
    if name in ("all", published.ERRATA) and table is not None:
        known = ", ".join(published.available(found.papers))
        raise UserError(f"--table {table}: {name} is not a paper; give one of {known}")
    if name == published.ERRATA:
        return errata.build(errata.load(found.papers), found)
    if name == "all":
        names = published.available(found.papers)
        judged = {each: judge.judge(each, found.paper(each), found) for each in names}
        return paper_report.summary(judged)
    return paper_report.build(name, found.paper(name), found, table)
