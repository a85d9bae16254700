"""Calls of a revision's command line that end with this process, however it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness.engine.process import parent_watch


class Call:
    """A command under way; `log` gets its standard error. It ends by Ctrl-C when this process is gone."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self._log = log
        tied = [sys.executable, "-I", parent_watch.__file__, *command]
        with log.open("wb") as file:
            # A session of its own: what is typed at the terminal comes once, by `stop`.
            self._process = subprocess.Popen(
                tied,
                env=env,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=file,
                start_new_session=True,
            )

    def over(self) -> bool:
        """Whether it has ended."""
        return self._process.poll() is not None

    def stop(self) -> None:
        """Stop it as Ctrl-C would, so that the record of its run says so."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def wait(self) -> int:
        """Its exit code, when it has ended."""
        code = self._process.wait()
        self.stop()
        return code

    def last_words(self) -> str:
        """The last line that it said, without the name of the program."""
        said = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = said[-1] if said else f"exit code {self._process.returncode}"
        return last.removeprefix("lorebench: ")


@contextmanager
def terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM, by which a job is cancelled, do what Ctrl-C does."""
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
