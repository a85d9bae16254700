"""The command line: `lorebench methods | plan | run | report | export | paper | gate | ab | history`.

Only the parent's light modules are imported at the top; whatever needs torch is a process of its
own or is imported inside its command.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from harness import ab, arguments, gating, options, publishing, reporting, tracking
from harness.errors import UserError

LONGEST_PATH = 200

app = typer.Typer(
    name="lorebench",
    help="Benchmark memory-efficient LLM training: perplexity, accuracy, peak memory, throughput.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command()
def methods() -> None:
    """List the methods with their sources and what each can do."""
    from rich.console import Console
    from rich.table import Table

    from harness.method import available, caps_as_dict, find

    table = Table(title="methods", header_style="bold", show_lines=True)
    for column in ("name", "options (default)", "stages", "source"):
        table.add_column(column, overflow="fold")
    for name in sorted(available()):
        cls = find(name)
        options = {
            key: item.get_default(call_default_factory=True) for key, item in cls.Config.model_fields.items()
        }
        shown = "\n".join(f"{key} ({value})" for key, value in options.items())
        try:
            stages = ", ".join(caps_as_dict(cls(cls.Config()).caps)["stages"])
        except ValueError:  # an option without a default
            stages = "-"
        table.add_row(name, shown, stages, " ".join(cls.source.split()))
    Console().print(table)


@app.command()
def run(
    suite: arguments.SuiteName,
    model: arguments.ModelOption = None,
    data: arguments.DataOption = None,
    settings: arguments.SetOption = None,
    only: arguments.OnlyOption = None,
    seed: arguments.Seeds = None,
    device: arguments.Device = "auto",
    results: arguments.Results = Path("runs"),
    budget: Annotated[str | None, typer.Option(help="Start nothing that would not finish, e.g. 25m.")] = None,
    deadline: Annotated[str, typer.Option(help="Longest time for one run.")] = "6h",
    retry: Annotated[bool, typer.Option("--retry", help="Repeat finished runs that are not ok.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Start also runs that cannot fit the device.")
    ] = False,
) -> None:
    """Run a suite, or what is left of it, and print its tables."""
    from harness.engine import progress, runner

    chosen = options.load(suite, model, data, settings, only, seed)
    outcome = runner.sweep(
        chosen,
        runner.Settings(
            results=results,
            cache=arguments.cache_folder(),
            device=device,
            deadline_s=options.seconds(deadline),
            budget_s=None if budget is None else options.seconds(budget),
            retry=retry,
            force=force,
        ),
        progress.choose(),
        options.rerun(suite, chosen, model, data, settings, seed, device),
    )
    records = list(outcome.records.values())
    notes = [f"{len(outcome.left)} runs are left: run the same command again"] if outcome.left else []
    reporting.publish(chosen, records, notes, outcome.folder / "tables", chosen.name)
    typer.echo(f"records: {outcome.folder}")
    if outcome.refused:
        raise UserError("; ".join(dict.fromkeys(outcome.refused.values())))
    if any(record.outcome.status == "error" for record in records):
        raise typer.Exit(1)


@app.command()
def plan(
    suite: arguments.SuiteName,
    model: arguments.ModelOption = None,
    data: arguments.DataOption = None,
    settings: arguments.SetOption = None,
    only: arguments.OnlyOption = None,
    seed: arguments.Seeds = None,
    device: arguments.Device = "auto",
    results: arguments.Results = Path("runs"),
    device_gib: arguments.DeviceGib = None,
    reserve_gib: arguments.ReserveGib = "1",
    max_batch: Annotated[bool, typer.Option("--max-batch", help="Find the largest batch that fits.")] = False,
    max_seq: Annotated[bool, typer.Option("--max-seq", help="Find the largest length that fits.")] = False,
    ranks: arguments.RanksOption = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write the plan as JSON.")
    ] = None,
) -> None:
    """Predict the memory of a suite's runs without running them or reading any weights."""
    import json

    from harness import planning
    from harness.engine import capacity
    from harness.tables.plan import tables, values

    sizes = options.sizes(device_gib or (), reserve_gib)
    searched = [s for s, on in zip(capacity.SETTINGS, (max_batch, max_seq), strict=True) if on]
    if searched and not device_gib:
        option = "--max-batch" if max_batch else "--max-seq"
        raise UserError(f"{option} needs the size of a device: add for example --device-gib 24")
    if json_file is not None and (json_file.is_dir() or not json_file.absolute().parent.is_dir()):
        raise UserError(f"--json {json_file}: no file can be written there; choose another")
    chosen = options.load(suite, model, data, settings, only, seed)
    made = planning.plan(chosen, device, results, sizes, searched, ranks, arguments.cache_folder(), _say)
    reporting.show(tables.build(made))
    if json_file is not None:
        try:
            json_file.write_text(json.dumps(values.as_dict(made), indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"--json {json_file}: cannot be written: {error.strerror}") from error


@app.command()
def export(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run id (or its beginning), or a record file.")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the model goes.")],
    form: Annotated[
        str, typer.Option(help="dense (plain Hugging Face) or factors (with a manifest).")
    ] = "dense",
    results: arguments.Results = Path("runs"),
) -> None:
    """Write the trained model of a run as a folder that transformers (dense) or lorebench (factors) loads."""
    from harness.engine.exporting import export_run

    export_run(_find_record(run, results), folder, form)
    typer.echo(f"{folder}: written as {form}")


app.command()(reporting.report)
app.command()(publishing.paper)
app.command()(gating.gate)
app.command()(ab.ab)
app.command()(tracking.history)


# ------------------------------------------------------------------------------------------- plan
def _say(text: str) -> None:
    typer.echo(text, err=True)


def _find_record(run: str, results: Path) -> Path:
    if run.endswith(".json") and Path(run).is_file():
        return Path(run)
    found = sorted(results.glob(f"*/*/{run}*.json"))
    if len(found) == 1:
        return found[0]
    problem = f"{len(found)} records begin with" if found else "no record begins with"
    raise UserError(f"{problem} {run!r} under {results}; give a whole run id or the path of a record")


def _refuse(text: str) -> NoReturn:
    """End with a line, whatever files and records put into it."""
    from harness.tables.cells import plain

    print(f"lorebench: {plain(text)}", file=sys.stderr)
    sys.exit(2)


def main() -> None:
    """Run the command line; a user's mistake is one line and exit code 2, also a path that cannot be."""
    try:
        app()
    except UserError as error:
        _refuse(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        _refuse(f"{str(error.filename)[:LONGEST_PATH]}: {error.strerror}")
    except KeyboardInterrupt:
        print("lorebench: stopped; the same command goes on where this one ended", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
