"""Estimate the seconds of runs that are left from those that have ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import fsum

from harness.config import Run
from harness.record import Record


class Estimates:
    """Estimates of the seconds of a run, from equal or similar runs with status `ok`, in constant time."""

    def __init__(self) -> None:
        self._longest: dict[str, float] = {}
        self._sum, self._count = 0.0, 0

    def add(self, record: Record, seconds: float | None) -> None:
        """Add a run; failed runs are ignored, since they may have ended early."""
        if seconds is not None and record.outcome.status == "ok":
            self._longest[record.config_id] = max(seconds, self._longest.get(record.config_id, 0.0))
            self._sum, self._count = self._sum + seconds, self._count + 1

    def known(self, run: Run) -> float | None:
        """Return the longest time of the same config, else None."""
        return self._longest.get(run.config_id)

    def of(self, run: Run) -> float | None:
        """Return the longest time of the same config, else the mean of all runs, else None."""
        return self._longest.get(run.config_id, self.mean)

    @property
    def mean(self) -> float | None:
        """The mean of all runs, None before the first."""
        return self._sum / self._count if self._count else None

    def total(self, runs: Sequence[Run]) -> float | None:
        """Return the sum over runs, None if one is unknown."""
        return TimeLeft(self, runs).seconds()


class TimeLeft:
    """The sum of estimates over the runs that are left, kept up to date run by run."""

    def __init__(self, estimates: Estimates, runs: Sequence[Run]) -> None:
        self._estimates = estimates
        self._left = Counter(run.config_id for run in runs)
        known = {run.config_id: estimates.known(run) for run in runs}
        self._unknown = sum(count for each, count in self._left.items() if known[each] is None)
        self._known_s = fsum(count * (known[each] or 0.0) for each, count in self._left.items())

    def remove(self, run: Run) -> None:
        """Take a run away."""
        self._left[run.config_id] -= 1
        known = self._estimates.known(run)
        self._unknown -= known is None
        self._known_s -= known or 0.0

    def learn(self, run: Run, record: Record, seconds: float) -> None:
        """Add the record of a run to the estimates."""
        before = self._estimates.known(run)
        self._estimates.add(record, seconds)
        after = self._estimates.known(run)
        if after is not None:
            left = self._left[run.config_id]
            self._unknown -= left if before is None else 0
            self._known_s += left * (after - (before or 0.0))

    def seconds(self) -> float | None:
        """Return the sum, None if nothing is known of a run."""
        if self._unknown and self._estimates.mean is None:
            return None
        return max(0.0, self._known_s + self._unknown * (self._estimates.mean or 0.0))
