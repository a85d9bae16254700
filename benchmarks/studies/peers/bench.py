"""Define a comparison with a peer, and time it; the modules beside this one list the cases of each method.

Both sides run alternately in one process and each round gives one ratio, so a machine that slows down or is
shared slows both alike. The median of the ratios and their quartiles are reported.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from harness.engine.measure.peak import LiveMeter
from harness.plugins import import_library

#: Shortest time of a round, filled with calls, so that the clock's resolution does not matter.
ROUND_S = 0.05


class PeerMissingError(Exception):
    """The package of a peer is not installed."""


@dataclass(frozen=True)
class Duel:
    """Two pieces of work on the same tensors, to be called alternately many times.

    `facts` are measured once during setup, e.g. the distance between both results.
    """

    ours: Callable[[], Any]
    peer: Callable[[], Any]
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One row of the table; `set_up` makes the tensors, checks that both do the same, and returns a duel.

    `target` is the largest acceptable ratio ours / peer, None where none was set. `heavy` cases get fewer
    rounds.
    """

    method: str
    work: str
    shape: str
    peer: str
    set_up: Callable[[], Duel]
    target: float | None = None
    heavy: bool = False


@dataclass
class Times:
    """Seconds per call, one value for each round."""

    ours: list[float] = field(default_factory=list)
    peer: list[float] = field(default_factory=list)


def alternate(duel: Duel, rounds: int, clock: Callable[[], float] = time.perf_counter) -> Times:
    """Call both sides once to warm up, then time them alternately; every other round the peer begins."""
    sides = {"ours": duel.ours, "peer": duel.peer}
    slower = max(_elapsed(work, 1, clock) for work in sides.values())
    calls = max(1, math.ceil(ROUND_S / slower)) if slower > 0 else 1
    times = Times()
    for index in range(rounds):
        for side in sides if index % 2 == 0 else reversed(sides):
            getattr(times, side).append(_elapsed(sides[side], calls, clock) / calls)
    return times


def ratios(ours: Sequence[float], peer: Sequence[float]) -> list[float]:
    """Return ours / peer of each round."""
    return [mine / theirs for mine, theirs in zip(ours, peer, strict=True)]


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return lower quartile, median and upper quartile, interpolated (Hyndman & Fan 1996, definition 7)."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, median, upper


def peer_package(module: str, package: str) -> Any:
    """Import the module of a peer; PeerMissingError where it is not installed."""
    try:
        return import_library(module)
    except ImportError as error:
        raise PeerMissingError(f"{package} is not installed") from error


def agreement(ours: Tensor, peer: Tensor, tolerance: float) -> str:
    """Return the relative distance |ours - peer| / |peer|; ValueError when it is above the tolerance."""
    distance = float((torch.linalg.vector_norm(ours - peer) / torch.linalg.vector_norm(peer)).detach())
    if not distance <= tolerance:
        raise ValueError(f"ours and the peer do different work: they lie {distance:.1e} apart")
    return f"{distance:.0e}"


def peak_bytes(work: Callable[[], object]) -> int:
    """Return the peak of live bytes during the work, less those alive before."""
    meter = LiveMeter(torch.device("cpu"))
    gc.collect()
    with meter.window() as window:
        torch.zeros(())
        before = window.peak_allocated_bytes
        work()
    return window.peak_allocated_bytes - before


def _elapsed(work: Callable[[], Any], calls: int, clock: Callable[[], float]) -> float:
    started = clock()
    for _ in range(calls):
        work()
    return clock() - started
