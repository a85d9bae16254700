"""The interface of a logger, and what it is told. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from harness.record import Record

#: The values of a log by what a worker's event calls them.
REPORTED = {
    "loss": "train/loss_nats",
    "mean_loss": "train/mean_loss_nats",
    "lr": "train/lr",
    "tokens_per_s": "train/tokens_per_s",
    "peak_bytes": "memory/train_peak_bytes",
}


@dataclass(frozen=True)
class About:
    """A run as its log names it.

    `key`, 16 hexadecimal digits, is the same for all attempts that continue one training, and another where
    it begins anew. `name` is for people: row, seed and repeat. What a logger keeps on disk goes
    below `folder`.
    """

    key: str
    name: str
    suite: str
    run_id: str
    folder: Path
    config: Mapping[str, Any]

    def plain(self) -> dict[str, Any]:
        """Return the fields as JSON holds them."""
        return {**asdict(self), "folder": str(self.folder)}

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Self:
        """Undo `plain`."""
        return cls(**{**plain, "folder": Path(plain["folder"])})

    @property
    def settings(self) -> dict[str, str]:
        """The config in dotted keys."""
        return dict(_flat(self.config))


class Logger(Protocol):
    """Writes to one program. Each call may raise whatever its library does: who calls it warns and goes on.

    It is made without arguments, and raises UserError where what it needs is not there. `start` is called
    again until it succeeds.
    """

    def start(self, about: About) -> None:
        """Begin the log of a run, or go on with that of the same key."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Add finite values after so many updates."""

    def end(self, status: str) -> None:
        """End the log of the run that was begun last, by the status of its record."""


def of_event(event: Mapping[str, Any]) -> dict[str, float]:
    """Return what an event of a worker adds to a log; empty for one that reports no update."""
    if not isinstance(event.get("step"), int) or "loss" not in event:
        return {}
    return _finite({name: event.get(key) for key, name in REPORTED.items()})


def of_record(record: Record) -> dict[str, float]:
    """Return what a record adds to a log at the end: scores, speed and the peak of memory."""
    found: dict[str, Any] = {}
    if record.quality is not None:
        found |= {f"perplexity/{name}": each.perplexity for name, each in record.quality.perplexity.items()}
        found |= {f"accuracy/{name}": each.accuracy for name, each in record.quality.tasks.items()}
    if record.time is not None:
        found[REPORTED["tokens_per_s"]] = record.time.tokens_per_s
    if record.memory is not None and record.memory.train is not None:
        found[REPORTED["peak_bytes"]] = record.memory.train.peak_allocated_bytes
    return _finite(found)


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
    return {name: float(value) for name, value in numbers.items() if math.isfinite(value)}


def _flat(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found = []
    for key, value in content.items():
        if isinstance(value, list) and value and all(isinstance(part, dict) for part in value):
            value = {str(place): part for place, part in enumerate(value)}
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{key}.")
        elif value is not None:
            found.append((f"{prefix}{key}", str(value)))
    return found
