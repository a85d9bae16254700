"""The command `lorebench run`: run what is left of a suite and print its tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness.cli import options, output, show
from harness.errors import UserError, counted
from harness.files import cache_folder
from harness.plain_text import plain

if TYPE_CHECKING:
    from harness.engine.runner import Settings
    from harness.suite import Suite


Retry = Annotated[bool, typer.Option("--retry", help="Re-run failed runs, and those without their weights.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show which runs would start; start and write none.")]
Force = Annotated[bool, typer.Option("--force", help="Run even if predicted not to fit.")]
KeepOld = Annotated[
    bool, typer.Option("--keep-old", help="Keep runs whose weights, text or plug-in changed since.")
]
FromScratch = Annotated[
    bool, typer.Option("--from-scratch", help="Begin anew where there are checkpoints of a training.")
]
Extend = Annotated[
    bool, typer.Option("--extend", help="Go on from shorter runs whose checkpoints stayed, for more updates.")
]
Budget = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Time budget: start only runs expected to end within it: 90s, 25m or 6h; a bare number is "
        "seconds.",
    ),
]
Log = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="Show the runs live in tensorboard, wandb, mlflow or trackio; several with commas between.",
    ),
]


@options.selects
def run(
    selection: options.Selection,
    device: options.Device = "auto",
    results: options.Results = Path("runs"),
    budget: Budget = None,
    deadline: options.Deadline = None,
    retry: Retry = False,
    keep_old: KeepOld = False,
    force: Force = False,
    from_scratch: FromScratch = False,
    extend: Extend = False,
    dry_run: DryRun = False,
    log: Log = None,
    full: options.Full = False,
) -> None:
    """Run a suite, or what is left of it, and print what came out."""
    from harness.cli.plan import forecast_at_scale
    from harness.engine import runner
    from harness.engine.loggers import registry as loggers
    from harness.engine.process import progress

    chosen = options.use_threads(selection.load())
    settings = runner.Settings(
        results=results,
        cache=cache_folder(),
        device=device,
        deadline_s=options.deadline_s(deadline),
        budget_s=None if budget is None else options.seconds(budget, "--budget"),
        retry=retry,
        keep_old=keep_old,
        force=force,
        from_scratch=from_scratch,
        extend=extend,
        log=() if log is None else loggers.names(log),
    )
    show.doubts(chosen.runs)
    if dry_run:
        show_runs(chosen, settings)
        return
    outcome = runner.sweep(chosen, settings, progress.choose(), selection.rerun(chosen, device))
    records, left = list(outcome.records.values()), len(outcome.left) + len(outcome.killed)
    notes = [f"{counted(left, 'run')} left: run the same command again"] if left else []
    to = {outcome.folder / "tables": output.FOLDER}
    scale, tune = forecast_at_scale(chosen), selection.tune()
    show.publish(chosen, records, notes, to, chosen.name, outcome.inputs, scale=scale, tune=tune, full=full)
    typer.echo(f"records: {outcome.folder}")
    if outcome.refused:
        raise UserError("; ".join(dict.fromkeys(outcome.refused.values())))
    if outcome.killed or any(record.outcome.status == "error" for record in records):
        raise typer.Exit(1)


def show_runs(chosen: Suite, settings: Settings) -> None:
    """Print each run in the order of the sweep: its record and whether it would run, and for how long."""
    from harness.engine.process import attempt, progress
    from harness.engine.process.job import Job
    from harness.engine.sweep import resolution
    from harness.engine.sweep.earlier import cannot_go_on, still_valid, survey
    from harness.engine.sweep.estimates import Estimates
    from harness.engine.sweep.extended import extending

    plan = resolution.resolve(chosen.runs, settings.device, cache=settings.cache)
    folder = settings.results.absolute() / plan.machine / chosen.name
    runs = {run.run_id: run for run in sorted(plan.runs, key=lambda run: run.repeat)}
    jobs = [
        Job(run, chosen.name, folder / key, plan.device, settings.cache, "", plan.inputs.get(key, {}))
        for key, run in runs.items()
    ]
    estimates = Estimates()
    found = survey(plan.runs, folder, estimates, plan.inputs)
    kept = still_valid(
        jobs, found, retry=settings.retry, keep_old=settings.keep_old, display=progress.choose()
    )
    left = {job.run_id: job for job in jobs if job.run_id not in kept}
    if settings.extend:
        left = {job.run_id: job for job in extending(list(left.values()), found, plan.fixed_length)}
    refused = {} if settings.from_scratch else cannot_go_on(list(left.values()), found)
    left = {key: job for key, job in left.items() if key not in refused}
    names, rows, total = chosen.names(plan.runs), [], estimates.total([job.run for job in left.values()])
    for key, run in runs.items():
        record, would = found.get(key), "stays"
        status = "none" if record is None else record.outcome.status
        if key in refused:
            would = "refused"
        elif key in left:
            done = 0 if settings.from_scratch else attempt.saved(left[key], record)
            share, seconds = 1 - done / run.train.steps, estimates.known(run)
            from_there = f", from update {done}" if done else ""
            would = (
                f"runs{from_there}"
                if seconds is None
                else f"runs{from_there}, {progress.duration(seconds * share)}"
            )
            total = None if total is None else total - (estimates.of(run) or 0.0) * (1 - share)
        rows.append((plain(names[run.name, run.config_id]), str(run.seed), key, status, would))
    show.table(("row", "seed", "run", "record", "now"), rows)
    for why in dict.fromkeys(refused.values()):
        typer.echo(plain(f"refused: {why}"))
    about = f", about {progress.duration(total)}" if left and total is not None else ""
    typer.echo(
        f"{len(left)} of {counted(len(runs), 'run')} would start on {plan.device}{about}; records: {folder}"
    )
