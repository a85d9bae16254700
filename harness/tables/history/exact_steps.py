"""Steps that need no test: of bytes and outcomes, which repeat with the code, and of values that are lost.

Values are compared between runs of one seed, since ranks that follow from values make bytes follow the seed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from harness.record import Record
from harness.tables.compare import memory as compare_memory
from harness.tables.format import plain
from harness.tables.history.segments import Run
from harness.tables.history.series import Quantity

CAUSE_LENGTH = 240


@dataclass(frozen=True)
class LevelChange:
    """A change between two commits: their places, the levels, the p value of a test, and the cause."""

    first: int
    second: int
    before: float
    after: float
    p_value: float | None = None
    cause: str = ""
    remark: str = ""


def by_commit(runs: Iterable[Run]) -> dict[int, list[Run]]:
    """Runs by the place of their commit, in order."""
    found: dict[int, list[Run]] = {}
    for run in runs:
        found.setdefault(run.order, []).append(run)
    return found


def memory(runs: Sequence[Run], quantity: Quantity) -> list[LevelChange]:
    """The steps of a peak or of one of its components.

    By a meter that counts bytes any change is a step, by an allocator one beyond its allowance. The reference
    is the first commit of a level, so that small changes cannot add up unseen.
    """
    found: list[LevelChange] = []
    reference: dict[int, Run] = {}
    last = -1
    for order, here in by_commit(runs).items():
        moved = _largest(reference, here)
        if moved is not None:
            before, after = moved
            cause = "" if quantity.part else _cause(before.record, after.record)
            found.append(LevelChange(last, order, before.value, after.value, cause=cause))
            reference = {}
        elif reference and not {run.record.seed for run in here} & set(reference):
            reference = _unseeded(reference, here, found, last, order, quantity)
        for run in here:
            reference.setdefault(run.record.seed, run)
        last = order
    return found


def _largest(reference: dict[int, Run], here: Sequence[Run]) -> tuple[Run, Run] | None:
    """The runs of one seed that moved the most; a value that a repeat still has did not move."""
    pairs = []
    for seed, before in reference.items():
        same = [run for run in here if run.record.seed == seed]
        if same and all(_differs(before, run) for run in same):
            pairs.append((before, same[0]))
    return max(pairs, key=lambda pair: abs(pair[1].value - pair[0].value), default=None)


def _unseeded(
    reference: dict[int, Run],
    here: Sequence[Run],
    found: list[LevelChange],
    last: int,
    order: int,
    quantity: Quantity,
) -> dict[int, Run]:
    """Compare commits that share no seed, where the seed is seen to make no difference on either side."""
    before, after = next(iter(reference.values())), here[0]
    seedless = len({run.value for run in reference.values()}) == len({run.value for run in here}) == 1
    if seedless and _differs(before, after):
        cause = "" if quantity.part else _cause(before.record, after.record)
        found.append(LevelChange(last, order, before.value, after.value, cause=cause, remark="other seeds"))
        return {}
    return reference


def _differs(before: Run, after: Run) -> bool:
    meter = before.record.memory.meter if before.record.memory else ""
    return compare_memory.judge(meter, int(before.value), int(after.value)) != "ok"


def _cause(before: Record, after: Record) -> str:
    """Which components moved a peak."""
    trains = [item.memory.train if item.memory else None for item in (before, after)]
    if trains[0] is None or trains[1] is None:
        return ""
    peaks = trains[0].peak_allocated_bytes, trains[1].peak_allocated_bytes
    return compare_memory.cause(*peaks, *(compare_memory.components(t) for t in trains if t is not None))


def status(runs: Sequence[Run]) -> list[LevelChange]:
    """Where the share of runs that end well changed, each compared with the last of its seed and repeat."""
    return [
        LevelChange(first, after[0].order, _share(before), _share(after), cause=_why(before, after))
        for first, before, after in turned(runs, lambda run: bool(run.value))
    ]


def lost(runs: Sequence[Run], without: Sequence[Run], quantity: Quantity) -> list[LevelChange]:
    """Where runs lose a value that can be used, or have one again; `without` are those that have none."""

    def good(run: Run) -> bool:
        return quantity.usable(run.value)

    found = []
    for first, before, after in turned(sorted((*runs, *without), key=lambda run: run.order), good):
        worse = _good(after, good) < _good(before, good)
        with_one, gone = (before, after) if worse else (after, before)
        level = statistics.median(run.value for run in with_one if good(run))
        none = next(run.value for run in gone if not good(run))
        count = sum(not good(run) for run in gone)
        cause = f"{'' if worse else 'was '}no finite value in {count} of {len(gone)} runs"
        sides = (level, none) if worse else (none, level)
        found.append(LevelChange(first, after[0].order, *sides, cause=cause))
    return found


def turned(runs: Iterable[Run], good: Callable[[Run], bool]) -> Iterator[tuple[int, list[Run], list[Run]]]:
    """Commits at which another share of the runs is good than of the last ones of their seeds and repeats.

    With the newest commit that had one of those that turned: in between nobody ran it.
    """
    known: dict[tuple[int, int], list[Run]] = {}
    for here in by_commit(runs).values():
        now: dict[tuple[int, int], list[Run]] = {}
        for run in here:
            now.setdefault((run.record.seed, run.record.repeat), []).append(run)
        both = [turn for turn in now if turn in known]
        other = [turn for turn in both if _good(known[turn], good) != _good(now[turn], good)]
        before, after = ([run for turn in both for run in side[turn]] for side in (known, now))
        if other and _good(before, good) != _good(after, good):
            yield max(known[turn][0].order for turn in other), before, after
        known |= now


def _good(runs: Sequence[Run], good: Callable[[Run], bool]) -> float:
    return sum(map(good, runs)) / len(runs)


def _share(runs: Sequence[Run]) -> float:
    return sum(run.value for run in runs) / len(runs)


def _why(before: Sequence[Run], after: Sequence[Run]) -> str:
    """How the first run that no longer ends well, or now does, ended."""
    failed = [run.record for run in (after if _share(after) < _share(before) else before) if not run.value]
    outcome = failed[0].outcome
    where = f" in {outcome.phase}" if outcome.phase else ""
    said = f": {outcome.message}" if outcome.message else ""
    tense = "" if _share(after) < _share(before) else "was "
    return plain(f"{tense}{outcome.status}{where}{said}", CAUSE_LENGTH)


def disagreements(
    runs: Sequence[Run], shown: Callable[[float], str], commit: Callable[[int], str]
) -> tuple[str, ...]:
    """At most three lines for commits whose runs of one seed differ by more than their meter explains."""
    found = []
    for order, here in by_commit(runs).items():
        for seed in dict.fromkeys(run.record.seed for run in here):
            same = sorted((run for run in here if run.record.seed == seed), key=lambda run: run.value)
            if _differs(same[0], same[-1]):
                low, high = (shown(run.value) for run in (same[0], same[-1]))
                if low == high:
                    low, high = f"{same[0].value:,.0f}", f"{same[-1].value:,.0f} bytes"
                found.append(f"runs of {commit(order)} disagree (seed {seed}): {low} to {high}")
    return (*found[:3], *([f"{len(found) - 3} more such disagreements"] if len(found) > 3 else []))
