"""The command `lorebench gate`: compare two sets of records, or peak memory with stored baselines.

Verdicts are made in `tables/compare/judge.py`, those on baselines in `tables/compare/baselines.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from harness.cli import output
from harness.cli.show import lines, say
from harness.errors import UserError, counted, listed

if TYPE_CHECKING:
    from harness.forecast import MemoryReport
    from harness.tables.compare.baselines import Row
    from harness.tables.compare.comparison import Comparison
    from harness.tables.compare.pairing import Side

#: The advice about a file in the way of a run.
AGAIN = "; move it away and run again"
#: The shape whose rows are counted as well as simulated.
SMALLEST = "nano"
Format = Literal["text", "md", "json", "github", "junit"]
FormOption = Annotated[
    Format,
    typer.Option("--format", help="github is Markdown for $GITHUB_STEP_SUMMARY, junit is XML for CI."),
]


BaseArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="BASE", help="Records before: a folder or a file. With --baselines: the file of baselines."
    ),
]
CandidateArgument = Annotated[
    Path | None, typer.Argument(metavar="CAND", help="Records after: a folder or a file.")
]
ControlOption = Annotated[
    str | None,
    typer.Option(
        metavar="LABEL",
        help="The row whose throughput must be stable before another's is judged. [default: the baseline "
        "of the records' suite]",
    ),
]
BaselinesOption = Annotated[
    bool,
    typer.Option(
        "--baselines", help="Compare the peak memory of every method, simulated and counted, with a file."
    ),
]
WriteOption = Annotated[
    bool, typer.Option("--write", help="With --baselines: store today's peaks instead of comparing.")
]


def gate(
    base: BaseArgument = None,
    candidate: CandidateArgument = None,
    form: FormOption = "text",
    out: output.Out = None,
    control: ControlOption = None,
    baselines: BaselinesOption = False,
    write: WriteOption = False,
) -> None:
    """Compare two sets of records, or peak memory with its baselines.

    Exit code 1 on a regression, 2 when inconclusive.
    """
    to = output.destinations(out, get_args(Format))
    if baselines:
        if candidate is not None or control is not None:
            raise UserError("--baselines compares with one file; drop CAND and --control")
        _gate_baselines(base, write, form, to)
        return
    if write:
        raise UserError("--write stores baselines: add --baselines")
    if base is None or candidate is None:
        raise UserError("give two sets of records, BASE and CAND, or --baselines")
    from harness.tables.compare.judge import compare
    from harness.tables.compare.pairing import load

    sides = load(base), load(candidate)
    for name, path, side in zip(("BASE", "CAND"), (base, candidate), sides, strict=True):
        if not side.records:
            skipped = f"; skipped: {side.skipped[0]}" if side.skipped else ""
            skipped = skipped.removesuffix(AGAIN)  # nothing runs here
            raise UserError(f"{name} {path}: no records in it; give a record or a folder of records{skipped}")
    publish(compare(*sides, _controls(sides, control)), form, to)


def _gate_baselines(file: Path | None, write: bool, form: Format, to: Mapping[Path, str]) -> None:
    from harness.files import ROOT
    from harness.tables.compare import baselines

    file = file or ROOT / "results" / "baselines" / "memory.json"
    if write:  # either of both before minutes of measuring
        baselines.check_writable(file)
    base = {} if write else baselines.read(file)
    today = _measure()
    if write:
        baselines.write(file, today)
        typer.echo(f"{file.name}: {counted(len(today), 'row')} written")
        return
    compared = baselines.compare(base, today)
    code = baselines.exit_code(compared)
    if code == 2 or (code == 0 and "improvement" in compared.counts):
        typer.echo(f"accept today's peaks as baselines: {baselines.WRITE}", err=True)
    publish(compared, form, to, code)


def _measure() -> dict[str, Row]:
    """Forecast the rows of suite `baselines`, and count those of the smallest shape as well."""
    from harness import suite as suites
    from harness.engine.forecast.cache import ForecastRequest
    from harness.engine.forecast.client import ForecastClient
    from harness.engine.process import child
    from harness.engine.sweep import resolution
    from harness.files import cache_folder
    from harness.tables.compare import baselines

    def on_progress(request: ForecastRequest, done: int, total: int) -> None:
        say(f"[{done}/{total}] {request.run.name}: {request.meter}")

    runs = resolution.resolve(suites.load(baselines.SUITE).runs, "cpu", text=False).runs
    small = [run for run in runs if dict(run.model).get("name") == SMALLEST]
    requests = [
        *(ForecastRequest(run, meter="exact" if run in small else "cuda") for run in runs),
        *(ForecastRequest(run, meter="live") for run in small),
    ]
    client = ForecastClient(cache_folder(), child.WORKER, notify=say)
    reports: dict[str, dict[str, MemoryReport | str]] = {run.name: {} for run in runs}
    for request, answer in zip(requests, client.ask(requests, on_progress), strict=True):
        meter = "live" if request.meter == "live" else "simulated"
        reports[request.run.name][meter] = answer.report or answer.reason
    return {run.name: baselines.Row.of(run.config_id, reports[run.name]) for run in runs}


def publish(compared: Comparison, form: Format, to: Mapping[Path, str], code: int | None = None) -> None:
    """Print a comparison, write it to files, and exit with `code`, by default that of the comparison."""
    from harness.tables.compare.rendering import FORMATS, to_text

    output.publish(compared, form, to, FORMATS, lambda found: lines(to_text(found)))
    code = compared.exit_code if code is None else code
    if code:
        raise typer.Exit(code)


def _controls(sides: Iterable[Side], control: str | None) -> dict[str, str]:
    """Return the label of each suite's control row: as given, else the baseline of a suite that ships."""
    from harness import suite as suites
    from harness.tables.format import plain

    names = {loaded.record.suite for side in sides for loaded in side.records}
    if control is not None:
        labels = {loaded.record.label for side in sides for loaded in side.records}
        if control not in labels:
            known = listed(sorted(map(plain, labels)))
            raise UserError(f"--control {control}: no row has this label; known: {known}")
        return dict.fromkeys(names, control)
    shipped = {file.stem: file for file in suites.shipped_suites().values()}
    found = {name: suites.load(shipped[name]).baseline for name in names if name in shipped}
    return {name: label for name, label in found.items() if label is not None}
