"""Carry out a suite: one process and one record per run; running it again continues where it stopped.

The parent never imports torch: it stays small, starts at once and survives whatever a run does. The run
itself is in `worker.py`; `process/` follows its process and kills it.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path

from harness import record as records
from harness.config import Run
from harness.engine.forecast.admission import refusals
from harness.engine.loggers.client import Logs
from harness.engine.process import attempt
from harness.engine.process.carry_out import Limits, carry_out
from harness.engine.process.child import WORKER
from harness.engine.process.forks import Forks
from harness.engine.process.interrupts import raised, shielded
from harness.engine.process.job import Job
from harness.engine.process.lock import Lock
from harness.engine.process.progress import Display
from harness.engine.sweep import resolution
from harness.engine.sweep.announced import Announced
from harness.engine.sweep.device_lock import device_lock
from harness.engine.sweep.earlier import cannot_go_on, labelled, recover, still_valid, survey
from harness.engine.sweep.estimates import Estimates, TimeLeft
from harness.engine.sweep.extended import extending
from harness.engine.sweep.shown import Shown
from harness.errors import UserError, counted
from harness.files import private_folder, writable_folder
from harness.inputs import changed
from harness.record import Outcome, Record
from harness.suite import Suite

#: Seconds between two looks at a lock that another sweep holds.
POLL_S = 0.5
#: What an input that a worker refuses depends on: other runs with the same are refused with it.
DEPENDS_ON = {
    "model": ("model", "train.stage"),
    "data": ("model", "data"),
    "evaluate": ("model", "data", "evaluate"),
}


@dataclass(frozen=True)
class Settings:
    """Where results go and the limits of a sweep.

    `deadline_s` is per run, `budget_s` for the whole sweep, `grace_s` the time between SIGTERM and SIGKILL.
    `retry` repeats failed runs, `keep_old` keeps runs whose inputs have changed since, `force` starts runs
    even if predicted not to fit the device, `from_scratch` removes the checkpoints of the runs that are left,
    `extend` lets them go on from shorter runs.
    `log` names loggers that show the runs while they are at work. `command` starts a worker.
    """

    results: Path
    cache: Path
    device: str = "auto"
    deadline_s: float | None = None
    budget_s: float | None = None
    retry: bool = False
    keep_old: bool = False
    grace_s: float = 5.0
    force: bool = False
    from_scratch: bool = False
    extend: bool = False
    log: tuple[str, ...] = ()
    command: tuple[str, ...] = WORKER

    def __post_init__(self) -> None:
        """Raise UserError for settings that exclude each other."""
        if self.extend and self.from_scratch:
            raise UserError("--extend goes on from checkpoints that --from-scratch removes: give one of them")


@dataclass
class Sweep:
    """The result of a sweep: finished records by run id, the ids of new ones, and the runs without one.

    `left` did not fit into the budget; `refused` tells by run id what to do about bad input or about a run
    that cannot fit its device; `killed` what ended a worker from outside: the same command tries again.
    `inputs` are hashes of what each run reads, by its id; `run_ids` are those of the suite's runs in order.
    """

    folder: Path
    records: dict[str, Record] = field(default_factory=dict)
    done_now: list[str] = field(default_factory=list)
    left: list[Run] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    killed: dict[str, str] = field(default_factory=dict)
    inputs: Mapping[str, dict[str, str]] = field(default_factory=dict)
    run_ids: Sequence[str] = ()


def sweep(suite: Suite, settings: Settings, display: Display, rerun: Callable[[Run], str]) -> Sweep:
    """Carry out all runs of a suite that have no finished record; failures are records, not exceptions.

    Several sweeps may share a folder, each with a device of its own: a run is claimed before it starts.
    `rerun` returns the command that repeats one run. Raises UserError before anything starts if an option is
    wrong or a file in the result folder is not a record of this suite; KeyboardInterrupt, also on SIGTERM and
    SIGHUP, after the worker is stopped and its record written.
    """
    with raised():
        cache = settings.cache.absolute()
        plan = resolution.resolve(suite.runs, settings.device, settings.command, cache=cache)
        folder = settings.results.absolute() / plan.machine / suite.name
        writable_folder(folder)
        with suppress(OSError):  # each cache says so where it cannot be written
            private_folder(settings.cache)
        unique: dict[str, Run] = {}
        for run in replace(suite, runs=plan.runs).checked().runs:
            unique.setdefault(run.run_id, run)  # two spellings of one config and label are one run
        # Repeats are outermost, so that drift of the machine affects all rows alike: A B C A B C.
        runs = sorted(unique.items(), key=lambda item: item[1].repeat)
        jobs = [
            Job(run, suite.name, folder / key, plan.device, cache, "", plan.inputs.get(key, {}))
            for key, run in runs
        ]
        display.names = suite.names(plan.runs)
        logs = Logs(settings.log, folder / "logs", display.note)
        with logs, display, device_lock(plan.device, settings.cache, display, plan.device_id) as device:
            result = _carry_out_all(jobs, rerun, settings, display, plan, device, logs)
        result.run_ids = [run.run_id for run in plan.runs]
        return result


def _carry_out_all(
    jobs: Sequence[Job],
    rerun: Callable[[Run], str],
    settings: Settings,
    display: Display,
    plan: resolution.Plan,
    device: Lock,
    logs: Logs,
) -> Sweep:
    began = time.monotonic()
    folder = jobs[0].folder.parent
    recover(folder)
    estimates = Estimates()
    found = survey([job.run for job in jobs], folder, estimates, {job.run_id: job.inputs for job in jobs})
    kept = still_valid(jobs, found, retry=settings.retry, keep_old=settings.keep_old, display=display)
    result = Sweep(folder, kept)
    result.inputs = {job.run_id: job.inputs for job in jobs}
    todo = [replace(job, rerun=rerun(job.run)) for job in jobs if job.run_id not in result.records]
    if settings.extend:
        todo = extending(todo, found, plan.fixed_length)
    if not settings.from_scratch:
        result.refused |= cannot_go_on(todo, found)
    if plan.device_bytes is not None and not settings.force:
        # A config that has run here fits, whatever its seed.
        unsure = [job.run for job in todo if estimates.known(job.run) is None]
        result.refused |= refusals(
            unsure, plan.device, plan.device_bytes, settings.cache, settings.command, display.note
        )
    todo = [job for job in todo if job.run_id not in result.refused]
    for reason in dict.fromkeys(result.refused.values()):
        display.note(f"refused: {reason}")
    display.begin(total=len(jobs), done=len(result.records))
    # What a fork inherits is for runs that need neither a GPU nor the hub; a single run gains nothing by it.
    forkable = plan.local and plan.device == "cpu" and len(todo) > 1
    with Forks(settings.command, display.note, forkable) as forks, Announced(folder) as announced:
        shown = Shown(display, logs, announced)
        progress = _Progress(settings, shown, result, found, estimates, todo, device.inherited, forks, began)
        progress.carry_out()
    if progress.failed_again:
        display.note(
            f"{counted(progress.failed_again, 'new attempt')} failed without replacing a record: the same "
            "command tries again, --keep-old does not"
        )
    if result.left:
        of = counted(len(jobs), "run")
        display.note(f"left: {len(result.left)} of {of} would not finish within the budget")
    result.records = labelled([job.run for job in jobs], result.records)
    return result


class _Progress:
    """One sweep on its way through the runs that are left, beside others that share its folder."""

    def __init__(
        self,
        settings: Settings,
        shown: Shown,
        result: Sweep,
        found: Mapping[str, Record],
        estimates: Estimates,
        todo: Sequence[Job],
        descriptors: Sequence[int],
        forks: Forks,
        began: float,
    ) -> None:
        self.settings, self.shown, self.result, self.found = settings, shown, result, found
        self.display = shown.display
        self.estimates, self.descriptors, self.forks, self.began = estimates, descriptors, forks, began
        self.todo = deque(todo)
        self.time_left = TimeLeft(estimates, [job.run for job in todo])
        self.claims: dict[str, Lock] = {}
        self.refused_inputs: dict[str, str] = {}
        self.failed_again = 0

    def carry_out(self) -> None:
        """Carry out what is left; a run that another sweep has claimed is asked for again after the rest."""
        in_vain, told = 0, False
        self.shown.wait(self.todo)
        while self.todo:
            job = self.todo.popleft()
            if self._skipped(job) or self._claimed(job):
                self.time_left.remove(job.run)
                self.shown.gone(job)
                in_vain = 0
                continue
            self.todo.append(job)
            in_vain += 1
            if in_vain < len(self.todo):
                continue
            if self.settings.budget_s is not None:
                self.result.left += [each.run for each in self.todo]
                return
            if not told:
                holders = ", ".join(sorted({self.claims[each.run_id].holder for each in self.todo}))
                held = counted(len(self.todo), "run")
                self.display.note(f"waiting: another sweep is at work on {held} ({holders})")
            in_vain, told = 0, True
            time.sleep(POLL_S)

    def _skipped(self, job: Job) -> bool:
        """Return whether a run need not start: it would not end in time, or its input was refused before."""
        run = job.run
        for key in _inputs(run).values():
            if key in self.refused_inputs:
                self.result.refused[job.run_id] = self.refused_inputs[key]
                return True
        if self.settings.budget_s is None:
            return False
        remaining_s = self.settings.budget_s - (time.monotonic() - self.began)
        anew = self.settings.from_scratch
        share = 1.0 if anew else attempt.share_left(job, self.found.get(job.run_id))
        if (self.estimates.of(run) or 0.0) * share < remaining_s:
            return False
        self.result.left.append(run)
        return True

    def _claimed(self, job: Job) -> bool:
        """Carry out a run under a claim; False where another sweep has claimed it."""
        folder, run_id = job.folder.parent, job.run_id
        claim = self.claims.setdefault(run_id, attempt.claim(folder, run_id))
        with shielded():
            try:
                if not claim.take():
                    return False
                attempt.recover(folder, run_id)
                now = records.read(job.record) if os.path.lexists(job.record) else None
            except (OSError, UserError) as error:
                claim.give()
                self.result.refused[run_id] = str(error)
                return True
            try:
                if now is not None and self._is_done(job, now):
                    self.result.records[run_id] = now
                    self.display.adopt(job.run, now)
                else:
                    self._carry_out(job, now, claim)
            finally:
                claim.give()
        del self.claims[run_id]
        return True

    def _is_done(self, job: Job, now: Record) -> bool:
        """Return whether another sweep has carried out a run since this one looked."""
        if changed(now, job.inputs) and not self.settings.keep_old:
            return False
        if not self.settings.retry or (now.outcome.status == "ok" and not attempt.lacks_anything(job, now)):
            return now.finished
        seen = self.found.get(job.run_id)  # compared as text: a loss that is NaN does not equal itself
        return now.finished and (seen is None or now.model_dump_json() != seen.model_dump_json())

    def _carry_out(self, job: Job, earlier: Record | None, claim: Lock) -> None:
        run = job.run
        inputs: list[str] = []

        def on_event(event: Mapping[str, object]) -> None:
            if event.get("input") in DEPENDS_ON:
                inputs.append(str(event["input"]))
            if "warning" in event:
                self.display.note(f"{self.display.title(run)}: {event['warning']}")
            self.shown.event(event)

        if self.settings.from_scratch or attempt.begins_anew(job, earlier):
            attempt.remove(job.checkpoints)
        done_s = (self.estimates.of(run) or 0.0) * (1 - attempt.share_left(job, earlier))
        left_s = self.time_left.seconds()
        self.display.start(run, None if left_s is None else max(0.0, left_s - done_s))
        self.forks.prepare()
        started = time.monotonic()
        limits = Limits(self.settings.deadline_s, self.settings.grace_s)
        attempts = (earlier.outcome.attempts or 0) if earlier and not attempt.has_ended(earlier) else 0
        at = attempt.begin(job, earlier)
        self.shown.begin(job)
        try:
            inherited = (*self.descriptors, *claim.inherited)
            record = carry_out(at, self.settings.command, limits, on_event, attempts, inherited, self.forks)
        except BaseException:
            self.shown.end(job, None)
            with suppress(OSError, UserError):  # the next sweep looks after what is left
                attempt.end(job, at, earlier)
            raise
        try:
            replaced = attempt.end(job, at, earlier)
            attempt.forget_checkpoints(job, record)
            self.failed_again += record.finished and not replaced
        except (OSError, UserError) as error:
            message = f"the files of the run cannot be moved into place: {error}"
            record.outcome = Outcome(status="error", phase=record.outcome.phase, message=message)
        self.shown.end(job, record)
        seconds = time.monotonic() - started
        self.time_left.learn(run, record, seconds)
        if record.finished:
            self.result.records[job.run_id] = record
            self.result.done_now.append(job.run_id)
        elif record.outcome.attempts:
            self.result.killed[job.run_id] = record.outcome.message
        else:
            self.result.refused[job.run_id] = record.outcome.message
            self.refused_inputs |= {_inputs(run)[name]: record.outcome.message for name in inputs}
        self.display.end(run, record, seconds)


def _inputs(run: Run) -> dict[str, str]:
    """Return for each input of a run a text that equals that of other runs with the same input."""
    return {
        name: name + repr([attrgetter(setting)(run) for setting in settings])
        for name, settings in DEPENDS_ON.items()
    }
