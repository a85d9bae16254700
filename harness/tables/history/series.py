"""The parts of a history: commits, series of points, change points and breaks; no rule and no rendering.

A series lasts while config, environment and measurement protocols stay the same. Where one of these changes,
the series ends, another one begins, and a break names the fields that differ.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from harness.tables.aggregate import grouped
from harness.tables.compare.comparison import Difference

#: The measurement that a quantity is of, which decides what must be equal before two values are compared.
Kind = Literal["memory", "time", "perplexity", "accuracy", "status"]
#: The order in which a person reads them.
KINDS: tuple[Kind, ...] = ("memory", "time", "perplexity", "accuracy", "status")
MIB = 1 << 20
#: Beyond any speed or perplexity, and small enough for ratios.
LARGEST = 1e100


@dataclass(frozen=True)
class Quantity:
    """Something that a run is measured by; `part` is true of components, whose whole is the peak memory.

    `key` has the unit in it, as records do; `unit` is `bytes`, `tokens/s`, `s`, `share`, or empty where there
    is none. An exact quantity repeats with the code, as far as its meter counts; the others are noisy.
    """

    key: str
    name: str
    unit: str
    kind: Kind
    better: Literal["lower", "higher"]
    exact: bool = False
    part: bool = False

    def __hash__(self) -> int:
        """Return the hash of the key, which is fast: every value of every run is found by its quantity."""
        return hash(self.key)

    @property
    def shown_unit(self) -> str:
        """The unit for people: MiB for bytes, percent for shares."""
        return {"bytes": "MiB", "share": "%"}.get(self.unit, self.unit)

    def usable(self, value: float) -> bool:
        """Whether a value can be drawn and tested: finite, and where ratios count such that these are."""
        if self.kind in ("time", "perplexity"):
            return 1 / LARGEST < value < LARGEST
        return math.isfinite(value)

    def shown(self, value: float) -> float:
        """A value in the unit for people."""
        return value / MIB if self.unit == "bytes" else 100 * value if self.unit == "share" else value


@dataclass(frozen=True)
class Commit:
    """A place on the axis of a history: a commit, a commit with changed files (`abc1234+`), or a day.

    `order` counts from 0, oldest first, and is the place in `History.commits`. `sha` is None where records
    name no commit: these are grouped by the day of their start. `known` says whether the order is the
    repository's; `when` is the earliest start of a run, ISO 8601; `subject` the first line of the commit's
    message.
    """

    order: int
    name: str
    sha: str | None
    dirty: bool = False
    when: str | None = None
    subject: str = ""
    known: bool = False


@dataclass(frozen=True)
class Point:
    """One value of one run; `order` is the place of its commit in `History.commits`.

    `source` is the file that it was read from, with the commit in front where that is an earlier version.
    """

    order: int
    value: float
    seed: int
    repeat: int
    run_id: str
    when: str | None
    source: str


@dataclass(frozen=True)
class ChangePoint:
    """A change of level between two commits of a series: neighbours, but for runs that those between lack.

    `before` and `after` are the levels: the values of exact quantities, else medians of the segments of runs
    up to and from here, those of quality seed by seed and averaged over the seeds of both. `first` is the
    last commit before and `second` the first one after, as places in `History.commits`. `p_value` is None
    where no test was needed; `cause` says which components moved, or why runs failed; `remark` what supports
    or weakens it, and `doubtful` that it may be machine noise.
    """

    series: str
    row: str
    quantity: Quantity
    first: int
    second: int
    before: float
    after: float
    p_value: float | None = None
    cause: str = ""
    remark: str = ""
    doubtful: bool = False

    @property
    def ratio(self) -> float | None:
        """After over before; None where there was nothing before, or a value that no ratio can be made of."""
        usable = self.quantity.usable(self.before) and self.quantity.usable(self.after)
        return self.after / self.before if self.before and usable else None

    @property
    def worse(self) -> bool:
        """Whether the quantity became worse; nothing is worse than a value that is not finite."""
        if not (self.quantity.usable(self.before) and self.quantity.usable(self.after)):
            return self.quantity.usable(self.before)
        return (self.after > self.before) == (self.quantity.better == "lower")


@dataclass(frozen=True)
class Series:
    """Points of one quantity of one row that may be joined by a line, in the order of their commits.

    `row` is the label in the suite, with the settings behind it where several configs share the label.
    `environment` is what all its runs agree on (device, torch, protocols, …). `tested` says whether it was
    searched for change points; `remarks` are notes on it, such as runs of one commit that disagree.
    `lost` are values that can be neither drawn nor tested, such as a perplexity that became infinite.
    """

    id: str
    suite: str
    row: str
    quantity: Quantity
    config_id: str
    environment: Mapping[str, str]
    points: tuple[Point, ...]
    change_points: tuple[ChangePoint, ...] = ()
    tested: bool = True
    remarks: tuple[str, ...] = ()
    lost: tuple[Point, ...] = ()

    @cached_property
    def by_commit(self) -> dict[int, tuple[Point, ...]]:
        """The points of each commit, by its place."""
        return {order: tuple(points) for order, points in grouped(self.points, lambda p: p.order).items()}

    def seeds(self, orders: Iterable[int]) -> frozenset[int] | None:
        """The seeds that all of these commits have; None where values do not follow the seed, as times."""
        if self.quantity.kind == "time":
            return None
        return frozenset.intersection(*(frozenset(p.seed for p in self.by_commit[order]) for order in orders))

    def level(self, order: int, seeds: Container[int] | None = None) -> float:
        """The median of the runs of a commit, of these seeds or of all; of how they ended the share."""
        return self.middle([p.value for p in self.by_commit[order] if seeds is None or p.seed in seeds])

    def middle(self, values: Sequence[float]) -> float:
        """The median of some values; of how runs ended the mean, which is a share."""
        if len(values) == 1:
            return values[0]
        return statistics.fmean(values) if self.quantity.kind == "status" else statistics.median(values)

    @property
    def first(self) -> int:
        """The place of the first commit."""
        return self.points[0].order

    @property
    def last(self) -> int:
        """The place of the last commit."""
        return self.points[-1].order


@dataclass(frozen=True)
class Break:
    """Where a series of a row ends and another one begins, with the fields in which they differ.

    `order` is the first commit of the new series. `beside` says that the earlier series goes on behind it, as
    on a second machine.
    """

    row: str
    quantity: Quantity
    order: int
    before: str
    after: str
    differences: tuple[Difference, ...]
    beside: bool = False


@dataclass(frozen=True)
class History:
    """All of a suite: commits oldest first, series in the order of rows and quantities, breaks, and notes.

    `baseline` is the label of the control row; `skipped` has a line for each file that is no valid record;
    `runs` counts the records that were used.
    """

    suite: str
    baseline: str | None
    commits: tuple[Commit, ...]
    series: tuple[Series, ...]
    breaks: tuple[Break, ...] = ()
    runs: int = 0
    skipped: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def change_points(self) -> list[ChangePoint]:
        """The change points of all series."""
        return [change for series in self.series for change in series.change_points]

    @property
    def rows(self) -> list[str]:
        """The rows that have a series, in order."""
        return list(dict.fromkeys(series.row for series in self.series))

    @property
    def quantities(self) -> list[Quantity]:
        """The quantities that have a series: cost, then quality, then outcomes."""
        found = dict.fromkeys(series.quantity for series in self.series)
        return sorted(found, key=lambda quantity: KINDS.index(quantity.kind))
