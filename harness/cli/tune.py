"""The command `lorebench tune`: find the learning rate of each row of a suite on validation text."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from harness import files, tuning
from harness.cli import options, show
from harness.cli.run import Force, Retry, show_runs
from harness.config import Run
from harness.credentials import shown
from harness.errors import UserError
from harness.inputs import PLUG_IN
from harness.plain_text import plain
from harness.rates import FREE, Rates, TunedOn, read, refuse_given
from harness.rates import Row as Tuned
from harness.record import Record
from harness.tables.format import DASH, fixed

if TYPE_CHECKING:
    from harness.engine.runner import Settings
    from harness.suite import Suite

MOST_EXTENSIONS = 20
#: What marks the best rate of a row.
BEST = "*"
NONE = "none for these rows, as every trial failed; try others by --rates"

Grid = Annotated[str, typer.Option(metavar="RATES", help="Learning rates to try, with commas between.")]
Extend = Annotated[
    int,
    typer.Option(metavar="N", help="How often to go on where nothing tried bounds the best rate."),
]
Seed = Annotated[
    int | None, typer.Option(metavar="N", help="Seed of the trials. [default: 100, or the next unused one]")
]
Out = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Where to write the rates. [default: rates.yaml beside the records]"),
]


@dataclass
class _Row:
    """A row on its way: a trial of it, conditions beside its label, and the record of each rate tried."""

    trial: Run
    only: tuple[str, ...]
    records: dict[float, Record] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The label, with what varies where several rows have it."""
        return " ".join([self.trial.name, *self.only])

    @property
    def tried(self) -> dict[float, float]:
        """Perplexities by rate."""
        return {rate: tuning.perplexity(self.records[rate]) for rate in sorted(self.records)}

    @property
    def next(self) -> list[float]:
        """The rates to try next."""
        return tuning.beyond(self.tried, any(r.outcome.status == "diverged" for r in self.records.values()))

    @property
    def found(self) -> str:
        """The best rate in words, and whether it is at an edge of what was tried."""
        return tuning.in_words(self.tried)

    @property
    def doubt(self) -> str | None:
        """Why the best rate is none to train at: it leaves the model no better than it was."""
        best = tuning.best(self.tried)
        before = None if best is None else tuning.untrained(self.records[best])
        if best is None or before is None or self.tried[best] < before:
            return None
        reached, was = fixed(3)(self.tried[best]), fixed(3)(before)
        return (
            f"{self.name}: its best rate {best:g} leaves the model no better than before training: "
            f"perplexity {reached} on validation text, and {was} before on the first batch; "
            "try other rates by --rates"
        )


@options.selects
def tune(
    selection: options.Selection,
    rates: Grid = "1e-3,3e-3,1e-2,3e-2",
    extend: Extend = 4,
    seed: Seed = None,
    device: options.Device = "auto",
    results: options.Results = Path("runs"),
    deadline: options.Deadline = None,
    retry: Retry = False,
    force: Force = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show which runs would start first; start and write none.")
    ] = False,
    out: Out = None,
) -> None:
    """Find the learning rate of each row that trains, on text that is neither trained on nor reported."""
    from harness.engine import runner

    first = _rates(rates)
    if not 0 <= extend <= MOST_EXTENSIONS:
        raise UserError(f"--extend {extend}: give a number from 0 to {MOST_EXTENSIONS}")
    refuse_given(selection.overrides(), "--rates")
    whole = replace(selection, only=None).everything()
    if out is not None:
        _check_out(out, whole.name)
    chosen = options.use_threads(selection.load())
    trials = tuning.trials(chosen, tuning.seed_for(whole, seed))
    rows = [_Row(run, tuning.conditions(whole, run)) for run in trials.runs]
    cache, limit = files.cache_folder(), options.deadline_s(deadline)
    settings = runner.Settings(results, cache, device, limit, retry=retry, force=force)
    show.doubts(trials.runs)
    if dry_run:
        show_runs(_suite(trials, [(row, rate) for row in rows for rate in first])[0], settings)
        return

    def rerun(run: Run) -> str:
        own = [f"--rates={run.train.lr!r}", "--extend=0", f"--seed={run.seed}"]
        only = [f"--only={item}" for item in (f"label={run.name}", *tuning.conditions(whole, run))]
        return shlex.join(["lorebench", "tune", selection.suite, *selection.forwarded(device), *own, *only])

    folder = _try(trials, rows, first, extend, settings, rerun)
    path = out or folder / "rates.yaml"
    show.table(*_table(rows))
    for doubt in filter(None, (row.doubt for row in rows)):
        show.say(doubt)
    found = _file(whole.name, trials, rows)
    usable = _usable(found, _write(found, path))
    typer.echo(f"rates: {path}; {_next(selection, path, device) if usable else NONE}")
    if not usable or any(record.outcome.status == "error" for row in rows for record in row.records.values()):
        raise typer.Exit(1)


def _next(selection: options.Selection, path: Path, device: str) -> str:
    """Return the command that runs the same rows at the rates of a file."""
    given = replace(selection, rates=path).forwarded(device)
    given += [f"--only={item}" for item in selection.only or ()]
    return f"use them: {shlex.join(['lorebench', 'run', selection.suite, *given])}"


def _check_out(path: Path, suite: str) -> None:
    """Raise UserError for a file of rates that cannot be written, or that is something else already."""
    options.check_yaml(path)
    if not path.exists():
        return
    try:
        held = read(path).suite
    except UserError as error:
        raise UserError(f"--out {path}: is there and holds no rates ({error}); name another file") from error
    if held != suite:
        raise UserError(f"--out {path}: has rates of suite {shown(held)}; name another file for {suite}")


def _rates(text: str) -> list[float]:
    """Read rates with commas between; UserError for what is none, and for one given twice."""
    found = []
    for part in text.split(","):
        try:
            rate = float(part)
        except ValueError:
            rate = 0.0
        if not tuning.LEAST <= rate <= tuning.MOST:
            raise UserError(
                f"--rates {shown(text)}: {shown(part)} is no learning rate; give numbers from "
                f"{tuning.LEAST:g} to {tuning.MOST:g} with commas between, as 1e-3,3e-3"
            )
        found.append(rate)
    if len(set(found)) < len(found):
        raise UserError(f"--rates {shown(text)}: a rate is given twice; name each once")
    return sorted(found)


def _try(
    trials: Suite,
    rows: Sequence[_Row],
    first: Sequence[float],
    extend: int,
    settings: Settings,
    rerun: Callable[[Run], str],
) -> Path:
    """Try all rates for all rows, and go on where the best is at an edge; return the folder of the records.

    UserError where a trial is refused or was killed from outside; what has finished stays in its record.
    """
    from harness.engine import runner
    from harness.engine.process import progress

    asked = [(row, rate) for row in rows for rate in first]
    for left in range(extend, -1, -1):
        suite, sharing = _suite(trials, asked)
        outcome = runner.sweep(suite, settings, progress.choose(), rerun)
        for run, run_id in zip(suite.runs, outcome.run_ids, strict=True):
            for row in sharing[run.run_id] if run_id in outcome.records else ():
                row.records[run.train.lr] = outcome.records[run_id]
        if stopped := {**outcome.refused, **outcome.killed}:
            raise UserError("; ".join(dict.fromkeys(stopped.values())))
        asked = [(row, rate) for row in rows for rate in row.next]
        for row in rows if left else ():
            if row.next:
                show.say(f"{row.name}: {row.found}; next: {', '.join(f'{rate:g}' for rate in row.next)}")
        if not asked:
            break
    return outcome.folder


def _suite(trials: Suite, asked: Sequence[tuple[_Row, float]]) -> tuple[Suite, dict[str, list[_Row]]]:
    """Return a suite of one run for each rate and config, and the rows that share each run, by its id."""
    runs: dict[str, Run] = {}
    sharing: dict[str, list[_Row]] = {}
    for row, rate in asked:
        run = tuning.at_rate(replace(trials, runs=(row.trial,)), rate)
        runs.setdefault(run.run_id, run)
        sharing.setdefault(run.run_id, []).append(row)
    return replace(trials, runs=tuple(runs.values())), sharing


def _table(rows: Sequence[_Row]) -> tuple[list[str], list[list[str]]]:
    """Return head and body of a table of perplexities by row and rate, the best of each row marked."""
    tried = sorted({rate for row in rows for rate in row.records})

    def cell(row: _Row, rate: float) -> str:
        if rate not in row.records:
            return DASH
        failed = row.tried[rate] == float("inf")
        value = row.records[rate].outcome.status if failed else fixed(3)(row.tried[rate])
        return value + (BEST if rate == tuning.best(row.tried) else "")

    body = [[plain(row.name), *(cell(row, rate) for rate in tried), row.found] for row in rows]
    return ["validation perplexity", *(f"{rate:g}" for rate in tried), "best rate"], body


def _file(suite: str, trials: Suite, rows: Sequence[_Row]) -> Rates:
    """Return the rates of all rows with what each was tuned on."""
    found: list[TunedOn] = []
    for row in rows:
        record = next(iter(row.records.values()))
        inputs = {name: held for name, held in (record.inputs or {}).items() if not name.startswith(PLUG_IN)}
        train = row.trial.train.model_dump(mode="json", exclude=FREE)
        model, data = row.trial.model, row.trial.data
        found.append(TunedOn(model=model, data=data, train=train, inputs=inputs, rows=(_entry(row),)))
    return Rates.of(suite, trials.name, trials.runs[0].seed, found)


def _usable(found: Rates, written: Rates) -> bool:
    """Return whether a file has a rate for one of the rows that were tuned, if only from before."""
    own = [each for each in written.rows if any(row.replaces(each) for row in found.rows)]
    return any(each.rows[0].lr is not None for each in own)


def _write(found: Rates, path: Path) -> Rates:
    """Write rates and keep those of other rows that the file has; another `tune` may be writing them.

    Return what was written.
    """
    from harness.engine.process.lock import Lock

    lock = Lock(path.with_name(f".{path.name}.lock"))
    lock.wait(lambda: show.say(f"waiting: {lock.holder} writes {path}"))
    try:
        whole = _with_earlier(found, path)
        whole.write(path)
    finally:
        lock.give()
    return whole


def _with_earlier(found: Rates, path: Path) -> Rates:
    """Return rates with those of other rows that a file has; one that cannot be read is replaced."""
    try:
        return found.after(read(path)) if path.is_file() else found
    except UserError as error:
        show.say(f"{path}: replaced without what it held, as it cannot be read: {error}")
        return found


def _entry(row: _Row) -> Tuned:
    perplexities = tuple(None if value == float("inf") else value for value in row.tried.values())
    return Tuned(
        label=row.trial.name,
        only=row.only,
        method=row.trial.method,
        lr=tuning.best(row.tried),
        rates=tuple(row.tried),
        perplexities=perplexities,
    )
