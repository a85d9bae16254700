"""End a process when its parent ends: watch an open pipe on standard input.

A parent that is killed sends no message, but its pipes close. As a script, `python parent_watch.py COMMAND`
watches for a command that does not do so itself, such as the command line of another revision.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence

#: Seconds that a command has to end after SIGINT; a sweep gives its worker 5 s.
GRACE_S = 15.0


def watch(end: Callable[[], None]) -> bool:
    """Call `end` in a thread when the pipe from the parent closes; return False without such a pipe."""
    if not stat.S_ISFIFO(os.fstat(0).st_mode):
        return False

    def read() -> None:
        while os.read(0, 4096):
            pass
        end()

    threading.Thread(target=read, daemon=True).start()
    return True


def main(command: Sequence[str]) -> int:
    """Run a command and return its exit code; end it by SIGINT, then SIGKILL, when the pipe closes."""
    # A process started in the background ignores SIGINT, and so would its children.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    except OSError as error:
        print(f"{command[0]}: cannot be started: {error.strerror}", file=sys.stderr)
        return 2  # harness.errors.EXIT_BAD_INPUT, which a script run by its path cannot import
    watch(lambda: _end(child))
    code = child.wait()
    return code if code >= 0 else 128 - code


def _end(child: subprocess.Popen[bytes]) -> None:
    child.send_signal(signal.SIGINT)
    try:
        child.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        child.kill()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
