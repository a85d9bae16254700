"""Carry out a suite: one process and one record per run; running it again continues where it stopped.

The parent never imports torch: it stays small, starts at once and survives whatever a run does. The run
itself is in `worker.py`; `process/` follows its process and kills it.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from math import fsum
from operator import attrgetter
from pathlib import Path
from typing import Any

from harness import imports, record_index
from harness import record as records
from harness.config import Run
from harness.engine.forecast.admission import refusals
from harness.engine.process import attempt
from harness.engine.process.carry_out import Limits, carry_out
from harness.engine.process.interrupts import raised, shielded
from harness.engine.process.job import Job
from harness.engine.process.lock import Lock
from harness.engine.process.progress import Display
from harness.errors import UserError
from harness.files import private_folder, writable_folder
from harness.inputs import Inputs, by_run, changed, described, outdated
from harness.record import Outcome, Record
from harness.suite import Suite

WORKER = imports.command("harness.engine.worker")
#: Seconds between two looks at a lock that another sweep holds.
POLL_S = 0.5
#: Characters of the name of a file, with room for what stands around it.
LONGEST_NAME = 200
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
    even if predicted not to fit the device. `command` starts a worker.
    """

    results: Path
    cache: Path
    device: str = "auto"
    deadline_s: float = 3600.0
    budget_s: float | None = None
    retry: bool = False
    keep_old: bool = False
    grace_s: float = 5.0
    force: bool = False
    command: tuple[str, ...] = WORKER


@dataclass(frozen=True)
class Plan:
    """Runs with complete method options, and their device and machine.

    `device_bytes` is the total memory of the device, None if unknown. `device_id` names the same piece of
    hardware however it is numbered for a process, None if unknown. `inputs` are the hashes of what a run
    reads, by its id and then by name, where these were asked for.
    """

    runs: tuple[Run, ...]
    device: str
    machine: str
    device_bytes: int | None = None
    device_id: str | None = None
    inputs: Mapping[str, dict[str, str]] = field(default_factory=dict)


@dataclass
class Sweep:
    """The result of a sweep: finished records by run id, the ids of new ones, and the runs without one.

    `left` did not fit into the budget; `refused` tells by run id what to do about bad input or about a run
    that cannot fit its device; `killed` what ended a worker from outside: the same command tries again.
    `inputs` are hashes of what each run reads, by its id.
    """

    folder: Path
    records: dict[str, Record] = field(default_factory=dict)
    done_now: list[str] = field(default_factory=list)
    left: list[Run] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    killed: dict[str, str] = field(default_factory=dict)
    inputs: Mapping[str, dict[str, str]] = field(default_factory=dict)


class Estimates:
    """Estimates of the seconds of a run, from equal or similar runs with status `ok`, in constant time."""

    def __init__(self) -> None:
        self._longest: dict[str, float] = {}
        self._sum, self._count = 0.0, 0

    def add(self, record: Record, seconds: float | None) -> None:
        """Add a run; failed runs are ignored, since they may have ended early."""
        if seconds is not None and record.outcome.status == "ok":
            self._longest[record.config_id] = max(seconds, self._longest.get(record.config_id, 0.0))
            self._sum, self._count = self._sum + seconds, self._count + 1

    def known(self, run: Run) -> float | None:
        """Return the longest time of the same config, else None."""
        return self._longest.get(run.config_id)

    def of(self, run: Run) -> float | None:
        """Return the longest time of the same config, else the mean of all runs, else None."""
        return self._longest.get(run.config_id, self.mean)

    @property
    def mean(self) -> float | None:
        """The mean of all runs, None before the first."""
        return self._sum / self._count if self._count else None

    def total(self, runs: Sequence[Run]) -> float | None:
        """Return the sum over runs, None if one is unknown."""
        return TimeLeft(self, runs).seconds()


class TimeLeft:
    """The sum of estimates over the runs that are left, kept up to date run by run."""

    def __init__(self, estimates: Estimates, runs: Sequence[Run]) -> None:
        self._estimates = estimates
        self._left = Counter(run.config_id for run in runs)
        known = {run.config_id: estimates.known(run) for run in runs}
        self._unknown = sum(count for each, count in self._left.items() if known[each] is None)
        self._known_s = fsum(count * (known[each] or 0.0) for each, count in self._left.items())

    def remove(self, run: Run) -> None:
        """Take a run away."""
        self._left[run.config_id] -= 1
        known = self._estimates.known(run)
        self._unknown -= known is None
        self._known_s -= known or 0.0

    def learn(self, run: Run, record: Record, seconds: float) -> None:
        """Add the record of a run to the estimates."""
        before = self._estimates.known(run)
        self._estimates.add(record, seconds)
        after = self._estimates.known(run)
        if after is not None:
            left = self._left[run.config_id]
            self._unknown -= left if before is None else 0
            self._known_s += left * (after - (before or 0.0))

    def seconds(self) -> float | None:
        """Return the sum, None if nothing is known of a run."""
        if self._unknown and self._estimates.mean is None:
            return None
        return max(0.0, self._known_s + self._unknown * (self._estimates.mean or 0.0))


def resolve(
    runs: Sequence[Run],
    device: str = "auto",
    command: Sequence[str] = WORKER,
    *,
    text: bool = True,
    model: bool = True,
    cache: Path | None = None,
) -> Plan:
    """Complete all runs and choose the device, in a worker; UserError for what it refuses.

    Without `text` the worker does not read training data, without `model` it reads nothing. With `cache`, the
    folder of caches, it also hashes what the runs read.
    """
    first = _first_of_each(runs)
    asked = [runs[number] for number in dict.fromkeys(first)]
    request: dict[str, Any] = {"runs": [run.model_dump(mode="json") for run in asked], "device": device}
    request |= {"text": text, "model": model, "cache": None if cache is None else str(cache.absolute())}
    answer = _answered([*command, "resolve"], json.dumps(request).encode() + b"\n")
    try:
        content = json.loads(answer.stdout.decode(errors="replace").strip().splitlines()[-1])
        if "error" in content:
            raise _placed(asked, content)
        answers = map(Run.model_validate, content["runs"])
        known = dict(zip(dict.fromkeys(first), answers, strict=True))
        resolved = tuple(
            known[number].model_copy(update={"seed": run.seed, "repeat": run.repeat})
            for number, run in zip(first, runs, strict=True)
        )
        machine = (content["device"], content["machine"], content.get("device_bytes"))
        hashes = dict(zip(dict.fromkeys(first), content.get("inputs") or (), strict=False))
        inputs = {
            run.run_id: dict(hashes[number])
            for number, run in zip(first, resolved, strict=True)
            if number in hashes
        }
        return Plan(resolved, *machine, content.get("device_id"), inputs)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        lines = answer.stderr.decode(errors="replace").strip().splitlines()
        last = lines[-1] if lines else f"exit code {answer.returncode} and no message"
        if answer.returncode < 0:
            last = f"it was killed by signal {-answer.returncode}; run the same command again"
        raise UserError(f"the worker could not read the runs: {last}") from error


def _answered(command: Sequence[str], request: bytes) -> subprocess.CompletedProcess[bytes]:
    """Send a worker a request and return its end and output; it ends with this process, by its open pipe."""
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=pipe, env=imports.environment()
    ) as process:
        request_pipe, process.stdin = process.stdin, None  # or `communicate` would close it
        assert request_pipe is not None
        try:
            with suppress(BrokenPipeError):  # the exit of a dead worker tells why
                request_pipe.write(request)
                request_pipe.flush()
            output, errors = process.communicate()
        except BaseException:
            process.kill()
            raise
        finally:
            with suppress(BrokenPipeError):
                request_pipe.close()
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def _first_of_each(runs: Sequence[Run]) -> list[int]:
    """Return for each run the place of the first that differs from it in seed and repeat alone.

    Neither matters to options, inputs and devices, and a suite has many seeds.
    """
    known: dict[tuple[str, bool, str | None, str], int] = {}
    parts = ((run.config_id, run.save_weights, run.label, repr(run.tuning)) for run in runs)
    return [known.setdefault(key, number) for number, key in enumerate(parts)]


def _placed(runs: Sequence[Run], answer: Mapping[str, Any]) -> UserError:
    """Return the error of a worker with the line or option that it is about, where the run tells."""
    number, text = answer.get("run"), str(answer["error"])
    place = None if number is None else runs[number].place(answer["path"])
    return UserError(text if place is None else f"{place}: {text}")


def sweep(suite: Suite, settings: Settings, display: Display, rerun: Callable[[Run], str]) -> Sweep:
    """Carry out all runs of a suite that have no finished record; failures are records, not exceptions.

    Several sweeps may share a folder, each with a device of its own: a run is claimed before it starts.
    `rerun` returns the command that repeats one run. Raises UserError before anything starts if an option is
    wrong or a file in the result folder is not a record of this suite; KeyboardInterrupt, also on SIGTERM and
    SIGHUP, after the worker is stopped and its record written.
    """
    with raised():
        cache = settings.cache.absolute()
        plan = resolve(suite.runs, settings.device, settings.command, cache=cache)
        folder = _result_folder(settings, plan.machine, suite.name)
        unique: dict[str, Run] = {}
        for run in plan.runs:
            unique.setdefault(run.run_id, run)  # two spellings of one config are one run
        # Repeats are outermost, so that drift of the machine affects all rows alike: A B C A B C.
        runs = sorted(unique.items(), key=lambda item: item[1].repeat)
        jobs = [
            Job(run, suite.name, folder / key, plan.device, cache, rerun(run), plan.inputs.get(key, {}))
            for key, run in runs
        ]
        with display, device_lock(plan.device, settings.cache, display, plan.device_id) as device:
            return _carry_out_all(jobs, folder, settings, display, plan.device_bytes, device)


def _carry_out_all(
    jobs: Sequence[Job],
    folder: Path,
    settings: Settings,
    display: Display,
    device_bytes: int | None,
    device: Lock,
) -> Sweep:
    began = time.monotonic()
    _recover(folder)
    estimates = Estimates()
    found = survey([job.run for job in jobs], folder, estimates, {job.run_id: job.inputs for job in jobs})
    result = Sweep(folder, _finished(jobs, found, settings, display))
    result.inputs = {job.run_id: job.inputs for job in jobs}
    todo = [job for job in jobs if job.run_id not in result.records]
    if device_bytes is not None and not settings.force:
        # A config that has run here fits, whatever its seed.
        unsure = [job.run for job in todo if estimates.known(job.run) is None]
        result.refused = refusals(
            unsure, jobs[0].device, device_bytes, settings.cache, settings.command, display.note
        )
        todo = [job for job in todo if job.run_id not in result.refused]
    for reason in dict.fromkeys(result.refused.values()):
        display.note(f"refused: {reason}")
    display.begin(total=len(jobs), done=len(result.records))
    _Progress(settings, display, result, found, estimates, todo, device.inherited, began).carry_out()
    if result.left:
        display.note(f"left: {len(result.left)} of {len(jobs)} runs would not finish within the budget")
    result.records = labelled([job.run for job in jobs], result.records)
    return result


class _Progress:
    """One sweep on its way through the runs that are left, beside others that share its folder."""

    def __init__(
        self,
        settings: Settings,
        display: Display,
        result: Sweep,
        found: Mapping[str, Record],
        estimates: Estimates,
        todo: Sequence[Job],
        descriptors: Sequence[int],
        began: float,
    ) -> None:
        self.settings, self.display, self.result, self.found = settings, display, result, found
        self.estimates, self.descriptors, self.began = estimates, descriptors, began
        self.todo = deque(todo)
        self.time_left = TimeLeft(estimates, [job.run for job in todo])
        self.claims: dict[str, Lock] = {}
        self.refused_inputs: dict[str, str] = {}

    def carry_out(self) -> None:
        """Carry out what is left; a run that another sweep has claimed is asked for again after the rest."""
        in_vain, told = 0, False
        while self.todo:
            job = self.todo.popleft()
            if self._skipped(job) or self._claimed(job):
                self.time_left.remove(job.run)
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
                self.display.note(f"waiting: another sweep is at work on {len(self.todo)} runs ({holders})")
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
        if (self.estimates.of(run) or 0.0) < remaining_s:
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
        if not self.settings.retry or (now.outcome.status == "ok" and not attempt.lacks_weights(job, now)):
            return now.finished
        seen = self.found.get(job.run_id)  # compared as text: a loss that is NaN does not equal itself
        return now.finished and (seen is None or now.model_dump_json() != seen.model_dump_json())

    def _carry_out(self, job: Job, earlier: Record | None, claim: Lock) -> None:
        run = job.run
        inputs: list[str] = []

        def on_event(event: Mapping[str, object]) -> None:
            if event.get("input") in DEPENDS_ON:
                inputs.append(str(event["input"]))
            self.display.event(event)

        self.display.start(run, self.time_left.seconds())
        started = time.monotonic()
        limits = Limits(self.settings.deadline_s, self.settings.grace_s)
        attempts = (earlier.outcome.attempts or 0) if earlier and not attempt.has_ended(earlier) else 0
        at = attempt.begin(job, earlier)
        try:
            record = carry_out(
                at, self.settings.command, limits, on_event, attempts, (*self.descriptors, *claim.inherited)
            )
        except BaseException:
            with suppress(OSError, UserError):  # the next sweep looks after what is left
                attempt.end(job, at, earlier)
            raise
        try:
            attempt.end(job, at, earlier)
        except (OSError, UserError) as error:
            message = f"the files of the run cannot be moved into place: {error}"
            record.outcome = Outcome(status="error", phase=record.outcome.phase, message=message)
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


def labelled(runs: Sequence[Run], found: Mapping[str, Record]) -> dict[str, Record]:
    """Return the records of these runs, in order, under their current labels: an id contains no label."""
    ids = [(run, run.run_id) for run in runs]
    return {key: found[key].model_copy(update={"label": run.name}) for run, key in ids if key in found}


# ------------------------------------------------------------------------------- existing results
def _result_folder(settings: Settings, machine: str, suite: str) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", suite):
        raise UserError(f"suite name {suite!r} names a folder: use letters, digits, '.', '_' and '-'")
    folder = settings.results.absolute() / machine / suite
    writable_folder(folder)
    with suppress(OSError):  # each cache says so where it cannot be written
        private_folder(settings.cache)
    return folder


def survey(
    runs: Sequence[Run], folder: Path, estimates: Estimates, inputs: Mapping[str, Inputs]
) -> dict[str, Record]:
    """Read a suite's folder and return the records of the runs; UserError for a file of another suite.

    `inputs` are hashes of what each run reads now, by its id.
    """
    found = {record.run_id: record for record in record_index.read_all(folder)}
    for record in found.values():
        if record.finished and record.time:
            estimates.add(record, record.time.wall_s)
    return by_run(runs, list(found.values()), inputs)


def _finished(
    jobs: Sequence[Job], found: Mapping[str, Record], settings: Settings, display: Display
) -> dict[str, Record]:
    """Return the records that stay, and say why others do not.

    `retry` repeats what did not end well or lacks the weights asked for, `keep_old` keeps what read something
    else than it would now.
    """
    older = sum(not r.finished and r.outcome.status != "interrupted" for r in found.values())
    if older:
        display.note(f"{older} records follow older measurement protocols: measured again")
    done = {key: record for key, record in found.items() if record.finished}
    stale = outdated(done, {job.run_id: job.inputs for job in jobs})
    what = "kept, for --keep-old" if settings.keep_old else "measured again"
    alike = Counter(described(names, done[key].config) for key, names in stale.items())
    for names, count in alike.items():
        since = "this run" if count == 1 else f"these {count} runs"
        display.note(f"changed since {since}: {names}: {what}")
    again = set() if settings.keep_old else set(stale)
    lacking = {job.run_id for job in jobs if attempt.lacks_weights(job, found.get(job.run_id))} - again
    if lacking and not settings.retry:
        display.note(f"{len(lacking)} finished runs have no saved weights: --retry runs them again")
    if settings.retry:
        again |= lacking | {key for key, record in done.items() if record.outcome.status != "ok"}
    return {key: record for key, record in done.items() if key not in again}


def _recover(folder: Path) -> None:
    """Complete or remove what killed sweeps left, of all runs that nobody is at work on."""
    try:
        for run_id in sorted(attempt.leftovers(folder)):
            with shielded():
                claim = attempt.claim(folder, run_id)
                if not claim.take():
                    continue
                try:
                    attempt.recover(folder, run_id)
                finally:
                    claim.give()
    except OSError as error:
        raise UserError(f"{folder}: what a stopped sweep left cannot be removed: {error}") from error


@contextmanager
def device_lock(device: str, cache: Path, display: Display, device_id: str | None = None) -> Iterator[Lock]:
    """Hold the device exclusively, so that runs do not disturb each other; the lock dies with its holder.

    `device_id` names the same hardware for all processes of this host, however they number their devices.
    Where the folder of caches cannot be written to, the display notes it and nothing is locked.
    """
    name = f"{socket.gethostname()}-{device_id or _numbered(device)}"
    lock = Lock(cache / f"device-{re.sub(r'[^A-Za-z0-9.-]+', '-', name)[:LONGEST_NAME]}.lock")

    def waiting() -> None:
        display.note(f"waiting: another sweep uses the device {device} ({lock.holder})")

    try:
        lock.wait(waiting)
    except OSError as error:
        display.note(
            f"{lock.path}: the device cannot be locked: {error.strerror}; another sweep may "
            "disturb the timing; name another folder of caches by LOREBENCH_CACHE"
        )
    try:
        yield lock
    finally:
        lock.give()


def _numbered(device: str) -> str:
    """Return the name of a device by its number among all of the host, as far as the environment tells."""
    kind, _, number = device.partition(":")
    if kind != "cuda":
        return device
    visible = [each.strip() for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each.strip()]
    index = int(number or 0)
    return f"cuda-{visible[index] if index < len(visible) else index}"
