"""Steps of quantities that vary from run to run: change points that are significant and large enough."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from harness.tables.aggregate import binomial_stderr
from harness.tables.compare.statistics import ALPHA, LEAST_PERPLEXITY_CHANGE, LEAST_SPEED_CHANGE
from harness.tables.history import steps as history_steps
from harness.tables.history.exact import Moved, by_commit
from harness.tables.history.joining import Run
from harness.tables.history.series import Quantity

#: Standard errors of a difference that an accuracy must move by: the two-sided 95 % of a normal one.
ERRORS = 1.96
#: Share of the neighbouring runs of one seed that are equal to the last digit where nothing is random.
REPEATING = 0.5


@dataclass(frozen=True)
class Searched:
    """The steps of a series, whether it could be searched, and what must be said of it."""

    steps: tuple[Moved, ...]
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
    if len(runs) > history_steps.MOST_VALUES:
        runs = runs[-history_steps.MOST_VALUES :]
        remarks = (f"only the newest {len(runs)} runs were searched for steps",)
    blocks = [run.record.seed if quantity.kind in ("perplexity", "accuracy") else 0 for run in runs]
    if quantity.kind == "perplexity" and _repeats(runs):
        steps = _large([_Split(at, None) for at in _changes(runs)], runs, blocks, quantity)
        return Searched(tuple(steps), remarks=(*remarks, "repeats to the last digit, so no test is needed"))
    places = [run.order for run in runs]
    if history_steps.attainable(places, blocks) > ALPHA:
        return Searched((), tested=False, remarks=(f"{len(runs)} runs are too few for a test",))
    found = history_steps.change_points(_comparable(runs, blocks, quantity), places, blocks)
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


def _large(
    splits: Sequence[_Split], runs: Sequence[Run], blocks: Sequence[int], quantity: Quantity
) -> list[Moved]:
    """The candidates that move the level by enough; the smallest goes first, which moves its neighbours'."""
    kept = list(splits)
    while kept:
        sides = [_sides(place, kept, runs, blocks) for place in range(len(kept))]
        sizes = [_size(*side, quantity) for side in sides]
        smallest = min(range(len(kept)), key=sizes.__getitem__)
        if sizes[smallest] > 1:
            return [_moved(split, runs, *side, quantity) for split, side in zip(kept, sides, strict=True)]
        del kept[smallest]
    return []


def _sides(
    place: int, splits: Sequence[_Split], runs: Sequence[Run], blocks: Sequence[int]
) -> tuple[list[Run], list[Run]]:
    """The runs since the candidate before and up to the next one, of seeds that both sides have."""
    start = splits[place - 1].at if place else 0
    end = splits[place + 1].at if place + 1 < len(splits) else len(runs)
    at = splits[place].at
    both = set(blocks[start:at]) & set(blocks[at:end])
    sides = [[run for run, block in zip(runs[a:b], blocks[a:b], strict=True) if block in both or not both]
             for a, b in ((start, at), (at, end))]  # fmt: skip
    return sides[0], sides[1]


def _level(runs: Sequence[Run], quantity: Quantity) -> float:
    """The median: of runs where these are alike, else of the means over a commit's seeds."""
    if quantity.kind == "time":
        return statistics.median(run.value for run in runs)
    means = (statistics.fmean(run.value for run in here) for here in by_commit(runs).values())
    return statistics.median(means)


def _size(before: Sequence[Run], after: Sequence[Run], quantity: Quantity) -> float:
    """A change in units of the least one that counts."""
    first, second = _level(before, quantity), _level(after, quantity)
    if quantity.kind == "accuracy":
        errors = math.hypot(*(_stderr(side[0], quantity) for side in (before, after)))
        return abs(second - first) / (ERRORS * errors) if errors else math.inf * (second != first)
    least = LEAST_PERPLEXITY_CHANGE if quantity.kind == "perplexity" else LEAST_SPEED_CHANGE
    return abs(second / first - 1) / least


def _stderr(run: Run, quantity: Quantity) -> float:
    """The standard error of an accuracy over its documents."""
    tasks = run.record.quality.tasks.values() if run.record.quality else ()
    return max((binomial_stderr(task) for task in tasks if task.accuracy == run.value), default=0.0)


def _moved(
    split: _Split, runs: Sequence[Run], before: Sequence[Run], after: Sequence[Run], quantity: Quantity
) -> Moved:
    first, second = runs[split.at - 1].order, runs[split.at].order
    return Moved(first, second, _level(before, quantity), _level(after, quantity), split.p_value)


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
    found: dict[int, list[Run]] = {}
    for run in runs:
        found.setdefault(run.record.seed, []).append(run)
    return found
