"""The command `lorebench paper`: compare published values with ours. Runs nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from harness.cli.show import show
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.tables.report.build import Report

SUFFIXES = {"md": "md", "csv": "csv", "latex": "tex"}
Format = Literal["terminal", "md", "csv", "latex"]


def paper(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A paper, `all` for a summary, or `errata`.")],
    table: Annotated[str | None, typer.Option(help="Only the table of this number.")] = None,
    form: Annotated[Format, typer.Option("--format", help="Format of the output.")] = "terminal",
    out: Annotated[Path | None, typer.Option(help="Folder to write md, csv and tex to.")] = None,
    results: Annotated[Path, typer.Option(help="Folder of your records.")] = Path("runs"),
) -> None:
    """Compare a paper's published values with ours, with a verdict for each and what would fill the rest."""
    from harness.tables.report import render

    built = _built(name, table, results)
    if out is not None:
        try:
            written = render.write(built, out, name)
        except OSError as error:
            raise UserError(f"--out {out}: cannot be written: {error.strerror}; choose another") from error
        typer.echo("tables: " + ", ".join(str(path) for path in written))
    if form != "terminal":
        typer.echo(render.texts(built)[SUFFIXES[form]], nl=False)
    elif out is None:
        show(built)


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
