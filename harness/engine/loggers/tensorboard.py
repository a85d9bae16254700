"""Write event files that TensorBoard reads, without TensorFlow and without threads."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any, BinaryIO

from harness.engine.loggers.logger import About
from harness.files import private

#: Characters of a row in the name of a folder.
LONGEST = 60


class TensorBoard:
    """One folder a run, one file an attempt: `tensorboard --logdir <suite's folder>/logs/tensorboard`.

    A file begins with the mark of a restart: the reader drops what an earlier attempt wrote of the same
    updates. After an error a new file is begun, since nothing behind half an event is read.
    """

    def __init__(self) -> None:
        self._events: Any = import_module("tensorboard.compat.proto.event_pb2")
        self._summaries: Any = import_module("tensorboard.compat.proto.summary_pb2")
        self._records: Any = import_module("tensorboard.summary.writer.record_writer")
        self._file: BinaryIO | None = None

    def start(self, about: About) -> None:
        """Make the folder of the run."""
        self._close()
        self._folder = about.folder / "tensorboard" / f"{_as_name(about.name)}.{about.run_id}"
        self._folder.mkdir(parents=True, exist_ok=True)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add an event; it is in the file at return."""
        if self._file is None:
            self._open(step)
        kinds = self._summaries.Summary
        scalars = [kinds.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._write(step=step, summary=kinds(value=scalars))

    def end(self, status: str) -> None:
        """Close the file."""
        self._close()

    def _open(self, step: int) -> None:
        number = len(list(self._folder.glob("*tfevents*")))
        name = f"events.out.tfevents.{int(time.time()):010d}.{number:05d}.{os.getpid()}.lorebench"
        self._file = open(self._folder / name, "xb", opener=private)  # noqa: SIM115 - of the whole attempt
        self._write(file_version="brain.Event:2")
        started = self._events.SessionLog(status=self._events.SessionLog.START)
        self._write(step=step, session_log=started)

    def _write(self, **event: Any) -> None:
        assert self._file is not None
        content = self._events.Event(wall_time=time.time(), **event).SerializeToString()
        try:
            self._records.RecordWriter(self._file).write(content)
            self._file.flush()
        except BaseException:
            self._close()
            raise

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # what could not be written shall not be tried again
                file.close()


def _as_name(text: str) -> str:
    """Return a text as a part of a file's name on every system."""
    return re.sub(r"[^\w.=-]+", "-", text, flags=re.ASCII).strip("-.")[:LONGEST] or "run"
