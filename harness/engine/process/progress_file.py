"""How far a run is, on disk for `lorebench status`: a line of JSON for each thing that there is to tell.

    {"time": …, "row": "full", "seed": 0, "repeat": 0, "steps": 9000}  by the parent, as an attempt begins
    {"time": …, "phase": "train", "step": 400, "loss": 3.1, …}         by the worker
    {"time": …, "status": "interrupted"}                               by the parent, as it has ended

The file is beside the record, outside of what an attempt clears: an attempt that goes on from a checkpoint
goes on in it, any other begins it anew. It goes with a run that has ended so that its record tells all. It is
never in the way: what cannot be written is left out, and what cannot be read is passed over. No torch.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness import strict_json
from harness.files import private

SUFFIX = ".progress.jsonl"
#: What of a worker's event is written: numbers and names, no message, which may quote paths and text.
NUMBERS = ("step", "steps", "loss", "mean_loss", "lr", "tokens_per_s", "peak_bytes", "checkpoint", "resumed")
NAMES = ("phase", "task")
LONGEST_NAME = 200
#: From so many bytes on, every second line goes, but for the first and the newest: days fit, ever coarser.
MOST_BYTES = 1 << 18
NEWEST = 200

Line = Mapping[str, Any]


def begin(path: Path, about: Line, goes_on: bool) -> str:
    """Note that an attempt begins; return when the first of those began that it goes on from.

    With `goes_on` it continues what an earlier attempt has trained.
    """
    earlier = read(path) if goes_on else []
    if not earlier:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        with suppress(OSError), open(path, "xb", opener=private):
            pass
    now = _now()
    append(path, about, now)
    return str(earlier[0].get("time", now)) if earlier else now


def note(path: Path, event: Line) -> None:
    """Write what a worker reports; nothing where no parent has begun the file."""
    line: dict[str, Any] = {name: str(event[name])[:LONGEST_NAME] for name in NAMES if event.get(name)}
    for name in NUMBERS:
        value = event.get(name)
        if isinstance(value, (int, float)) and math.isfinite(value):
            line[name] = value
    append(path, line)


def append(path: Path, content: Line, time: str | None = None) -> None:
    """Write a line at the end of a file that is there, and the time with it."""
    line = strict_json.text({"time": time or _now(), **content}).encode()
    with suppress(OSError):
        file = os.open(path, os.O_RDWR | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0))
        try:
            size = os.fstat(file).st_size
            whole = not size or os.pread(file, 1, size - 1) == b"\n"
            os.write(file, line if whole else b"\n" + line)  # the last writer may have been killed
        finally:
            os.close(file)
        if size + len(line) > MOST_BYTES:
            _thin_out(path)


def read(path: Path) -> list[Line]:
    """Return the lines of a file; those that are half written, or not ours, are passed over."""
    found: list[Line] = []
    with suppress(OSError), path.open("rb") as file:
        for text in file.read(2 * MOST_BYTES).splitlines():
            with suppress(ValueError, RecursionError):
                line = json.loads(text)
                if isinstance(line, dict):
                    found.append(line)
    return found


def seconds(line: Line) -> float | None:
    """Return the time of a line in seconds since 1970, None where it tells none."""
    with suppress(ValueError, TypeError):
        return datetime.fromisoformat(line["time"]).timestamp() if "time" in line else None
    return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _thin_out(path: Path) -> None:
    """Leave out every second of the older lines, in one step for who reads."""
    half = path.with_name(f".{path.name}.tmp")
    lines = path.read_bytes().splitlines(keepends=True)
    try:
        with open(half, "wb", opener=private) as file:
            file.writelines(_fewer(lines))
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)


def _fewer(lines: Sequence[bytes]) -> Sequence[bytes]:
    return [*lines[:1], *lines[1:-NEWEST:2], *lines[max(1, len(lines) - NEWEST) :]]
