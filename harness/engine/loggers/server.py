"""The process of the loggers: it reads what runs report and passes it on, so that no library is in their way.

    python -m harness.engine.loggers.server NAME...

On standard input one line of JSON each: {"begin": …}, {"log": {…}, "step": …} and {"end": status}. On
standard output {"ready": true} or {"refused": …}, and then {"warning": …}; what libraries print goes to
standard error.
Where the input ends, as it does when its parent is killed, an open log ends as `interrupted`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TextIO

from harness.engine.loggers.logger import About, Logger
from harness.engine.loggers.registry import made
from harness.errors import UserError, one_line

Say = Callable[[Mapping[str, Any]], None]


class Guarded:
    """A logger whose failures are a warning, once for each run; it is tried again at each report."""

    def __init__(self, name: str, logger: Logger, say: Say) -> None:
        self.name, self.logger, self._say = name, logger, say
        self._about: About | None = None
        self._started = self._warned = False

    def begin(self, about: About) -> None:
        """Begin the log of a run."""
        self._about, self._started, self._warned = about, False, False
        self._try(lambda: None)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add values, where a log was begun."""
        self._try(lambda: self.logger.log(values, step))

    def end(self, status: str) -> None:
        """End the log; one that never began has no end."""
        if self._started:
            self._try(lambda: self.logger.end(status))
        self._about = None

    def _try(self, call: Callable[[], None]) -> None:
        if self._about is None:
            return
        try:
            if not self._started:
                self.logger.start(self._about)
                self._started = True
            call()
        except Exception as error:  # of a library, of the disk, of the network
            if not self._warned:
                told = f"--log {self.name}: {one_line(error)}; the run goes on, and so does it"
                self._say({"warning": told})
            self._warned = True


def serve(names: Sequence[str], lines: Iterable[str], say: Say) -> int:
    """Pass on what the lines report; return the exit code, not 0 where a logger is refused."""
    try:
        loggers = [Guarded(name, logger, say) for name, logger in made(names).items()]
    except UserError as error:
        say({"refused": str(error)})
        return 2
    say({"ready": True})
    for line in lines:
        message = json.loads(line)
        for logger in loggers:
            if "begin" in message:
                logger.begin(About.of(message["begin"]))
            elif "log" in message:
                logger.log(message["log"], message["step"])
            elif "end" in message:
                logger.end(message["end"])
    for logger in loggers:
        logger.end("interrupted")
    return 0


def main(names: Sequence[str]) -> int:
    """Serve the parent on the standard streams."""
    answers: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(message: Mapping[str, Any]) -> None:
        answers.write(json.dumps(message, allow_nan=False) + "\n")
        answers.flush()

    return serve(names, sys.stdin, say)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
