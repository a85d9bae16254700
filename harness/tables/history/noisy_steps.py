"""Find change points of quantities that vary from run to run: significant and large enough."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from harness.errors import counted
from harness.tables.aggregate import binomial_stderr, grouped
from harness.tables.history import change_points
from harness.tables.history.change_points import Change
from harness.tables.history.exact_steps import LevelChange
from harness.tables.history.quantities import task
from harness.tables.history.segments import Run
from harness.tables.history.series import Quantity
from harness.tables.statistics import ALPHA, LEAST_PERPLEXITY_CHANGE, LEAST_SPEED_CHANGE

#: Standard errors of a difference that an accuracy must move by: the two-sided 95 % of a normal one.
ERRORS = 1.96
#: Share of neighbouring runs of one seed that are equal to the last digit where nothing is random.
REPEATING = 0.5


def search(runs: Sequence[Run], quantity: Quantity) -> tuple[Sequence[LevelChange], bool, tuple[str, ...]]:
    """Return the change points of a noisy series, oldest first, whether it was searched, and remarks.

    Quality depends on the seed, so its runs are compared within seeds; cost does not. A perplexity that
    repeats to the last digit is not noisy, and needs no test.
    """
    if len({run.order for run in runs}) < 2:
        return (), False, ()
    remarks: tuple[str, ...] = ()
    if len(runs) > change_points.MOST_VALUES:
        runs = runs[-change_points.MOST_VALUES :]
        remarks = (f"only the newest {len(runs)} runs were searched for change points",)
    if quantity.kind == "perplexity" and _repeats(runs):
        changes = _large([Change(at) for at in _changes(runs)], runs, quantity)
        return changes, True, (*remarks, "repeats to the last digit, so no test is needed")
    places = [run.order for run in runs]
    blocks = [_block(run, quantity) for run in runs]
    if change_points.attainable(places, blocks) > ALPHA:
        return (), False, (f"too few for a test: {counted(len(runs), 'run')}",)
    found = change_points.change_points(_comparable(runs, quantity), places, blocks)
    return _large(found, runs, quantity), True, remarks


def _block(run: Run, quantity: Quantity) -> int:
    """Return the block that runs are compared within: the seed where values depend on it, else 0."""
    return run.record.seed if quantity.kind in ("perplexity", "accuracy") else 0


def _comparable(runs: Sequence[Run], quantity: Quantity) -> list[float]:
    """Return values less the median of their block, as logarithms where ratios count."""
    logs = quantity.kind != "accuracy"
    values = [(_block(run, quantity), math.log(run.value) if logs else run.value) for run in runs]
    blocks = grouped(values, lambda pair: pair[0])
    centres = {block: statistics.median(value for _, value in several) for block, several in blocks.items()}
    return [value - centres[block] for block, value in values]


# ------------------------------------------------------------------------------------- effect size
@dataclass(frozen=True)
class _Levels:
    """The levels of both sides of a candidate, over the seeds that both have, and a run of each side."""

    before: float
    after: float
    ends: tuple[Run, Run]


def _large(splits: Sequence[Change], runs: Sequence[Run], quantity: Quantity) -> list[LevelChange]:
    """Return the candidates that move the level enough; the smallest is dropped first, and levels redone."""
    left = list(splits)
    while left:
        levels = [_levels(place, left, runs, quantity) for place in range(len(left))]
        sizes = [_size(each, quantity) for each in levels]
        smallest = min(range(len(left)), key=sizes.__getitem__)
        if sizes[smallest] > 1:
            return [
                LevelChange(runs[c.at - 1].order, runs[c.at].order, each.before, each.after, c.p_value)
                for c, each in zip(left, levels, strict=True)
                if each is not None
            ]
        del left[smallest]
    return []


def _levels(place: int, splits: Sequence[Change], runs: Sequence[Run], quantity: Quantity) -> _Levels | None:
    """Average, over the seeds of both sides, the medians since the candidate before and up to the next one.

    So commits that ran another number of seeds are no change. None where the sides share no seed.
    """
    start = splits[place - 1].at if place else 0
    end = splits[place + 1].at if place + 1 < len(splits) else len(runs)
    at = splits[place].at
    sides = [grouped(part, lambda run: _block(run, quantity)) for part in (runs[start:at], runs[at:end])]
    both = [block for block in sides[0] if block in sides[1]]
    if not both:
        return None
    levels = [
        statistics.fmean(statistics.median(run.value for run in side[block]) for block in both)
        for side in sides
    ]
    return _Levels(levels[0], levels[1], (sides[0][both[0]][0], sides[1][both[0]][0]))


def _size(levels: _Levels | None, quantity: Quantity) -> float:
    """Return a change in units of the least one that counts."""
    if levels is None:
        return 0.0
    first, second = levels.before, levels.after
    if quantity.kind == "accuracy":
        tasks = [task(run.record, quantity) for run in levels.ends]
        errors = math.hypot(*(binomial_stderr(found) for found in tasks if found))
        return abs(second - first) / (ERRORS * errors) if errors else math.inf * (second != first)
    least = LEAST_PERPLEXITY_CHANGE if quantity.kind == "perplexity" else LEAST_SPEED_CHANGE
    return abs(second / first - 1) / least


# --------------------------------------------------------------------------------- nothing is random
def _repeats(runs: Sequence[Run]) -> bool:
    """Return whether most runs equal the run of their seed at the commit before.

    Continuous noise makes equal values with probability zero.
    """
    pairs = _neighbours(runs)
    equal = sum(one.value == other.value for one, other in pairs)
    return bool(equal) and equal >= REPEATING * len(pairs)


def _changes(runs: Sequence[Run]) -> list[int]:
    """Return the first run of each commit at which a seed has another value than before."""
    changed = {other.order for one, other in _neighbours(runs) if one.value != other.value}
    return [
        at for at in range(1, len(runs)) if runs[at].order != runs[at - 1].order and runs[at].order in changed
    ]


def _neighbours(runs: Sequence[Run]) -> list[tuple[Run, Run]]:
    """Return successive runs of one seed that are of two commits."""
    seeds = grouped(runs, lambda run: run.record.seed).values()
    return [pair for several in seeds for pair in pairwise(several) if pair[0].order != pair[1].order]
