"""The parent's side of the loggers: it waits for them at the start and the end of a sweep alone. No torch."""

from __future__ import annotations

import json
import os
import queue
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from harness import imports, strict_json
from harness.engine.loggers.logger import About, of_event, of_record
from harness.errors import UserError
from harness.files import private
from harness.record import Record

SERVER = "harness.engine.loggers.server"
#: Seconds that packages may take to load, and that what is left may take at the end.
START_S, END_S = 120.0, 60.0
#: The same for the end of a sweep that was stopped.
STOPPED_S = 10.0
#: Bytes that a process which is behind is sent later; beyond them reports are lost.
MOST_BEHIND = 1 << 20


class Logs:
    """Loggers by name in a process of their own; without any, nothing is started and nothing happens."""

    def __init__(self, names: Sequence[str], folder: Path, warn: Callable[[str], None]) -> None:
        """Keep what loggers write to disk, and what they print, below `folder`."""
        self.names, self.folder, self._warn = tuple(names), folder, warn
        self._process: subprocess.Popen[bytes] | None = None
        self._behind = b""
        self._step = 0

    def __enter__(self) -> Self:
        """Start the process; UserError where a logger cannot be used."""
        if not self.names:
            return self
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / "log.txt", "ab", opener=private) as log:
            self._process = subprocess.Popen(
                [*imports.command(SERVER), *self.names],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=imports.environment(),
                start_new_session=True,  # Ctrl-C is for the parent, who then says how the run ended
            )
        answers: queue.SimpleQueue[Mapping[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._read, args=(answers,), daemon=True).start()
        try:
            answer = answers.get(timeout=START_S)
        except queue.Empty:
            answer = {"refused": f"--log {','.join(self.names)}: not ready after {START_S:g} s"}
        except BaseException:
            self._stop(0.0)
            raise
        if "ready" not in answer:
            self._stop(0.0)
            raise UserError(str(answer.get("refused") or f"--log failed; see {self.folder / 'log.txt'}"))
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)
        return self

    def __exit__(self, *error: object) -> None:
        self._stop(END_S if error[0] is None else STOPPED_S)

    def begin(self, about: About) -> None:
        """Begin the log of a run."""
        self._step = 0
        self._send({"begin": about.plain()})

    def event(self, event: Mapping[str, Any]) -> None:
        """Log what a worker reports of its updates."""
        if self._process is not None and (values := of_event(event)):
            self._step = int(event["step"])
            self._send({"log": values, "step": self._step})

    def end(self, record: Record | None) -> None:
        """End the log of a run with what its record says; None for one that was stopped."""
        if record is not None and (values := of_record(record)):
            self._send({"log": values, "step": self._step})
        self._send({"end": "interrupted" if record is None else record.outcome.status})

    # ------------------------------------------------------------------------------------------ parts
    def _send(self, message: Mapping[str, Any]) -> None:
        """Send a message as far as that goes without waiting."""
        if self._process is None:
            return
        if len(self._behind) < MOST_BEHIND:
            self._behind += strict_json.text(message).encode()
        self._push()

    def _push(self) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            while self._behind:
                self._behind = self._behind[os.write(self._process.stdin.fileno(), self._behind) :]
        except BlockingIOError:
            pass
        except (OSError, ValueError):  # its end is told by who reads its answers
            self._behind = b""

    def _read(self, answers: queue.SimpleQueue[Mapping[str, Any]]) -> None:
        """Pass warnings on as long as the process lives; its first answer goes to who waits for it."""
        process = self._process
        assert process is not None
        assert process.stdout is not None
        ready = False
        for line in process.stdout:
            with suppress(ValueError):
                answer = json.loads(line)
                if "warning" in answer:
                    self._warn(str(answer["warning"]))
                else:
                    answers.put(answer)
                    ready = "ready" in answer
        answers.put({})  # for who still waits for the first one
        if ready and self._process is not None:
            self._warn(f"--log has ended, the runs go on without it; see {self.folder / 'log.txt'}")

    def _stop(self, wait_s: float) -> None:
        """Let the process pass on what it has, for so long, and end it."""
        process, until = self._process, time.monotonic() + wait_s
        if process is None:
            return
        assert process.stdin is not None
        while self._behind and process.poll() is None and (left := until - time.monotonic()) > 0:
            select.select([], [process.stdin], [], left)
            self._push()
        self._process = None
        with suppress(OSError):
            process.stdin.close()
        try:
            process.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._warn(f"--log {','.join(self.names)}: stopped before all was sent")
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)  # what a library has started, too
        process.wait()
