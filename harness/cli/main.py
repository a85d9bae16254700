"""The entry of the command line: from the first import to the last byte, every end is one line and a code.

What takes time to import is imported within `main`, so that Ctrl-C is heard from the start.
"""

from __future__ import annotations

import errno
import gc
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

#: Exit codes as a shell gives them to a command that a signal ended: 128 + the signal.
EXIT_INTERRUPTED, EXIT_PIPE_CLOSED = 130, 141
LONGEST_PATH = 200
#: New objects between searches for garbage: 10,000 records are a million objects, none of them garbage.
COLLECTED_AFTER = 100_000
STOPPED = "lorebench: stopped; the same command continues"


def main() -> None:
    """Run the command line and exit; bad input, also a path that cannot exist, is one line and code 2."""
    gc.set_threshold(COLLECTED_AFTER)
    code = _guarded()
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:  # a full disk or a closed pipe shows itself only now
        code = code or _ended_by(error)
    if code:
        _let_go(sys.stdout, sys.stderr)
        sys.exit(code)


def _guarded() -> int:
    """Run the command line and return its exit code."""
    try:
        with _quiet_interrupt():
            from harness.cli.commands import app, check_arguments
            from harness.errors import EXIT_BAD_INPUT, UserError
        _replace_what_cannot_be_encoded()
        check_arguments(sys.argv[1:])
        app(prog_name="lorebench")
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # typer and rich make it an exit with code 1
            return EXIT_PIPE_CLOSED
        if end.code == EXIT_INTERRUPTED:  # typer makes it of Ctrl-C
            return _stopped(end)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except KeyboardInterrupt as interrupt:
        return _stopped(interrupt)
    except UserError as error:
        return _refuse(str(error), EXIT_BAD_INPUT)
    except OSError as error:
        return _ended_by(error)
    return 0


def _stopped(error: BaseException | None) -> int:
    """Say that a signal ended the command, and return 128 + its number, by the exception that it raised."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__ or error.__context__
    _say(STOPPED)
    return 128 + int(getattr(error, "number", signal.SIGINT))


@contextmanager
def _quiet_interrupt() -> Iterator[None]:
    """End at Ctrl-C at once: an exception within an import may be lost or printed."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return

    def stop(*_: object) -> None:
        os.write(2, f"{STOPPED}\n".encode())
        os._exit(EXIT_INTERRUPTED)

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _replace_what_cannot_be_encoded() -> None:
    """Print a question mark for a letter that the terminal's encoding lacks, rather than fail."""
    for stream in (sys.stdout, sys.stderr):
        if (reconfigure := getattr(stream, "reconfigure", None)) is not None:
            reconfigure(errors="replace")


def _ended_by(error: OSError) -> int:
    """Say which file or device failed, on one line, and return the exit code; nothing for a closed pipe."""
    from harness.errors import EXIT_BAD_INPUT, one_line
    from harness.files import out_of_room

    if error.errno == errno.EPIPE:
        return EXIT_PIPE_CLOSED
    place = "" if error.filename is None else f"{str(error.filename)[:LONGEST_PATH]}: "
    hint = "; make room, then the same command continues" if out_of_room(error) else ""
    return _refuse(f"{place}{error.strerror or one_line(error)}{hint}", EXIT_BAD_INPUT)


def _refuse(text: str, code: int) -> int:
    """Print an error as one line, without control characters of files and records, and return its code."""
    from harness.plain_text import plain

    short = re.sub(rf"(\S{{{LONGEST_PATH}}})\S+", r"\1…", plain(text))  # a name of 5,000 letters says no more
    _say(f"lorebench: {short}")
    return code


def _say(line: str) -> None:
    with suppress(OSError, ValueError):  # standard error may be full or closed, too
        print(line, file=sys.stderr, flush=True)


def _let_go(*streams: object) -> None:
    """Drop what streams still hold, so that Python does not fail at it again when it ends."""
    for stream in streams:
        with suppress(OSError, ValueError, AttributeError):
            stream.flush()  # type: ignore[attr-defined]
            continue
        with suppress(OSError, ValueError, AttributeError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())  # type: ignore[attr-defined]
            os.close(null)
