"""Save a training where it is due, and go on from what an earlier process has saved of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.config import CheckpointConfig
from harness.engine.resume import names
from harness.engine.resume.checkpoints import Checkpoints
from harness.engine.resume.stored import Stored
from harness.engine.run import environment
from harness.engine.run.state import restore, state_of
from harness.engine.run.train import METERED_STEPS, WARMUP_STEPS, Trainer
from harness.errors import UserError

if TYPE_CHECKING:
    from harness.engine.process.job import Job
    from harness.engine.run.record_writer import RecordWriter
    from harness.record import Environment, Phase


class Resuming:
    """Checkpoints of the training of a job, by its configuration; the record and the parent are told."""

    def __init__(self, config: CheckpointConfig, job: Job, trainer: Trainer, writer: RecordWriter) -> None:
        self.trainer, self.writer = trainer, writer
        self.checkpoints = Checkpoints(
            job.checkpoints,
            config,
            about(job, trainer, writer.record.environment),
            warn=self._warn,
            saved=self._notify,
        )
        self._shorter = job.extends
        #: What was warned of before the training began; each process warns of that anew.
        self._warned = len(writer.record.warnings)
        self._begun, self._stopping = time.perf_counter(), False

    def restore(self) -> bool:
        """Let the trainer go on from the newest checkpoint, else from that of a shorter run; tell if it did.

        UserError where another torch, code, device or text wrote it, or that of the shorter run is broken.
        """
        found, extends = self.checkpoints.newest(), None
        if found is None and self._shorter is not None:
            found, extends = self._end_of(self._shorter), self._shorter.name.removesuffix(names.SUFFIX)
        if found is None:
            return False
        state = restore(self.trainer, found)
        self.trainer.extends = extends or self.trainer.extends
        self.trainer.resumed.append(found.step)
        if peak := state["scoring_peak_bytes"]:
            self._peaks()["evaluate"] = max(peak, self._peaks().get("evaluate", 0))
        self.writer.record.warnings += state["warnings"]
        self.writer.earlier_s, self.writer.scoring_s = state["train_s"], state["scoring_s"]
        self._begun = time.perf_counter()
        return True

    def _end_of(self, shorter: Path) -> Stored:
        """Return what a shorter run ended with; UserError where that cannot be read, or is too short."""
        found = self.checkpoints.newest(shorter)
        if found is None:
            raise UserError(
                f"{shorter}: no checkpoint there is whole; remove that folder and repeat the shorter run "
                "with train.checkpoint.stay=true and --retry, or leave out --extend"
            )
        if found.step < WARMUP_STEPS + METERED_STEPS:
            raise UserError(
                f"{shorter}: a run of {found.step} updates cannot be extended: one process does the first "
                f"{WARMUP_STEPS + METERED_STEPS}, under the memory meter; leave out --extend"
            )
        return found

    @contextmanager
    def saving_when_stopped(self) -> Iterator[None]:
        """Until the block ends, let SIGTERM save the state before it ends this process."""

        def stop(*_: object) -> None:
            self._stopping = True

        before = signal.signal(signal.SIGTERM, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)
            self.checkpoints.wait()
        if self._stopping:  # after the last update
            self._end()

    def after(self, step: int) -> None:
        """Save the state after `step` updates if it is due, is the last one, or if this process shall end.

        The first updates are metered together, by one process.
        """
        last = step == self.trainer.config.steps
        early = step < WARMUP_STEPS + METERED_STEPS
        if last or (not early and (self._stopping or self.checkpoints.due(step))):
            with self.trainer.stopwatch.stopped():
                spent = {"train_s": self._train_s(), "scoring_s": self.writer.scoring_s}
                peak = {"scoring_peak_bytes": self._peaks().get("evaluate", 0)}
                warned = {"warnings": self.writer.record.warnings[self._warned :]}
                self.checkpoints.save(step, {**state_of(self.trainer), **spent, **peak, **warned})
        self.end_if_stopped()

    def stopped(self) -> bool:
        """Return whether this process shall end."""
        return self._stopping

    def end_if_stopped(self) -> None:
        """End this process if it shall end, once what is being saved is on the disk."""
        if self._stopping:
            self.checkpoints.wait()
            self._end()

    def _peaks(self) -> dict[Phase, int]:
        memory = self.writer.record.memory
        return {} if memory is None else memory.phase_peak_allocated_bytes

    def _warn(self, text: str) -> None:
        self.writer.record.warnings.append(text)
        self.writer.notify(warning=text)

    def _train_s(self) -> float:
        return self.writer.earlier_s + time.perf_counter() - self._begun

    def _notify(self, step: int) -> None:
        self.writer.notify(checkpoint=step, step=step, steps=self.trainer.config.steps)

    def _end(self) -> None:
        """End as SIGTERM ends a process, so that the parent sees what it was."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)


def about(job: Job, trainer: Trainer, found: Environment | None) -> dict[str, Any]:
    """Return what two processes must have in common to continue one training to the bit."""
    assert found is not None  # described before anything else
    threads = {"threads": found.cpu_threads} if trainer.device.type == "cpu" else {}
    return {
        "device": found.device,
        **threads,
        "torch": found.packages["torch"],
        "code": environment.code_sha256(),
        "inputs": job.inputs,
    }
