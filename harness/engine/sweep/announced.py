"""Say on disk what a sweep has still to start, as long as it lives, for `lorebench status`. No torch.

    .sweep-<hex>.json   a line for each run that waits, in order, then one for each that waits no longer
    .sweep-<hex>.lock   held by the sweep

Both are removed by the sweep, or by the next one where it was killed.
"""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from harness import strict_json
from harness.engine.process.lock import Lock, holder
from harness.files import private

NAME = re.compile(r"\.sweep-[0-9a-f]{8}\.(json|lock)")
LARGEST = 16 << 20

Waiting = Mapping[str, Any]


class Announced:
    """What one sweep has still to start; a folder that cannot be written to is none of its business."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / f".sweep-{secrets.token_hex(4)}.json"
        self._lock = Lock(self._file.with_suffix(".lock"))
        self._taken = False

    def __enter__(self) -> Self:
        _remove_what_is_left(self.folder)
        with suppress(OSError):
            self._taken = self._lock.take()
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):
            self._file.unlink(missing_ok=True)
        if self._taken:
            with suppress(OSError):
                self._lock.give()

    def tell(self, waiting: Iterable[Waiting]) -> None:
        """Write which runs wait; each has a `run_id`."""
        if self._taken:
            with suppress(OSError), open(self._file, "w", encoding="utf-8", opener=private) as file:
                file.writelines(map(strict_json.text, waiting))

    def gone(self, run_id: str) -> None:
        """Write that a run waits no longer."""
        if self._taken:
            with suppress(OSError), open(self._file, "a", encoding="utf-8", opener=private) as file:
                file.write(strict_json.text({"run_id": run_id, "gone": True}))


def waiting(folder: Path) -> list[Waiting]:
    """Return what the sweeps that are alive have still to start in a suite's folder."""
    found: dict[tuple[Path, str], Waiting] = {}
    for path in _files(folder):
        if path.suffix != ".json" or holder(path.with_suffix(".lock")) is None:
            continue
        for line in _lines(path):
            key = path, str(line.get("run_id"))
            if "gone" in line:
                found.pop(key, None)
            else:
                found[key] = line
    return list(found.values())


def _lines(path: Path) -> Iterator[Waiting]:
    """Yield the lines of a file that are whole."""
    with suppress(OSError), path.open("rb") as file:
        for text in file.read(LARGEST).splitlines():
            with suppress(ValueError, RecursionError):
                line = json.loads(text)
                if isinstance(line, dict):
                    yield line


def _files(folder: Path) -> list[Path]:
    with suppress(OSError), os.scandir(folder) as entries:
        return sorted(folder / entry.name for entry in entries if NAME.fullmatch(entry.name))
    return []


def _remove_what_is_left(folder: Path) -> None:
    """Remove the files of sweeps that were killed."""
    for path in _files(folder):
        if holder(path.with_suffix(".lock")) is None:
            with suppress(OSError):
                path.unlink()
