"""After how many tokens and seconds of training does each row reach a perplexity, and beside the baseline?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from harness.errors import UserError, counted
from harness.record import Record
from harness.tables import format, statistics
from harness.tables.aggregate import Row, Stat, mean
from harness.tables.curves import Reach, curves
from harness.tables.format import DASH, Column, Show, plain
from harness.tables.records import NOTE_LENGTH
from harness.tables.statistics import ALPHA, LEAST_SEEDS, Interval

NOT_REACHED = "not reached"
#: What is compared, as attributes of `Reach`.
COSTS = ("tokens", "seconds")


@dataclass(frozen=True)
class Reached:
    """When a row reached a target, by seed, None where it did not; `lowest` are its lowest perplexities."""

    seeds: Mapping[int, Reach | None]
    lowest: tuple[float, ...]

    @property
    def complete(self) -> bool:
        """Return whether every seed reached the target: a mean over the others would flatter the row."""
        return bool(self.seeds) and None not in self.seeds.values()

    @property
    def cell(self) -> str:
        """Return as text how many seeds reached the target."""
        count = sum(reach is not None for reach in self.seeds.values())
        return DASH if not self.seeds else f"{count}/{len(self.seeds)}" if count else NOT_REACHED

    def values(self, cost: str) -> dict[int, float]:
        """Return tokens or seconds by seed; empty unless every seed reached the target."""
        if not self.complete:
            return {}
        return {seed: float(getattr(reach, cost)) for seed, reach in self.seeds.items()}

    def stat(self, cost: str) -> Stat | None:
        """Return mean and spread over seeds."""
        values = list(self.values(cost).values())
        return Stat.of(values) if values else None


@dataclass(frozen=True)
class Goal:
    """A perplexity by one protocol that rows are to reach, and when each did, beside its baseline."""

    protocol: str
    target: float
    rows: tuple[Reached, ...]
    bases: tuple[Reached | None, ...]
    every: tuple[str, ...]
    unread: tuple[str, ...]

    @property
    def known(self) -> bool:
        """Return whether any row was scored by the protocol in training."""
        return any(row.seeds for row in self.rows)

    @property
    def title(self) -> str:
        """Return the title of the table."""
        return f"Training to perplexity {self.target:g} on {plain(self.protocol)}"

    @property
    def notes(self) -> tuple[str, ...]:
        """Return how the table is to be read."""
        found = [
            f"the first score at {self.target:g} or below, of scores {' or '.join(self.every)} updates "
            "apart, not interpolated; seconds are of training alone, without loading, scores and checkpoints",
            f"lowest: the lowest perplexity in training and at its end; {100 * (1 - ALPHA):g} %: interval of "
            f"the ratio, paired by seed, from {LEAST_SEEDS} seeds on; no mean where a seed does not get "
            "there",
        ]
        if self.unread:
            what = plain(self.unread[0], NOTE_LENGTH)
            found.append(f"without the curves of {counted(len(self.unread), 'run')}: {what}")
        return tuple(found)

    @property
    def missing(self) -> str:
        """Return what is said in place of the table."""
        said = f"Target {plain(self.protocol)} {self.target:g}: no run here was scored by it in training"
        return said + (f" ({plain(self.unread[0], NOTE_LENGTH)})" if self.unread else " (evaluate.during)")

    def columns(self, versus: str) -> list[Column]:
        """Return the columns of the table; `versus` is the heading of ratios."""
        found = [Column("reached", tuple(row.cell for row in self.rows), numeric=False)]
        for cost in COSTS:
            stats = [row.stat(cost) for row in self.rows]
            means = [stat.mean for stat in stats if stat]
            show = format.fixed(0) if cost == "tokens" else format.significant(means, 4)
            ratios = [self._ratio(place, cost) for place in range(len(self.rows))]
            reaches = [self._interval(place, cost) for place in range(len(self.rows))]
            found += [
                Column(cost, tuple(_spread(stat, show) for stat in stats), key=f"{self._key}_{cost}_mean"),
                Column(versus, tuple(map(_ratio_text, ratios)), joined=True, key=f"{self._key}_{cost}_ratio"),
                Column(f"{100 * (1 - ALPHA):g} %", tuple(map(_interval_text, reaches)), False, joined=True),
            ]
        lowest = [mean(row.lowest) if row.lowest else None for row in self.rows]
        show = format.significant([value for value in lowest if value is not None], 4)
        texts = tuple(DASH if value is None else show(value) for value in lowest)
        return [*found, Column("lowest", texts, key=f"{self._key}_lowest")]

    def line(self, place: int) -> dict[str, object]:
        """Return the values of a row for the CSV; bounds are those of the ratio."""
        row = self.rows[place]
        line: dict[str, object] = {
            self._key: self.target,
            f"{self._key}_reached": sum(reach is not None for reach in row.seeds.values()),
            f"{self._key}_seeds": len(row.seeds),
        }
        for cost in COSTS:
            stat, found = row.stat(cost), self._interval(place, cost)
            line |= {
                f"{self._key}_{cost}_mean": stat.mean if stat else None,
                f"{self._key}_{cost}_sd": stat.sd if stat else None,
                f"{self._key}_{cost}_ratio": self._ratio(place, cost),
                f"{self._key}_{cost}_low": 1 + found.low if found else None,
                f"{self._key}_{cost}_high": 1 + found.high if found else None,
            }
        return line | {f"{self._key}_lowest": mean(row.lowest) if row.lowest else None}

    @cached_property
    def _key(self) -> str:
        return f"target_{plain(self.protocol)}"

    def _ratio(self, place: int, cost: str) -> float | None:
        base = self.bases[place]
        own, other = self.rows[place].stat(cost), base.stat(cost) if base else None
        return own.mean / other.mean if own and other and other.mean else None

    def _interval(self, place: int, cost: str) -> Interval | None:
        """Return the change against the baseline over the seeds of both, None for too few of them."""
        row, base = self.rows[place], self.bases[place]
        if base is None or base is row:
            return None
        mine, theirs = row.values(cost), base.values(cost)
        seeds = sorted(seed for seed in mine.keys() & theirs.keys() if mine[seed] > 0 < theirs[seed])
        if len(seeds) < LEAST_SEEDS:
            return None
        pairs = ([math.log(values[seed]) for seed in seeds] for values in (theirs, mine))
        return statistics.paired_t(*pairs)


def goals(rows: Sequence[Row], bases: Sequence[Row | None], targets: Mapping[str, float]) -> list[Goal]:
    """Return for each target when the rows reached it."""
    found = []
    for protocol, target in targets.items():
        unread: list[str] = []
        reached = {id(row): _reached(row, protocol, target, unread) for row in rows}
        scored = [row for row in rows if reached[id(row)].seeds]
        every = sorted({row.settings["evaluate.during.every"] for row in scored}, key=int)
        goal = Goal(
            protocol,
            target,
            tuple(reached.values()),
            tuple(reached[id(base)] if base is not None else None for base in bases),
            tuple(every),
            tuple(dict.fromkeys(unread)),
        )
        found.append(goal)
    return found


def _reached(row: Row, protocol: str, target: float, unread: list[str]) -> Reached:
    """Return when a row reached a target; repeats of a seed count once, by their mean.

    A run that failed before it got there did not reach it; one that was not scored in training says nothing.
    """
    by_seed: dict[int, list[Reach | None]] = {}
    lowest: list[float] = []
    for record in row.records if "evaluate.during.every" in row.settings else ():
        try:
            curve = curves(record).get(protocol)
        except UserError as error:
            unread.append(str(error))
            continue
        if curve is not None or _failed(record):
            by_seed.setdefault(record.seed, []).append(curve.reach(target) if curve else None)
            lowest += [curve.lowest] if curve else []
    return Reached({seed: _mean(several) for seed, several in by_seed.items()}, tuple(lowest))


def _failed(record: Record) -> bool:
    return record.outcome.status not in ("ok", "interrupted")


def _mean(several: Sequence[Reach | None]) -> Reach | None:
    known = [reach for reach in several if reach is not None]
    if len(known) < len(several):
        return None
    return Reach(known[0].tokens, mean([reach.seconds for reach in known]))


def _spread(stat: Stat | None, show: Show) -> str:
    if stat is None:
        return DASH
    return show(stat.mean) + (f" ± {show(stat.sd)}" if stat.sd else "")


def _ratio_text(value: float | None) -> str:
    return DASH if value is None else format.ratio(value)


def _interval_text(found: Interval | None) -> str:
    if found is None or not math.isfinite(found.high):
        return DASH
    return f"{format.ratio(1 + found.low)} … {format.ratio(1 + found.high)}"
