"""Write the record of a run phase by phase and send events to the parent process. No torch."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from harness import series as serieses
from harness.engine.process import progress_file
from harness.engine.process.job import Job
from harness.errors import bounded
from harness.record import Outcome, Phase, Time, write
from harness.series import Series


class RecordWriter:
    """Updates the record of a run on disk and reports progress to the parent."""

    def __init__(self, job: Job, started: float) -> None:
        self.path, self.events, self.started = job.record, take_stdout(), started
        self.progress = job.progress
        self.record = job.blank()
        self.time = self.record.time = Time()
        self._series: Series | None = None
        self._series_s = 0.0
        #: Seconds of this training before the checkpoint that this process goes on from, in earlier ones.
        self.earlier_s = 0.0
        #: Seconds of the training, also in earlier processes, in which the model was scored.
        self.scoring_s = 0.0
        #: Which input is being read, `model`, `data` or `evaluate`: other runs may have the same.
        self.reading: str | None = None
        write(self.record, self.path)

    @contextmanager
    def phase(self, name: Phase) -> Iterator[None]:
        """Report and time a phase, and write the record at its end, also after an error.

        A phase begins where the last one ended, so that phases add up to the wall time.
        """
        begun = self.started + sum(self.time.phase_s.values()) + self._series_s - self.earlier_s
        self.record.outcome.phase = name
        self.notify(phase=name)
        try:
            yield
        finally:
            seconds = self.time.phase_s.get(name, 0.0) + time.perf_counter() - begun
            if name == "train":
                seconds += self.earlier_s - self.scoring_s
            self.time.phase_s[name] = seconds
            if name == "train" and self.scoring_s:
                self.time.phase_s["evaluate"] = self.scoring_s
            self.time.wall_s = self.earlier_s + time.perf_counter() - self.started - self._series_s
            self._write_series()
            write(self.record, self.path)

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """Count the time of a block in the middle of the training to the evaluation, and what goes wrong."""
        begun = time.perf_counter()
        self.record.outcome.phase = "evaluate"
        try:
            yield
        finally:
            self.scoring_s += time.perf_counter() - begun
        self.record.outcome.phase = "train"

    def keep(self, series: Series) -> None:
        """Write a series once, at the end of the phase, before the record that names it."""
        self._series = series

    def _write_series(self) -> None:
        """Write the series that was kept; where that fails, the run is without it but not lost."""
        series, self._series = self._series, None
        if not series:
            return
        begun = time.perf_counter()
        try:
            self.record.series = serieses.write(series, self.path, self.record.run_id)
        except OSError as error:
            self.record.warnings.append(f"the series of updates could not be written: {error.strerror}")
        self._series_s += time.perf_counter() - begun

    def notify(self, **event: Any) -> None:
        """Send an event to the parent, long texts bounded; ignore it if the parent is gone.

        It is also written where `lorebench status` reads it.
        """
        event = {key: bounded(value) if isinstance(value, str) else value for key, value in event.items()}
        event = {"phase": self.record.outcome.phase, **event}
        progress_file.note(self.progress, event)
        try:
            self.events.write(json.dumps(event) + "\n")
            self.events.flush()
        except (BrokenPipeError, ValueError):
            pass

    def finish(self, outcome: Outcome) -> None:
        """Write the outcome of the run."""
        self.record.outcome = outcome
        write(self.record, self.path)


def take_stdout() -> Any:
    """Return a private handle on standard output; from now on prints of libraries go to the log."""
    events = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return events
