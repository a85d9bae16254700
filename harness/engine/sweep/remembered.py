"""Remember the answer to a request to check runs, so that asking again starts no worker. No torch.

An answer counts only while all that it follows from is the same: the request, the code, the names and
versions of installed packages, the environment and the folder, the processor, and the times, sizes and
inodes of all files below the paths that the runs name. It is not kept where that is not all: for methods
that do not ship and classes that options name by their module, for tasks in folders, which may include files
from anywhere, for what is on the hub, with other code on PYTHONPATH, and beside a GPU. Entries may be deleted
at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from harness import files, strict_json
from harness.digests import SETTLED_NS
from harness.identity import paths_of
from harness.imports import OURS, ROOT, named_folders
from harness.registry import REGISTRY

#: Answers that are kept.
MOST = 64
#: Files below the paths that runs name: more take longer to look at than torch to import.
MOST_FILES = 10_000
#: Signs of a GPU, whose state only its driver knows.
GPU_SIGNS = ("nvidia*", "kfd", "dxg")


class _UnsettledError(Exception):
    """Something may change without a sign of it."""


class Remembered:
    """The place of the answer to one request, and what it follows from."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        self._request = request
        text = json.dumps(request, sort_keys=True)
        self._place = files.cache_folder() / "resolved" / f"{hashlib.sha256(text.encode()).hexdigest()}.json"
        self._state = self._now()

    def answer(self) -> dict[str, Any] | None:
        """Return the answer that was kept, None where it does not count or there is none."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads(self._place.read_bytes())
            if self._state == content["state"] and content["check"] == _hash(content["answer"]):
                return dict(content["answer"])
        return None

    def keep(self, answer: Mapping[str, Any]) -> None:
        """Keep an answer, unless something has changed since this object was made."""
        if self._state is None or self._state != self._now():
            return
        content = {"state": self._state, "check": _hash(answer), "answer": answer}
        with suppress(OSError):
            files.replace(self._place, strict_json.text(content))
            kept = files.visible(self._place.parent, "*.json")
            for path in sorted(kept, key=lambda path: path.stat().st_mtime_ns)[:-MOST]:
                path.unlink(missing_ok=True)

    def _now(self) -> str | None:
        """Return a hash of all that the answer follows from but the request, None where that is not all."""
        choices = [choice for run in self._request["runs"] for choice in run["method"]]
        names = {choice["name"] for choice in choices}
        other_code = any(":" in str(value) for choice in choices for value in choice["options"].values())
        other = {*map(Path, named_folders())} - {ROOT}
        gpu = any(any(Path("/dev").glob(sign)) for sign in GPU_SIGNS)
        folders = any(run["evaluate"].get("task_paths") for run in self._request["runs"])
        if gpu or other or folders or other_code or not names <= set(REGISTRY):
            return None
        try:
            code = [list(_below(ROOT / name)) for name in OURS]
            return _hash([_machine(), code, _packages(), list(_named(self._request["runs"]))])
        except (OSError, RuntimeError, _UnsettledError):
            return None


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _machine() -> list[Any]:
    processors = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return [sys.version, platform.platform(), processors, memory, str(Path.cwd()), sorted(os.environ.items())]


def _packages() -> list[list[str]]:
    """Return what is installed in each folder of the path, by names that hold versions."""
    return [
        sorted(str(found) for found in place.glob("*-info"))
        for place in map(Path, sys.path)
        if place.is_dir()
    ]


def _named(runs: list[Mapping[str, Any]]) -> Iterator[list[Any]]:
    """Yield the state of each file below the paths that runs name."""
    for path in sorted({path for run in runs for path in paths_of(run)}):
        place = Path(path).expanduser()
        yield [path, *(_below(place) if place.is_dir() else [_state(place)])]


def _below(folder: Path) -> Iterator[list[Any]]:
    found = 0
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for name in sorted(names):
            found += 1
            if found > MOST_FILES:
                raise _UnsettledError
            yield _state(Path(place) / name)


def _state(path: Path) -> list[Any]:
    """Return what changes when a file does; a file that changed just now may change again without it."""
    found = path.stat()
    if max(found.st_mtime_ns, found.st_ctime_ns) > time.time_ns() - SETTLED_NS:
        raise _UnsettledError
    times = [found.st_mtime_ns, found.st_ctime_ns]
    return [str(path), found.st_dev, found.st_ino, found.st_size, *times]
