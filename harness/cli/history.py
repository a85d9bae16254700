"""The command `lorebench history`: the quantities of a suite over commits. Runs nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from harness.cli import output, show
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.suite import Suite
    from harness.tables.history.series import History

Format = Literal["text", "md", "json"]

Name = Annotated[
    str,
    typer.Argument(
        metavar="SUITE", help="A suite that ships, a YAML file, or the name of a suite in records."
    ),
]
Only = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="Select series by label, method, seed, quantity or any setting."),
]
Out = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        help="Also write a file in the format of its ending, .csv or .parquet for all points; repeatable.",
    ),
]


def history(
    suite: Name,
    results: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="Folder of records, searched recursively; repeatable. [default: runs]"
        ),
    ] = None,
    committed: Annotated[
        bool,
        typer.Option("--committed", help="Also read earlier versions of the records from git's history."),
    ] = False,
    only: Only = None,
    form: Annotated[Format, typer.Option("--format", help="Format of what is printed.")] = "text",
    out: Out = None,
    mlflow: Annotated[
        str | None,
        typer.Option(metavar="URI", help="Also upload every run to this MLflow server, each once."),
    ] = None,
    experiment: Annotated[
        str | None, typer.Option(metavar="NAME", help="MLflow experiment. [default: lorebench/SUITE]")
    ] = None,
) -> None:
    """Show each quantity of a suite over commits with its change points; exit code 0 whatever changed."""
    from harness.tables.history import build as tables
    from harness.tables.history import export
    from harness.tables.history.loading import collect
    from harness.tables.history.rendering import FORMATS

    formats: dict[str, Callable[[History], str | bytes]] = {**FORMATS, **export.FORMATS}
    to = output.destinations(out, formats)
    if experiment is not None and mlflow is None:
        raise UserError(f"--experiment {experiment}: only for an upload; add --mlflow URI")
    chosen = _suite(suite)
    name, baseline = (chosen.name, chosen.baseline) if chosen else (suite, None)
    labels = list(dict.fromkeys(run.name for run in chosen.runs)) if chosen else []
    folders = results or [Path("runs")]
    collection = collect(folders, name, committed)
    found = tables.build(collection, folders, baseline, only or (), labels)
    output.publish(found, form, to, formats, show.history)
    if mlflow is not None:
        from harness.tables.history import mlflow as mlflow_upload

        summary = mlflow_upload.upload(collection, mlflow, experiment or f"lorebench/{name}", only or ())
        typer.echo(summary, err=True)


def _suite(name: str) -> Suite | None:
    """Return the suite that ships or is a file, else None: records may name it."""
    from harness import suite as suites

    if Path(name).is_file() or name.removesuffix(".yaml") in suites.shipped_suites():
        return suites.load(name)
    return None
