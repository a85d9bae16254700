"""Find change points that need no test: of bytes and outcomes, which are repeatable, and of lost values.

Compare runs of one seed: ranks that depend on values make bytes depend on the seed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.record import Record
from harness.tables.aggregate import grouped
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


def memory(runs: Sequence[Run], quantity: Quantity) -> list[LevelChange]:
    """Return the change points of a peak or of one of its components.

    Where a meter counts bytes any change counts, else one beyond the allocator's allowance. The reference is
    the first commit of a level, so that small changes cannot accumulate unseen.
    """
    found: list[LevelChange] = []
    reference: dict[int, Run] = {}
    last = -1
    for order, here in grouped(runs, lambda run: run.order).items():
        moved = _moved(reference, here)
        if moved is not None:
            before, after = moved
            cause = "" if quantity.part else _cause(before.record, after.record)
            remark = "" if before.record.seed == after.record.seed else "other seeds"
            found.append(LevelChange(last, order, before.value, after.value, cause=cause, remark=remark))
            reference = {}
        for run in here:
            reference.setdefault(run.record.seed, run)
        last = order
    return found


def _moved(reference: Mapping[int, Run], here: Sequence[Run]) -> tuple[Run, Run] | None:
    """Return the runs of one seed that moved the most; a value that a repeat still has did not move.

    Where no seed is shared, compare any two runs if the seed makes no difference on either side.
    """
    seeds = grouped(here, lambda run: run.record.seed)
    if reference and not reference.keys() & seeds.keys():
        before, after = next(iter(reference.values())), here[0]
        seedless = len({run.value for run in reference.values()}) == len({run.value for run in here}) == 1
        return (before, after) if seedless and _differs(before, after) else None
    pairs = [
        (before, seeds[seed][0])
        for seed, before in reference.items()
        if seed in seeds and all(_differs(before, run) for run in seeds[seed])
    ]
    return max(pairs, key=lambda pair: abs(pair[1].value - pair[0].value), default=None)


def _differs(before: Run, after: Run) -> bool:
    meter = before.record.memory.meter if before.record.memory else ""
    return compare_memory.judge(meter, int(before.value), int(after.value)) != "ok"


def _cause(before: Record, after: Record) -> str:
    """Name the components that moved a peak."""
    old, new = (item.memory.train if item.memory else None for item in (before, after))
    if old is None or new is None:
        return ""
    return compare_memory.cause(old.peak_allocated_bytes, new.peak_allocated_bytes, old, new)


def status(runs: Sequence[Run]) -> list[LevelChange]:
    """Find where the share of successful runs changed, compared within seeds and repeats."""
    found = []
    for first, before, after in turned(runs, _succeeded):
        shares = _share(before, _succeeded), _share(after, _succeeded)
        worse = shares[1] < shares[0]
        failed = next(run for run in (after if worse else before) if not _succeeded(run))
        cause = f"{'' if worse else 'was '}{_outcome(failed.record)}"
        found.append(LevelChange(first, after[0].order, *shares, cause=plain(cause, CAUSE_LENGTH)))
    return found


def _succeeded(run: Run) -> bool:
    return bool(run.value)


def _outcome(record: Record) -> str:
    """Write how a run ended: `oom in train: message`."""
    outcome = record.outcome
    where = f" in {outcome.phase}" if outcome.phase else ""
    return f"{outcome.status}{where}{f': {outcome.message}' if outcome.message else ''}"


def lost(runs: Sequence[Run], without: Sequence[Run], quantity: Quantity) -> list[LevelChange]:
    """Find where runs lose a usable value, or have one again; `without` are the runs that have none."""

    def good(run: Run) -> bool:
        return quantity.usable(run.value)

    found = []
    for first, before, after in turned(sorted((*runs, *without), key=lambda run: run.order), good):
        worse = _share(after, good) < _share(before, good)
        usable, gone = (before, after) if worse else (after, before)
        level = statistics.median(run.value for run in usable if good(run))
        none = next(run.value for run in gone if not good(run))
        count = sum(not good(run) for run in gone)
        cause = f"{'' if worse else 'was '}no finite value in {count} of {len(gone)} runs"
        sides = (level, none) if worse else (none, level)
        found.append(LevelChange(first, after[0].order, *sides, cause=cause))
    return found


def turned(runs: Iterable[Run], good: Callable[[Run], bool]) -> Iterator[tuple[int, list[Run], list[Run]]]:
    """Yield commits whose share of good runs differs from that of the last runs of their seeds and repeats.

    Each is (place of the newest commit before with one of the runs that turned, runs before, runs after).
    """
    known: dict[tuple[int, int], list[Run]] = {}
    for here in grouped(runs, lambda run: run.order).values():
        now = grouped(here, lambda run: (run.record.seed, run.record.repeat))
        both = [key for key in now if key in known]
        other = [key for key in both if _share(known[key], good) != _share(now[key], good)]
        before, after = ([run for key in both for run in side[key]] for side in (known, now))
        if other and _share(before, good) != _share(after, good):
            yield max(known[key][0].order for key in other), before, after
        known |= now


def _share(runs: Sequence[Run], good: Callable[[Run], bool]) -> float:
    return sum(map(good, runs)) / len(runs)


def disagreements(
    runs: Sequence[Run], shown: Callable[[float], str], commit: Callable[[int], str]
) -> tuple[str, ...]:
    """Write at most three lines on commits whose runs of one seed differ beyond their meter's noise."""
    found = []
    for (order, seed), several in grouped(runs, lambda run: (run.order, run.record.seed)).items():
        same = sorted(several, key=lambda run: run.value)
        if _differs(same[0], same[-1]):
            low, high = (shown(run.value) for run in (same[0], same[-1]))
            if low == high:
                low, high = f"{same[0].value:,.0f}", f"{same[-1].value:,.0f} bytes"
            found.append(f"runs of {commit(order)} disagree (seed {seed}): {low} to {high}")
    return (*found[:3], *([f"{len(found) - 3} more such disagreements"] if len(found) > 3 else []))
