"""Subprocesses that run a revision's command line and end with this process, however it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness.engine.process import parent_watch


class Subprocess:
    """A running command whose standard error goes to `log`; it gets SIGINT when this process is gone."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self._log = log
        watched = [sys.executable, "-I", parent_watch.__file__, *command]
        with log.open("wb") as file:
            # A session of its own: Ctrl-C at the terminal reaches it once, through `stop`.
            self._process = subprocess.Popen(
                watched,
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=file,
                start_new_session=True,
            )

    def ended(self) -> bool:
        """Return whether the command has ended."""
        return self._process.poll() is not None

    def stop(self) -> None:
        """Interrupt the command as Ctrl-C would, so that its record notes it."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def wait(self) -> int:
        """Wait for the end and return the exit code."""
        code = self._process.wait()
        self.stop()
        return code

    def last_line(self) -> str:
        """Return the last line of standard error without the program's name, else the exit code."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = lines[-1] if lines else f"exit code {self._process.returncode}"
        return last.removeprefix("lorebench: ")


@contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Raise KeyboardInterrupt on SIGTERM, by which a job is cancelled; only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
