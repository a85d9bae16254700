"""The command `lorebench export`: write the trained model of a run for other programs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

import typer

from harness.cli import options
from harness.credentials import shown
from harness.errors import UserError
from harness.files import visible

Form = Literal["dense", "factors"]


def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run id (or its beginning), or a record file.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write the model to.")],
    form: Annotated[
        Form, typer.Option("--format", help="dense (plain Hugging Face) or factors (with a manifest).")
    ] = "dense",
    results: options.Results = Path("runs"),
) -> None:
    """Write the trained model of a run as a folder that transformers (dense) or lorebench (factors) loads."""
    from harness.engine.models.export import export_run

    warning = export_run(_find_record(run, results), folder, form)
    typer.echo(f"{folder}: written as {form}")
    if warning:
        typer.echo(f"warning: {warning}", err=True)


def _find_record(run: str, results: Path) -> Path:
    if run.endswith(".json") and Path(run).is_file():
        return Path(run)
    problem = "no record begins with"
    if re.fullmatch(r"[0-9a-f]+(-s[0-9]*(-r?[0-9]*)?)?-?", run):  # else a pattern, or a path
        found = visible(results, f"*/*/{run}*.json")
        if len(found) == 1:
            return found[0]
        problem = f"{len(found)} records begin with" if found else problem
    raise UserError(f"{problem} {shown(run)} under {results}; give a whole run id or the path of a record")
