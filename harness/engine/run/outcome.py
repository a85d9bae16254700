"""Classify the exception that ended a run: out of memory, diverged, unsupported, or an error."""

from __future__ import annotations

import re
import sys
import traceback

from harness.errors import DivergedError, MethodError, UnsupportedError, bounded, is_out_of_memory, text_of
from harness.plain_text import without_secrets
from harness.plugins import place_of
from harness.record import Outcome, Phase

UNITS = {"bytes": 1, "B": 1} | {f"{letter}iB": 1024**power for power, letter in enumerate("KMGTPE", 1)}
#: CUDA: "Tried to allocate 2.00 GiB"; CPU: "you tried to allocate 137438953472 bytes"; numpy: "Unable to
#: allocate 8.00 EiB for an array".
REQUESTED = re.compile(rf"(?:[Tt]ried|Unable) to allocate ([\d.]+) ?({'|'.join(UNITS)})\b")

#: Lines of a message in a record, before the frames of its traceback; characters of a message in the log.
MOST_MESSAGE_LINES = 20
LONGEST_LOGGED = 100_000


def classify(error: BaseException, phase: Phase | None) -> Outcome:
    """Return the outcome for an exception; prints the traceback of an error that is a defect."""
    message = (text_of(error).splitlines() or [""])[0]
    if is_out_of_memory(error):
        return Outcome(
            status="oom", phase=phase, message=message, requested_bytes=requested_bytes(text_of(error))
        )
    if isinstance(error, DivergedError):
        return Outcome(status="diverged", phase=phase, message=message)
    if isinstance(error, UnsupportedError):
        return Outcome(status="unsupported", phase=phase, message=message)
    for part in traceback.format_exception(error):
        sys.stderr.write(bounded(without_secrets(part), LONGEST_LOGGED))
    tail = "".join(traceback.format_exception_only(error)).splitlines()[:MOST_MESSAGE_LINES]
    frames = [line for part in traceback.format_tb(error.__traceback__)[-3:] for line in part.splitlines()]
    lines = [*tail, *frames]
    if not isinstance(error, MethodError):  # whose message is whole
        message = f"{type(error).__name__}: {message}{place_of(error)}"
    return Outcome(status="error", phase=phase, message=message, log_tail=lines)


def requested_bytes(message: str) -> int | None:
    """Return the number of bytes in a message about a failed allocation, None without one."""
    found = REQUESTED.search(message)
    return round(float(found[1]) * UNITS[found[2]]) if found else None
