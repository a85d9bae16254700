"""A worker process: its events, a deadline, and an end that takes its whole process group along."""

from __future__ import annotations

import json
import math
import os
import queue
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness import imports
from harness.engine.process.forks import Forks
from harness.engine.process.interrupts import interruptible, postpone
from harness.files import private

#: The start of a command that does a part of the work; what follows says which.
WORKER = imports.command("harness.engine.worker")
#: Seconds that an answer may take, and that a worker has to end by itself.
LONGEST_S, GRACE_S = 30 * 24 * 3600.0, 2.0
#: Bytes of a line that is read as an event.
LONGEST_EVENT = 1 << 20

Event = Mapping[str, Any]
OnEvent = Callable[[Event], None]


class Worker:
    """A process that leads its own group, prints events as JSON lines, and ends when its stdin closes.

    So it cannot outlive this process: when this one is killed, the pipe closes.
    """

    def __init__(
        self, argv: Sequence[str], log: Path, descriptors: Sequence[int] = (), forks: Forks | None = None
    ) -> None:
        """Start the process, a fork where that can be; OSError where it or its log cannot be made.

        It inherits `descriptors`.
        """
        with open(log, "wb", opener=private) as file:
            fork = forks.start(argv, file.fileno(), descriptors) if forks else None
            self.process = fork or subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                env=imports.environment(),
                start_new_session=True,
                pass_fds=descriptors,
            )
        self._log = log
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._waiter = threading.Thread(target=self._wait, daemon=True)
        self._reader.start()
        self._waiter.start()

    def ask(self, request: Event, on_event: OnEvent, deadline_s: float = LONGEST_S) -> str:
        """Send a request, pass the answers on and end the group; return in words how the process ended."""
        assert self.process.stdin is not None
        try:
            with suppress(BrokenPipeError):  # the exit of a dead worker tells why
                self.process.stdin.write(json.dumps(request).encode() + b"\n")
                self.process.stdin.flush()  # and not closed, for that would end the worker
            self.follow(deadline_s, on_event)
        finally:
            self.stop(GRACE_S)
        return ": ".join(
            [self.last_words(), *self._log.read_text(errors="replace").strip().splitlines()[-1:]]
        )

    def follow(
        self, deadline_s: float | None, on_event: OnEvent, patience: Callable[[], float] = lambda: LONGEST_S
    ) -> str | None:
        """Pass events on until the process has ended, and return None.

        Return why not to wait any longer where `deadline_s` seconds have passed (None: never), or as many
        as `patience` says without an event.
        """
        deadline = math.inf if deadline_s is None else time.monotonic() + deadline_s
        while True:
            quiet_s, left_s = patience(), max(0.0, deadline - time.monotonic())
            try:
                event = self._events.get(timeout=min(left_s, quiet_s, threading.TIMEOUT_MAX))
            except queue.Empty:
                if left_s <= quiet_s:
                    return f"stopped at the deadline of {deadline_s:g} s"
                return f"it hangs: no progress for {quiet_s / 60:g} minutes"
            if event is None:
                return None
            on_event(event)

    def stop(self, grace_s: float) -> None:
        """End the whole group by SIGTERM and, `grace_s` seconds later, by SIGKILL; wait for the exit."""
        if self._waiter.is_alive():
            self._signal(signal.SIGTERM)
            try:
                with interruptible():
                    self._waiter.join(grace_s)
            except KeyboardInterrupt as interrupt:  # a person who asks again wants no grace
                postpone(interrupt)
            finally:
                self._signal(signal.SIGKILL)
                self._waiter.join()
        if self.process.stdin:
            with suppress(BrokenPipeError):  # closing flushes what a dead process never read
                self.process.stdin.close()

    @property
    def ended_by(self) -> str | None:
        """The name of the signal that ended the process, None where it was none."""
        code = self.process.returncode
        if code is None or code >= 0:
            return None
        with suppress(ValueError):  # of the real-time signals only two have names
            return signal.Signals(-code).name
        return f"signal {-code}"

    def last_words(self) -> str:
        """Describe the exit of a process that left no result."""
        if self.ended_by is None:
            return f"worker exited with code {self.process.returncode} and left no result"
        return f"worker killed by {self.ended_by}"

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            while line := lines.readline(LONGEST_EVENT):
                with suppress(ValueError, RecursionError):
                    event = json.loads(line)
                    if isinstance(event, dict):
                        self._events.put(event)

    def _wait(self) -> None:
        self.process.wait()
        self._signal(signal.SIGKILL)  # children that outlive their leader
        self._reader.join(timeout=2.0)  # a child that left the group may hold the pipe open for ever
        self._events.put(None)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)


def ask(part: str, request: Event, on_event: OnEvent, deadline_s: float = LONGEST_S) -> str:
    """Let a new worker do a part of the work on request, and pass its answers on; return how it ended."""
    with tempfile.TemporaryDirectory() as folder:
        return Worker([*WORKER, part], Path(folder) / "log.txt").ask(request, on_event, deadline_s)
