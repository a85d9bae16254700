"""Log to trackio, which keeps what it is told on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from harness.engine.loggers.logger import About

PROJECT = "lorebench"


class Trackio:
    """One run of trackio for each of ours, in the group of its suite; TRACKIO_DIR says where."""

    def __init__(self) -> None:
        self._trackio: Any = import_module("trackio")
        self._run: Any = None

    def start(self, about: About) -> None:
        """Begin a run, or go on with it; trackio tells runs by their names."""
        self._run = self._trackio.init(
            project=PROJECT,
            name=f"{about.name} {about.key}",
            group=about.suite,
            config=dict(about.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add values."""
        self._run.log(dict(values), step=step)

    def end(self, status: str) -> None:
        """Finish the run."""
        run, self._run = self._run, None
        run.finish()
