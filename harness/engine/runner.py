"""Carry out a suite: one process and one record per run; running it again continues where it stopped.

The parent never imports torch: it stays small, starts at once and survives whatever a run does. The run
itself is in `worker.py`; `process/` follows its process and kills it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from filelock import FileLock, Timeout

from harness import record as records
from harness.config import Run
from harness.engine.forecast.admission import refusals
from harness.engine.process.carry_out import carry_out
from harness.engine.process.job import Job
from harness.engine.process.progress import Display
from harness.errors import UserError
from harness.record import Record
from harness.suite import Suite

WORKER = (sys.executable, "-m", "harness.engine.worker")


@dataclass(frozen=True)
class Settings:
    """Where results go and the limits of a sweep.

    `deadline_s` is per run, `budget_s` for the whole sweep, `grace_s` the time between SIGTERM and SIGKILL.
    `retry` repeats failed runs, `force` starts runs even if predicted not to fit the device. `command` starts
    a worker.
    """

    results: Path
    cache: Path
    device: str = "auto"
    deadline_s: float = 3600.0
    budget_s: float | None = None
    retry: bool = False
    grace_s: float = 5.0
    force: bool = False
    command: tuple[str, ...] = WORKER


@dataclass(frozen=True)
class Plan:
    """Runs with complete method options, and their device and machine.

    `device_bytes` is the total memory of the device, None if unknown.
    """

    runs: tuple[Run, ...]
    device: str
    machine: str
    device_bytes: int | None = None


@dataclass
class Sweep:
    """The result of a sweep: finished records by run id, the ids of new ones, and the runs without one.

    `left` did not fit into the budget; `refused` tells by run id what to do about bad input or about a run
    that cannot fit its device.
    """

    folder: Path
    records: dict[str, Record] = field(default_factory=dict)
    done_now: list[str] = field(default_factory=list)
    left: list[Run] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


class Estimates:
    """Estimates of the seconds of a run, from equal or similar runs with status `ok`."""

    def __init__(self) -> None:
        self._seconds: dict[str, list[float]] = {}

    def add(self, record: Record, seconds: float | None) -> None:
        """Add a run; failed runs are ignored, since they may have ended early."""
        if seconds is not None and record.outcome.status == "ok":
            self._seconds.setdefault(record.config_id, []).append(seconds)

    def known(self, run: Run) -> float | None:
        """Return the longest time of the same config, else None."""
        return max(self._seconds.get(run.config_id, ()), default=None)

    def of(self, run: Run) -> float | None:
        """Return the longest time of the same config, else the mean of all runs, else None."""
        if (known := self.known(run)) is not None:
            return known
        return fmean(s for times in self._seconds.values() for s in times) if self._seconds else None

    def total(self, runs: Sequence[Run]) -> float | None:
        """Return the sum over runs, None if one is unknown."""
        known = [seconds for seconds in map(self.of, runs) if seconds is not None]
        return sum(known) if len(known) == len(runs) else None


def resolve(
    runs: Sequence[Run], device: str = "auto", command: Sequence[str] = WORKER, text: bool = True
) -> Plan:
    """Complete all runs and choose the device, in a worker; UserError for what it refuses.

    Without `text` the worker does not read training data.
    """
    request = {"runs": [run.model_dump(mode="json") for run in runs], "device": device, "text": text}
    answer = subprocess.run([*command, "resolve"], input=json.dumps(request).encode(), capture_output=True)
    try:
        content = json.loads(answer.stdout.decode(errors="replace").strip().splitlines()[-1])
        if "error" in content:
            raise _placed(runs, content)
        resolved = tuple(Run.model_validate(value) for value in content["runs"])
        return Plan(resolved, content["device"], content["machine"], content.get("device_bytes"))
    except (IndexError, KeyError, TypeError, ValueError) as error:
        lines = answer.stderr.decode(errors="replace").strip().splitlines()
        last = lines[-1] if lines else f"exit code {answer.returncode} and no message"
        raise UserError(f"the worker could not read the runs: {last}") from error


def _placed(runs: Sequence[Run], answer: Mapping[str, Any]) -> UserError:
    """Return the error of a worker with the line or option that it is about, where the run tells."""
    number, text = answer.get("run"), str(answer["error"])
    place = None if number is None else runs[number].place(answer["path"])
    return UserError(text if place is None else f"{place}: {text}")


def sweep(suite: Suite, settings: Settings, display: Display, rerun: Callable[[Run], str]) -> Sweep:
    """Carry out all runs of a suite that have no finished record; failures are records, not exceptions.

    `rerun` returns the command that repeats one run. Raises UserError before anything starts if an option is
    wrong or a file in the result folder is not a record of this suite; KeyboardInterrupt after the worker is
    stopped and its record written.
    """
    plan = resolve(suite.runs, settings.device, settings.command)
    folder = _result_folder(settings, plan.machine, suite.name)
    cache = settings.cache.absolute()
    unique: dict[str, Run] = {}
    for run in plan.runs:
        unique.setdefault(run.run_id, run)  # two spellings of one config are one run
    # Repeats are outermost, so that drift of the machine affects all rows alike: A B C A B C.
    runs = sorted(unique.values(), key=lambda run: run.repeat)
    jobs = [Job(run, suite.name, folder / run.run_id, plan.device, cache, rerun(run)) for run in runs]
    with display, device_lock(plan.device, settings.cache, display):
        return _carry_out_all(jobs, folder, settings, display, plan.device_bytes)


def _carry_out_all(
    jobs: Sequence[Job], folder: Path, settings: Settings, display: Display, device_bytes: int | None
) -> Sweep:
    began = time.monotonic()
    estimates = Estimates()
    found = survey([job.run for job in jobs], folder, estimates)
    result = Sweep(folder, _finished(found, settings.retry, display))
    todo = [job for job in jobs if job.run.run_id not in result.records]
    if device_bytes is not None and not settings.force:
        # A config that has run here fits, whatever its seed.
        unsure = [job.run for job in todo if estimates.known(job.run) is None]
        result.refused = refusals(
            unsure, jobs[0].device, device_bytes, settings.cache, settings.command, display.note
        )
        todo = [job for job in todo if job.run.run_id not in result.refused]
    for reason in dict.fromkeys(result.refused.values()):
        display.note(f"refused: {reason}")
    display.begin(total=len(jobs), done=len(result.records))
    for position, job in enumerate(todo):
        run = job.run
        if settings.budget_s is not None:
            remaining_s = settings.budget_s - (time.monotonic() - began)
            if (estimates.of(run) or 0.0) >= remaining_s:
                result.left.append(run)
                continue
        display.start(run, estimates.total([later.run for later in todo[position:]]))
        started = time.monotonic()
        record = carry_out(job, settings.command, settings.deadline_s, settings.grace_s, display.event)
        seconds = time.monotonic() - started
        estimates.add(record, seconds)
        if record.finished:
            result.records[run.run_id] = record
            result.done_now.append(run.run_id)
        else:
            result.refused[run.run_id] = record.outcome.message
        display.end(run, record, seconds)
    if result.left:
        display.note(f"left: {len(result.left)} of {len(jobs)} runs would not finish within the budget")
    result.records = labelled([job.run for job in jobs], result.records)
    return result


def labelled(runs: Sequence[Run], found: Mapping[str, Record]) -> dict[str, Record]:
    """Return the records of these runs, in order, under their current labels: an id contains no label."""
    return {
        run.run_id: found[run.run_id].model_copy(update={"label": run.name})
        for run in runs
        if run.run_id in found
    }


# ------------------------------------------------------------------------------- existing results
def _result_folder(settings: Settings, machine: str, suite: str) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", suite):
        raise UserError(f"suite name {suite!r} names a folder: use letters, digits, '.', '_' and '-'")
    folder = settings.results.absolute() / machine / suite
    for needed in (folder, settings.cache):
        try:
            needed.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{needed}: cannot be made: {error.strerror}; choose another folder") from error
    return folder


def survey(runs: Sequence[Run], folder: Path, estimates: Estimates) -> dict[str, Record]:
    """Read a suite's folder and return the records of the runs; UserError for a file of another suite."""
    found = {record.run_id: record for record in records.read_all(folder)}
    for record in found.values():
        if record.finished and record.time:
            estimates.add(record, record.time.wall_s)
    return {run.run_id: found[run.run_id] for run in runs if run.run_id in found}


def _finished(found: Mapping[str, Record], retry: bool, display: Display) -> dict[str, Record]:
    older = sum(not r.finished and r.outcome.status != "interrupted" for r in found.values())
    if older:
        display.note(f"{older} records follow older measurement protocols: measured again")
    return {key: r for key, r in found.items() if r.finished and (r.outcome.status == "ok" or not retry)}


@contextmanager
def device_lock(device: str, cache: Path, display: Display) -> Iterator[None]:
    """Hold the device exclusively, so that runs do not disturb each other; the lock dies with its holder."""
    name = "cuda:0" if device == "cuda" else device
    lock = FileLock(cache / f"device-{name.replace(':', '-')}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        display.note(f"waiting: another sweep uses the device {device}")
        lock.acquire(poll_interval=0.5)
    try:
        yield
    finally:
        lock.release()
