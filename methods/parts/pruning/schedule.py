"""When groups are pruned in a training, and how many by then.

The cubic ramp of Zhu & Gupta (2017, arXiv 1710.01878, equation 1) between a warm-up and an end without
pruning, as in LoRAPrune (Zhang et al., ACL 2024 Findings, arXiv 2305.18403).
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Ramp:
    """The pruned share rises from `first` to `last` between two shares of a training of `updates` updates.

    It is 0 for the share `warmup`, then last + (first - last) (1 - p)^3 where p goes from 0 to 1, and `last`
    for the share `cooldown` at the end. Groups are chosen at every multiple of `period` within, and once more
    with the first update of the end, so that the last share is reached (the official code never applies it).
    """

    updates: int
    period: int
    first: float = 0.0
    last: float = 0.5
    warmup: float = 0.1
    cooldown: float = 0.1

    @property
    def begin(self) -> float:
        """Updates before the ramp."""
        return self.warmup * self.updates

    @property
    def end(self) -> int:
        """The first update, from 1, of the last share."""
        return max(1, math.ceil((1 - self.cooldown) * self.updates - 1e-9))

    def share(self, update: int) -> float:
        """Return the pruned share at an update, counted from 1."""
        if update >= self.end:
            return self.last
        if update <= self.begin:
            return 0.0
        done = (update - self.begin) / (self.end - self.begin)
        return self.last + (self.first - self.last) * (1 - done) ** 3

    def chooses(self, update: int) -> bool:
        """Return whether groups are chosen with an update, counted from 1."""
        within = self.begin < update < self.end and update % self.period == 0
        return self.last > 0 and (within or update == self.end)
