"""Carry out one run in its own process: start it, follow it, kill it at its deadline, complete its record.

The worker writes the record as long as it lives; its death is recorded here. What becomes of an earlier
record is decided in `attempt.py`. No torch.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from harness import record as records
from harness.engine.process import attempt
from harness.engine.process.child import Event, OnEvent, Worker
from harness.engine.process.forks import Forks
from harness.engine.process.interrupts import Interrupted, interruptible
from harness.engine.process.job import Job
from harness.engine.resume import names
from harness.errors import EXIT_BAD_INPUT, UserError
from harness.files import out_of_room
from harness.record import PHASES, Outcome, Phase, Record, Status

LOG_TAIL_LINES = 20
LOG_TAIL_BYTES = 16_384
#: Signals that end a worker and that nothing in a run sends: a person, a scheduler, the kernel for memory.
FROM_OUTSIDE = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP")
#: A run that something outside ended so often in a row, without a new checkpoint, has an ending, too.
MOST_ATTEMPTS = 2
#: Seconds without an event after which a run hangs: a training reports after each update of 30 s and more,
#: other phases when they begin.
QUIET_S = {"train": 30 * 60.0}
OTHER_QUIET_S = 6 * 3600.0
#: Seconds that a run with checkpoints has to save one when it is stopped.
SAVING_S = 120.0


@dataclass(frozen=True)
class Limits:
    """Seconds: `deadline_s` until a run is stopped, None for never, `grace_s` between SIGTERM and SIGKILL."""

    deadline_s: float | None
    grace_s: float


def carry_out(
    job: Job,
    command: Sequence[str],
    limits: Limits,
    on_event: OnEvent,
    attempts: int = 0,
    descriptors: Sequence[int] = (),
    forks: Forks | None = None,
) -> Record:
    """Run a job in a worker and return its record; whatever happens to its files is an `error`.

    Its status is `interrupted` if the input was bad, if something outside ended the worker, unless that
    happened to `attempts` before it, or if the worker has saved a checkpoint. So it is after a signal to this
    process, which is raised again. The worker inherits `descriptors`, and is one of `forks` where it can be.
    """
    phase: Phase = "load"
    said = ""

    def follow(event: Event) -> None:
        nonlocal phase, said
        said = str(event.get("error", said))
        if event.get("phase") in PHASES:
            phase = cast(Phase, event["phase"])
        on_event(event)

    try:
        _clear(job, attempts)
        killed_before = kernel_kills()
        worker = Worker([*command, "run", str(job.file)], job.log, descriptors, forks)
    except OSError as error:
        return _complete(job, Outcome(status=_status(error), phase=phase, message=f"cannot start: {error}"))
    end: tuple[Status, str] | None = None
    saved_before = names.below(job.checkpoints)
    try:
        with interruptible():
            if late := worker.follow(limits.deadline_s, follow, lambda: QUIET_S.get(phase, OTHER_QUIET_S)):
                end = "timeout", late
    except KeyboardInterrupt as interrupt:
        end = "interrupted", f"stopped by {_name(interrupt)}"
        raise
    finally:
        # Read before the worker is stopped: on SIGTERM it may write an outcome of its own.
        final = _final(job)
        worker.stop(max(limits.grace_s, SAVING_S) if job.saving else limits.grace_s)
        if final is None and end is not None:
            outcome = Outcome(status=end[0], phase=phase, message=end[1], attempts=attempts or None)
            final = _complete(job, _resumable(job, outcome, saved_before))
    death = _death(worker, phase, attempts + 1, bool(saved_before), killed_since(killed_before))
    final = final or _refused(job, worker, phase, said)
    return final or _complete(job, _resumable(job, death, saved_before))


def _name(interrupt: KeyboardInterrupt) -> str:
    number = interrupt.number if isinstance(interrupt, Interrupted) else signal.SIGINT
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def _resumable(job: Job, outcome: Outcome, saved_before: Sequence[Path]) -> Outcome:
    """Return the outcome of a run; it goes on where its worker has left a checkpoint that was not there."""
    saved = names.below(job.checkpoints)
    if not saved or saved[0] in saved_before:
        return outcome
    message = f"{outcome.message}; the same command goes on from update {names.step_of(saved[0])}"
    return outcome.model_copy(update={"status": "interrupted", "attempts": 1, "message": message})


def _status(error: OSError) -> Status:
    """Return the status of a run whose files fail: without room on the disk it is run again."""
    return "interrupted" if out_of_room(error) else "error"


def _clear(job: Job, attempts: int) -> None:
    """Create an empty folder, the job file and a blank record, so that nothing old is taken for new."""
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    blank = job.blank()
    blank.outcome.attempts = attempts or None
    records.write(blank, job.record)
    attempt.clear(job)
    job.folder.mkdir()
    job.write()


def _final(job: Job) -> Record | None:
    """Return the record where the worker wrote an ending into it."""
    record = _read(job)
    return record if record is not None and record.outcome.status != "interrupted" else None


def _read(job: Job) -> Record | None:
    """Return the record as the worker left it, None where it is no record."""
    with suppress(UserError):
        return records.read(job.record)
    return None


def _refused(job: Job, worker: Worker, phase: Phase, said: str) -> Record | None:
    """Return the unfinished record of a run with bad input or a full disk; its message tells what to do.

    `said` is the message of the worker where there was no room to write it.
    """
    if worker.process.returncode != EXIT_BAD_INPUT:
        return None
    record = _read(job) or job.blank()
    if not record.outcome.message:
        record.outcome = Outcome(phase=phase, message=said or f"the worker gave up; see {job.log}")
    return record


def _death(worker: Worker, phase: Phase, attempts: int, resumed: bool, memory: bool | None) -> Outcome:
    """Return the outcome of a worker that is gone without one.

    `memory`: whether the kernel killed for memory meanwhile, None where it does not tell. A worker that went
    on from a checkpoint may be killed once more than one that never got so far.
    """
    message = worker.last_words()
    if worker.ended_by not in FROM_OUTSIDE:
        return Outcome(status="error", phase=phase, message=message)
    if worker.ended_by != "SIGKILL":
        memory = False
    elif memory is None:
        message += "; the kernel does this when host memory runs out"
    elif memory:
        message += "; the kernel did this, as host memory ran out, to a process while this run was at work"
    status: Status = "interrupted" if attempts < MOST_ATTEMPTS + resumed else "oom" if memory else "error"
    return Outcome(status=status, phase=phase, message=message, attempts=attempts)


def killed_since(before: int | None) -> bool | None:
    """Return whether the kernel has killed for memory since it was counted, None where it does not tell."""
    now = kernel_kills()
    return None if before is None or now is None else now > before


def kernel_kills() -> int | None:
    """Return how many processes the kernel has killed for memory, in this control group if it tells that.

    None where it does not tell at all.
    """
    with suppress(OSError, ValueError, LookupError):
        group = Path("/proc/self/cgroup").read_text().split("0::", 1)[1].splitlines()[0]
        return _counted(Path(f"/sys/fs/cgroup{group}/memory.events"))
    with suppress(OSError, ValueError, LookupError):
        return _counted(Path("/proc/vmstat"))
    return None


def _counted(file: Path) -> int:
    """Return the number behind `oom_kill` in a file of counters of the kernel."""
    return int(dict(line.split() for line in file.read_text().splitlines())["oom_kill"])


def _complete(job: Job, outcome: Outcome) -> Record:
    """Write the outcome of a worker that is gone; its measurements stay in the record.

    Where it cannot be written it is an `error` that says so, and the next sweep tries again.
    """
    record = _read(job) or job.blank()
    outcome.log_tail = _tail(job.log)
    record.outcome = outcome
    try:
        records.write(record, job.record)
    except OSError as error:
        message = f"{outcome.message}; the record cannot be written: {error.strerror or error}"
        record.outcome = outcome.model_copy(update={"status": _status(error), "message": message})
    return record


def _tail(log: Path) -> list[str]:
    """Return the last lines of a log that may be long, need not be text and may be gone."""
    with suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
        return file.read().decode(errors="replace").splitlines()[-LOG_TAIL_LINES:]
    return []
