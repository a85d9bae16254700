"""One run in a process of its own: started, followed, killed at its deadline, its record completed.

The worker writes the record itself as long as it lives. What it cannot write, its own violent end,
is written here. No torch.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

from harness import record as records
from harness.engine.process.child import Event, Show, Worker
from harness.engine.process.job import Job
from harness.errors import UserError
from harness.record import PHASES, Outcome, Phase, Record, Status

EXIT_BAD_INPUT = 2
LOG_TAIL_LINES = 20
LOG_TAIL_BYTES = 16_384


def carry_out(job: Job, command: Sequence[str], deadline_s: float, grace_s: float, show: Show) -> Record:
    """Run a job in a worker and return its record; where the input was bad, it still reads `interrupted`.

    `grace_s` lies between SIGTERM and SIGKILL. KeyboardInterrupt leaves a record that says so.
    """
    _clear(job)
    phase: Phase = "load"

    def follow(event: Event) -> None:
        nonlocal phase
        if event.get("phase") in PHASES:
            phase = cast(Phase, event["phase"])
        show(event)

    worker = Worker([*command, "run", str(job.file)], job.log)
    end: tuple[Status, str] | None = None
    try:
        if not worker.follow(deadline_s, follow):
            end = "timeout", f"stopped at the deadline of {deadline_s:g} s"
    except KeyboardInterrupt:
        end = "interrupted", "stopped by Ctrl-C"
        raise
    finally:
        # Read before the worker is stopped: SIGTERM may make it write an ending of its own.
        final = _final(job)
        worker.stop(grace_s)
        if final is None and end is not None:
            final = _complete(job, *end, phase)
    return final or _refused(job, worker) or _complete(job, "error", worker.last_words(), phase)


def _clear(job: Job) -> None:
    """Put an empty folder, the job and a blank record in place, so nothing old is taken for new."""
    records.write(job.blank(), job.record)
    for half in job.record.parent.glob(f".{job.record.name}.*.tmp"):
        half.unlink()  # what a worker was writing when it was killed
    if job.folder.exists():
        shutil.rmtree(job.folder)
    job.folder.mkdir(parents=True)
    job.write()


def _final(job: Job) -> Record | None:
    """The record, if the worker brought it to an end."""
    try:
        record = records.read(job.record)
    except UserError:
        return None
    return record if record.outcome.status != "interrupted" else None


def _refused(job: Job, worker: Worker) -> Record | None:
    """The record of a run whose input turned out to be bad: unfinished, its message says what to do."""
    if worker.process.returncode != EXIT_BAD_INPUT:
        return None
    with suppress(UserError):
        record = records.read(job.record)
        return record if record.outcome.message else None
    return None


def _complete(job: Job, status: Status, message: str, phase: Phase) -> Record:
    """Give the record of a worker that is gone its end; what it had measured stays."""
    try:
        record = records.read(job.record)
    except UserError:
        record = job.blank()
    record.outcome = Outcome(status=status, phase=phase, message=message, log_tail=_tail(job.log))
    records.write(record, job.record)
    return record


def _tail(log: Path) -> list[str]:
    """The last lines of a log that may be long and need not be text."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
        return file.read().decode(errors="replace").splitlines()[-LOG_TAIL_LINES:]
