"""The command `lorebench run`: run what is left of a suite and print its tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from harness.cli import options, show
from harness.errors import UserError
from harness.files import cache_folder


@options.selects
def run(
    selection: options.Selection,
    device: options.Device = "auto",
    results: options.Results = Path("runs"),
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Time budget: start only runs expected to end within it: 90s, 25m or 6h; a bare number is "
            "seconds.",
        ),
    ] = None,
    deadline: options.Deadline = "6h",
    retry: Annotated[
        bool, typer.Option("--retry", help="Re-run failed runs, and those without their weights.")
    ] = False,
    keep_old: Annotated[
        bool, typer.Option("--keep-old", help="Keep runs whose weights, text or plug-in changed since.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Run even if predicted not to fit.")] = False,
) -> None:
    """Run a suite, or what is left of it, and print its tables."""
    from harness.engine import runner
    from harness.engine.process import progress

    chosen = selection.load()
    outcome = runner.sweep(
        chosen,
        runner.Settings(
            results=results,
            cache=cache_folder(),
            device=device,
            deadline_s=options.seconds(deadline, "--deadline"),
            budget_s=None if budget is None else options.seconds(budget, "--budget"),
            retry=retry,
            keep_old=keep_old,
            force=force,
        ),
        progress.choose(),
        selection.rerun(chosen, device),
    )
    records = list(outcome.records.values())
    left = len(outcome.left) + len(outcome.killed)
    notes = [f"{left} runs are left: run the same command again"] if left else []
    show.publish(chosen, records, notes, outcome.folder / "tables", chosen.name, outcome.inputs)
    typer.echo(f"records: {outcome.folder}")
    if outcome.refused:
        raise UserError("; ".join(dict.fromkeys(outcome.refused.values())))
    if outcome.killed or any(record.outcome.status == "error" for record in records):
        raise typer.Exit(1)
