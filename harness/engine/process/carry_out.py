"""Carry out one run in its own process: start it, follow it, kill it at its deadline, complete its record.

The worker writes the record as long as it lives; its death is recorded here. No torch.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

from harness import record as records
from harness import series
from harness.engine.process.child import Event, OnEvent, Worker
from harness.engine.process.job import Job
from harness.errors import EXIT_BAD_INPUT, UserError
from harness.record import PHASES, Outcome, Phase, Record, Status

LOG_TAIL_LINES = 20
LOG_TAIL_BYTES = 16_384


def carry_out(
    job: Job, command: Sequence[str], deadline_s: float, grace_s: float, on_event: OnEvent
) -> Record:
    """Run a job in a worker and return its record, with status `interrupted` if its input was bad.

    `grace_s` seconds lie between SIGTERM and SIGKILL. KeyboardInterrupt is recorded as `interrupted`, too.
    """
    _clear(job)
    phase: Phase = "load"

    def follow(event: Event) -> None:
        nonlocal phase
        if event.get("phase") in PHASES:
            phase = cast(Phase, event["phase"])
        on_event(event)

    worker = Worker([*command, "run", str(job.file)], job.log)
    end: tuple[Status, str] | None = None
    try:
        if not worker.follow(deadline_s, follow):
            end = "timeout", f"stopped at the deadline of {deadline_s:g} s"
    except KeyboardInterrupt:
        end = "interrupted", "stopped by Ctrl-C"
        raise
    finally:
        # Read before the worker is stopped: on SIGTERM it may write an outcome of its own.
        record = _read(job)
        final = record if record is not None and record.outcome.status != "interrupted" else None
        worker.stop(grace_s)
        if final is None and end is not None:
            final = _complete(job, *end, phase)
    return final or _refused(job, worker) or _complete(job, "error", worker.last_words(), phase)


def _clear(job: Job) -> None:
    """Create an empty folder, the job file and a blank record, so that nothing old is taken for new."""
    records.write(job.blank(), job.record)
    for half in job.record.parent.glob(f".{job.record.name}.*.tmp"):
        half.unlink()  # left by a worker that was killed while it wrote
    series.remove(job.record)
    if job.folder.exists():
        shutil.rmtree(job.folder)
    job.folder.mkdir(parents=True)
    job.write()


def _read(job: Job) -> Record | None:
    """Return the record as the worker left it, None where it is no record."""
    with suppress(UserError):
        return records.read(job.record)
    return None


def _refused(job: Job, worker: Worker) -> Record | None:
    """Return the unfinished record of a run with bad input; its message tells what to do."""
    record = _read(job) if worker.process.returncode == EXIT_BAD_INPUT else None
    return record if record is not None and record.outcome.message else None


def _complete(job: Job, status: Status, message: str, phase: Phase) -> Record:
    """Write the outcome of a worker that is gone; its measurements stay in the record."""
    record = _read(job) or job.blank()
    record.outcome = Outcome(status=status, phase=phase, message=message, log_tail=_tail(job.log))
    records.write(record, job.record)
    return record


def _tail(log: Path) -> list[str]:
    """Return the last lines of a log that may be long and need not be text."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - LOG_TAIL_BYTES))
        return file.read().decode(errors="replace").splitlines()[-LOG_TAIL_LINES:]
