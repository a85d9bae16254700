"""What others see of a sweep while it is at work: its display, files of progress and logs. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from hashlib import sha256
from typing import Any

from harness.engine.loggers.client import Logs
from harness.engine.loggers.logger import About
from harness.engine.process import progress_file
from harness.engine.process.job import Job
from harness.engine.process.progress import Display
from harness.engine.resume.names import newest_step
from harness.engine.sweep.announced import Announced
from harness.record import Record

#: How a run ends whose record tells all that its progress told.
TOLD = ("ok", "diverged", "unsupported")


class Shown:
    """Tells what happens to runs where others look; nothing of it decides anything."""

    def __init__(self, display: Display, logs: Logs, announced: Announced) -> None:
        self.display, self.logs, self.announced = display, logs, announced

    def wait(self, jobs: Iterable[Job]) -> None:
        """Say which runs have still to start."""
        self.announced.tell({"run_id": job.run_id, **self._about(job)} for job in jobs)

    def gone(self, job: Job) -> None:
        """Say that a run waits no longer."""
        self.announced.gone(job.run_id)

    def begin(self, job: Job) -> None:
        """Say that an attempt at a run begins; one that goes on from a checkpoint goes on in file and log."""
        goes_on = job.run.train.checkpoint is not None and newest_step(job.checkpoints) > 0
        self.gone(job)
        begun = progress_file.begin(job.progress, self._about(job), goes_on)
        if not self.logs.names:
            return
        place = job.folder.parent
        training = (place.parent.name, job.suite, job.run_id, begun)
        self.logs.begin(
            About(
                key=sha256("\0".join(training).encode()).hexdigest()[:16],
                name=self.display.title(job.run),
                suite=job.suite,
                run_id=job.run_id,
                folder=self.logs.folder,
                config=job.run.canonical,
            )
        )

    def event(self, event: Mapping[str, Any]) -> None:
        """Show what a worker reports."""
        self.display.event(event)
        self.logs.event(event)

    def end(self, job: Job, record: Record | None) -> None:
        """Say how an attempt ended; None where it was stopped. The display is told by who knows the time."""
        status = "interrupted" if record is None else record.outcome.status
        if status in TOLD:
            with suppress(OSError):
                job.progress.unlink(missing_ok=True)
        else:
            progress_file.append(job.progress, {"status": status})
        self.logs.end(record)

    def _about(self, job: Job) -> dict[str, Any]:
        run = job.run
        row = self.display.names.get((run.name, run.config_id), run.name)
        return {"row": row, "seed": run.seed, "repeat": run.repeat, "steps": run.train.steps}
