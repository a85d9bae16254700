"""The command `lorebench gate`: compare the records of two revisions. Runs nothing."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from harness.errors import UserError

if TYPE_CHECKING:
    from harness.tables.compare.comparison import Comparison
    from harness.tables.compare.pairing import Side

Format = Literal["text", "md", "json", "github", "junit"]
FormOption = Annotated[
    Format,
    typer.Option("--format", help="github is Markdown for $GITHUB_STEP_SUMMARY, junit is XML for CI."),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", metavar="FILE", help="Write there; the counts are printed.")
]


def gate(
    base: Annotated[Path, typer.Argument(metavar="BASE", help="Records before: a folder or a file.")],
    candidate: Annotated[Path, typer.Argument(metavar="CAND", help="Records after: a folder or a file.")],
    form: FormOption = "text",
    out: OutOption = None,
    control: Annotated[
        str | None,
        typer.Option(
            metavar="LABEL",
            help="The row whose throughput must be stable before another's is judged. [default: the baseline "
            "of the records' suite]",
        ),
    ] = None,
) -> None:
    """Compare the records of two revisions; exit code 1 on a regression, 2 if inconclusive."""
    from harness.tables.compare.judge import compare
    from harness.tables.compare.pairing import load

    sides = load(base), load(candidate)
    for name, path, side in zip(("BASE", "CAND"), (base, candidate), sides, strict=True):
        if not side.records:
            skipped = f"; skipped: {side.skipped[0]}" if side.skipped else ""
            raise UserError(f"{name} {path}: no records in it; give a record or a folder of records{skipped}")
    publish(compare(*sides, _controls(sides, control)), form, out)


def publish(compared: Comparison, form: Format, out: Path | None) -> None:
    """Print or write a comparison and end with its exit code."""
    from harness.tables.compare.rendering import FORMATS

    text = FORMATS[form](compared)
    if out is None:
        typer.echo(text, nl=False)
    else:
        try:
            out.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"--out {out}: cannot be written: {error.strerror}; choose another") from error
        typer.echo(compared.summary)
    if compared.exit_code:
        raise typer.Exit(compared.exit_code)


def _controls(sides: Iterable[Side], control: str | None) -> dict[str, str]:
    """The label of the control row of each suite: as given, else the suite's baseline where it ships."""
    from harness import suite as suites
    from harness.tables.format import plain

    names = {loaded.record.suite for side in sides for loaded in side.records}
    if control is not None:
        labels = {loaded.record.label for side in sides for loaded in side.records}
        if control not in labels:
            known = ", ".join(sorted(map(plain, labels)))
            raise UserError(f"--control {control}: no row has this label; known: {known}")
        return dict.fromkeys(names, control)
    shipped = {file.stem: file for file in suites.shipped_suites().values()}
    found = {name: suites.load(shipped[name]).baseline for name in names if name in shipped}
    return {name: label for name, label in found.items() if label is not None}
