"""A worker process: its events, a deadline, and an end that takes its whole process group along."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

Event = Mapping[str, Any]
OnEvent = Callable[[Event], None]


class Worker:
    """A process that leads its own group, prints events as JSON lines, and ends when its stdin closes.

    So it cannot outlive this process: when this one is killed, the pipe closes.
    """

    def __init__(self, argv: Sequence[str], log: Path) -> None:
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                start_new_session=True,
            )
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._waiter = threading.Thread(target=self._wait, daemon=True)
        self._reader.start()
        self._waiter.start()

    def follow(self, deadline_s: float, on_event: OnEvent) -> bool:
        """Pass events on until the process has ended (True) or `deadline_s` seconds have passed (False)."""
        deadline = time.monotonic() + deadline_s
        while True:
            try:
                event = self._events.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return False
            if event is None:
                return True
            on_event(event)

    def stop(self, grace_s: float) -> None:
        """End the whole group by SIGTERM and, `grace_s` seconds later, by SIGKILL; wait for the exit."""
        if self._waiter.is_alive():
            self._signal(signal.SIGTERM)
            try:
                self._waiter.join(grace_s)
            finally:
                self._signal(signal.SIGKILL)
                self._waiter.join()
        if self.process.stdin:
            with suppress(BrokenPipeError):  # closing flushes what a dead process never read
                self.process.stdin.close()

    def last_words(self) -> str:
        """Describe the exit of a process that left no result."""
        code = self.process.returncode
        if code >= 0:
            return f"worker exited with code {code} and left no result"
        # The kernel frees host memory by SIGKILL: the most likely cause.
        hint = "; the kernel does this when host memory runs out" if code == -signal.SIGKILL else ""
        return f"worker killed by {signal.Signals(-code).name}{hint}"

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                with suppress(ValueError):
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
