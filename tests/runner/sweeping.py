"""What the tests of the runner share: suites of stub runs, a display that remembers, a sweep in a script."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.config import Run
from harness.engine.process.progress import Display
from harness.engine.runner import Settings
from harness.record import Record
from harness.suite import Suite

ROOT = Path(__file__).resolve().parents[2]
STUB = (sys.executable, "-S", "-E", str(Path(__file__).with_name("stub.py")))


class Remember(Display):
    """Keeps everything that it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.events: list[Mapping[str, Any]] = []
        self.started: list[str] = []
        self.ended: list[tuple[str, str]] = []
        self.etas: list[float | None] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def start(self, run: Run, eta_s: float | None) -> None:
        self.started.append(run.name)
        self.etas.append(eta_s)

    def event(self, event: Mapping[str, Any]) -> None:
        self.events.append(event)

    def end(self, run: Run, record: Record, seconds: float) -> None:
        self.ended.append((run.name, record.outcome.status))


def stub_run(
    do: str = "ok", *, seed: int = 0, repeat: int = 0, label: str | None = None, **options: Any
) -> Run:
    """A run that the stub worker carries out as told by `do`."""
    method = {"name": "stub:Stub", "options": {"do": do, **options}}
    return Run.model_validate({"method": method, "seed": seed, "repeat": repeat, "label": label})


def suite_of(*runs: Run, name: str = "stubs") -> Suite:
    return Suite(name, "", None, runs)


def stub_settings(folder: Path, **changes: Any) -> Settings:
    given = {"results": folder / "results", "cache": folder / "cache", "deadline_s": 20.0, "grace_s": 5.0}
    return Settings(**{**given, "command": STUB, **changes})


def starts(settings: Settings) -> list[str]:
    """The ids of the runs that workers were started for, in order."""
    file = settings.cache / "started.txt"
    return [line.split()[0] for line in file.read_text().splitlines()] if file.exists() else []


def workers(settings: Settings) -> list[int]:
    """The process ids of all workers that were started, in order."""
    return [int(line.split()[1]) for line in (settings.cache / "started.txt").read_text().splitlines()]


def alive(process_id: int) -> bool:
    """Whether a process runs; one that is dead and waits to be collected does not."""
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{process_id}/stat")
    try:
        return stat.read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return not Path("/proc").is_dir()


def wait_until(happened: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for something to happen, and fail when it does not."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
