"""Steps of quantities that vary from run to run: change points that are significant and large enough."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from harness.tables.aggregate import binomial_stderr
from harness.tables.compare.statistics import ALPHA, LEAST_PERPLEXITY_CHANGE, LEAST_SPEED_CHANGE
from harness.tables.history import change_points
from harness.tables.history.exact_steps import LevelChange
from harness.tables.history.quantities import task
from harness.tables.history.segments import Run
from harness.tables.history.series import Quantity

#: Standard errors of a difference that an accuracy must move by: the two-sided 95 % of a normal one.
ERRORS = 1.96
#: Share of the neighbouring runs of one seed that are equal to the last digit where nothing is random.
REPEATING = 0.5


@dataclass(frozen=True)
class Searched:
    """The steps of a series, whether it could be searched, and what must be said of it."""

    changes: tuple[LevelChange, ...]
    tested: bool = True
    remarks: tuple[str, ...] = ()


def search(runs: Sequence[Run], quantity: Quantity) -> Searched:
    """All steps of a noisy series, oldest first.

    Quality follows the seed, so its runs are compared within seeds; cost does not. A perplexity that repeats
    to the last digit is not noisy after all, and needs no test.
    """
    if len({run.order for run in runs}) < 2:
        return Searched((), tested=False)
    remarks: tuple[str, ...] = ()
    if len(runs) > change_points.MOST_VALUES:
        runs = runs[-change_points.MOST_VALUES :]
        remarks = (f"only the newest {len(runs)} runs were searched for steps",)
    blocks = [run.record.seed if quantity.kind in ("perplexity", "accuracy") else 0 for run in runs]
    if quantity.kind == "perplexity" and _repeats(runs):
        changes = _large([_Split(at, None) for at in _changes(runs)], runs, blocks, quantity)
        return Searched(tuple(changes), remarks=(*remarks, "repeats to the last digit, so no test is needed"))
    places = [run.order for run in runs]
    if change_points.attainable(places, blocks) > ALPHA:
        return Searched((), tested=False, remarks=(f"{len(runs)} runs are too few for a test",))
    found = change_points.change_points(_comparable(runs, blocks, quantity), places, blocks)
    splits = [_Split(change.at, change.p_value) for change in found]
    return Searched(tuple(_large(splits, runs, blocks, quantity)), remarks=remarks)


def _comparable(runs: Sequence[Run], blocks: Sequence[int], quantity: Quantity) -> list[float]:
    """Values without what their seed makes of them: logarithms where ratios count, less its median."""
    logs = quantity.kind != "accuracy"
    values = [math.log(run.value) if logs else run.value for run in runs]
    grouped: dict[int, list[float]] = {}
    for value, block in zip(values, blocks, strict=True):
        grouped.setdefault(block, []).append(value)
    centres = {block: statistics.median(several) for block, several in grouped.items()}
    return [value - centres[block] for value, block in zip(values, blocks, strict=True)]


# ------------------------------------------------------------------------------------- effect size
@dataclass(frozen=True)
class _Split:
    """A candidate in front of the run `at`."""

    at: int
    p_value: float | None


@dataclass(frozen=True)
class _Levels:
    """The levels of both sides of a candidate, over the seeds that both have, and a run of each side."""

    before: float
    after: float
    ends: tuple[Run, Run]


def _large(
    splits: Sequence[_Split], runs: Sequence[Run], blocks: Sequence[int], quantity: Quantity
) -> list[LevelChange]:
    """The candidates that move the level by enough; the smallest goes first, which moves its neighbours'."""
    kept = list(splits)
    while kept:
        levels = [_levels(place, kept, runs, blocks) for place in range(len(kept))]
        sizes = [_size(each, quantity) for each in levels]
        smallest = min(range(len(kept)), key=sizes.__getitem__)
        if sizes[smallest] > 1:
            pairs = zip(kept, levels, strict=True)
            return [_moved(split, runs, each) for split, each in pairs if each is not None]
        del kept[smallest]
    return []


def _levels(
    place: int, splits: Sequence[_Split], runs: Sequence[Run], blocks: Sequence[int]
) -> _Levels | None:
    """Each seed's medians since the candidate before and up to the next one, averaged over the seeds of both.

    So that seeds that commits ran in other numbers are no change. None where the sides share no seed.
    """
    start = splits[place - 1].at if place else 0
    end = splits[place + 1].at if place + 1 < len(splits) else len(runs)
    at = splits[place].at
    sides = [_grouped(runs[a:b], blocks[a:b]) for a, b in ((start, at), (at, end))]
    both = [block for block in sides[0] if block in sides[1]]
    if not both:
        return None
    levels = [
        statistics.fmean(statistics.median(run.value for run in side[block]) for block in both)
        for side in sides
    ]
    return _Levels(levels[0], levels[1], (sides[0][both[0]][0], sides[1][both[0]][0]))


def _grouped(runs: Sequence[Run], blocks: Sequence[int]) -> dict[int, list[Run]]:
    found: dict[int, list[Run]] = {}
    for run, block in zip(runs, blocks, strict=True):
        found.setdefault(block, []).append(run)
    return found


def _size(levels: _Levels | None, quantity: Quantity) -> float:
    """A change in units of the least one that counts."""
    if levels is None:
        return 0.0
    first, second = levels.before, levels.after
    if quantity.kind == "accuracy":
        errors = math.hypot(*(_stderr(run, quantity) for run in levels.ends))
        return abs(second - first) / (ERRORS * errors) if errors else math.inf * (second != first)
    least = LEAST_PERPLEXITY_CHANGE if quantity.kind == "perplexity" else LEAST_SPEED_CHANGE
    return abs(second / first - 1) / least


def _stderr(run: Run, quantity: Quantity) -> float:
    """The standard error of an accuracy over its documents."""
    found = task(run.record, quantity)
    return binomial_stderr(found) if found else 0.0


def _moved(split: _Split, runs: Sequence[Run], levels: _Levels) -> LevelChange:
    first, second = runs[split.at - 1].order, runs[split.at].order
    return LevelChange(first, second, levels.before, levels.after, split.p_value)


# --------------------------------------------------------------------------------- nothing is random
def _repeats(runs: Sequence[Run]) -> bool:
    """Whether most runs give the very value of the run of their seed at the commit before.

    Continuous noise makes equal values with probability zero.
    """
    pairs = [pair for several in _by_seed(runs).values() for pair in pairwise(several)]
    pairs = [(one, other) for one, other in pairs if one.order != other.order]
    equal = sum(one.value == other.value for one, other in pairs)
    return bool(equal) and equal >= REPEATING * len(pairs)


def _changes(runs: Sequence[Run]) -> list[int]:
    """The first run of each commit at which a seed has another value than before."""
    changed = {
        other.order
        for several in _by_seed(runs).values()
        for one, other in pairwise(several)
        if one.value != other.value and one.order != other.order
    }
    return [
        at for at in range(1, len(runs)) if runs[at].order != runs[at - 1].order and runs[at].order in changed
    ]


def _by_seed(runs: Sequence[Run]) -> Mapping[int, list[Run]]:
    return _grouped(runs, [run.record.seed for run in runs])
