"""Forecasts of many runs, kept in one file: simulated where they are missing or out of date.

A forecast is current while the configuration of its run and the version of forecasts are what they were.
Code that changes under an equal configuration is not noticed: simulate anew with `--fresh`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from benchmarks.studies import jobs as processes
from harness.config import Run
from harness.errors import UserError
from harness.forecast import FORECAST_VERSION, MemoryReport


class Strict(BaseModel):
    """Unknown keys are refused."""

    model_config = ConfigDict(extra="forbid")


class Forecast(Strict):
    """What a simulation said of one run: a report, or in one line why there is none."""

    config_id: str
    report: MemoryReport | None = None
    error: str | None = None

    def is_of(self, run: Run) -> bool:
        """Whether it can be shown for this run, its options complete."""
        return (
            self.config_id == run.config_id
            and self.report is not None
            and self.report.version == FORECAST_VERSION
        )


class Forecasts(Strict):
    """The file: forecasts by the label of their run."""

    schema_version: Literal[1] = 1
    forecasts: dict[str, Forecast] = {}

    def of(self, run: Run) -> Forecast | None:
        """What is known about a run today."""
        found = self.forecasts.get(run.name)
        return found if found is not None and found.config_id == run.config_id else None

    def missing(self, runs: Iterable[Run]) -> list[Run]:
        """The runs without a current report."""
        return [run for run in runs if not ((found := self.of(run)) and found.is_of(run))]


def read(path: Path) -> Forecasts:
    """The forecasts of a file, none where there is no file; UserError for one that is something else."""
    if not path.exists():
        return Forecasts()
    try:
        return Forecasts.model_validate_json(path.read_text(encoding="utf-8"))
    except (ValidationError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise UserError(
            f"{path}: not a file of forecasts ({first}); move it away and simulate again"
        ) from error


def write(path: Path, text: str) -> None:
    """Replace a file in one go, so that an interrupted run leaves the last one whole.

    UserError where it cannot be written.
    """
    beside = path.with_suffix(".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text, encoding="utf-8", newline="\n")
        beside.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from error


def complete(
    path: Path,
    runs: Sequence[Run],
    wanted: Sequence[Run],
    jobs: int = 1,
    say: Callable[[str], None] = print,
) -> Forecasts:
    """Simulate the wanted ones of all runs, write each at once in the order of the runs, return the file.

    Forecasts of labels that no run has any more are dropped.
    """
    known = read(path)
    for run, forecast, seconds in _simulated(wanted, jobs):
        known = _put(path, runs, known, {run.name: forecast})
        say(f"{run.name}: {_line(forecast)} ({seconds:.1f} s)")
    return known


def borrow(path: Path, runs: Sequence[Run], others: Forecasts) -> None:
    """Take reports that the file lacks from others, of runs that differ in nothing but the label."""
    known = read(path)
    by_id = {forecast.config_id: forecast for forecast in others.forecasts.values()}
    found = {run.name: by_id[run.config_id] for run in known.missing(runs) if run.config_id in by_id}
    if found:
        _put(path, runs, known, found)


def _put(path: Path, runs: Sequence[Run], known: Forecasts, new: Mapping[str, Forecast]) -> Forecasts:
    kept = known.forecasts | dict(new)
    result = Forecasts(forecasts={run.name: kept[run.name] for run in runs if run.name in kept})
    write(path, result.model_dump_json(indent=1, exclude_none=True) + "\n")
    return result


def foresee(run: Run) -> tuple[Forecast, float]:
    """Simulate one run, with the seconds of processor time it took; what goes wrong becomes its forecast."""
    from harness.engine.forecast.dry_run import simulate

    started = time.process_time()
    try:
        forecast = Forecast(config_id=run.config_id, report=simulate(run))
    except Exception as error:  # one run that fails must not take the others along
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        forecast = Forecast(config_id=run.config_id, error=" ".join(text.split()))
    return forecast, time.process_time() - started


def _simulated(runs: Sequence[Run], jobs: int) -> Iterator[tuple[Run, Forecast, float]]:
    """One after another in this process, or as they are done in several; each is its run's first forecast."""
    if jobs == 1:
        for run in runs:
            yield run, *foresee(run)
        return
    with processes.pool(jobs) as pool:
        tasks = {pool.submit(foresee, run): run for run in runs}
        for task in as_completed(tasks):
            yield tasks[task], *task.result()


def _line(forecast: Forecast) -> str:
    if forecast.report is None:
        return f"failed: {forecast.error}"
    train = forecast.report.train
    return f"{(train or forecast.report).peak_allocated_bytes / 2**30:.2f} GiB"
