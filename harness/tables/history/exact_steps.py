"""Find change points that need no test: of bytes and outcomes, which are repeatable, and of lost values.

Compare runs of one seed: ranks that depend on values make bytes depend on the seed.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from harness.errors import counted
from harness.record import Record
from harness.tables.aggregate import grouped
from harness.tables.compare import memory as compare_memory
from harness.tables.format import bytes_text, first, plain
from harness.tables.history.segments import Run
from harness.tables.history.series import Commit, Quantity

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
    if _constant(runs):
        return []
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


def _constant(runs: Sequence[Run]) -> bool:
    """Return whether all runs have one value, as most series of bytes and outcomes do."""
    return all(run.value == runs[0].value for run in runs)


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


def status(runs: Sequence[Run]) -> Iterator[LevelChange]:
    """Find where the share of successful runs changed, compared within seeds and repeats."""

    def levels(good: Sequence[Run], bad: Sequence[Run]) -> tuple[float, float]:
        return _share(good, _succeeded), _share(bad, _succeeded)

    def cause(bad: Sequence[Run]) -> str:
        outcome = next(run.record.outcome for run in bad if not _succeeded(run))
        where = f" in {outcome.phase}" if outcome.phase else ""
        return f"{outcome.status}{where}" + (f": {outcome.message}" if outcome.message else "")

    return iter(()) if _constant(runs) else turned(runs, _succeeded, levels, cause)


def _succeeded(run: Run) -> bool:
    return bool(run.value)


def lost(runs: Sequence[Run], without: Sequence[Run], quantity: Quantity) -> Iterator[LevelChange]:
    """Find where runs lose a usable value, or have one again; `without` are the runs that have none."""

    def usable(run: Run) -> bool:
        return quantity.usable(run.value)

    def levels(good: Sequence[Run], bad: Sequence[Run]) -> tuple[float, float]:
        level = statistics.median(run.value for run in good if usable(run))
        return level, next(run.value for run in bad if not usable(run))

    def cause(bad: Sequence[Run]) -> str:
        return f"no finite value in {sum(not usable(run) for run in bad)} of {counted(len(bad), 'run')}"

    if not without:
        return iter(())
    return turned(sorted((*runs, *without), key=lambda run: run.order), usable, levels, cause)


def turned(
    runs: Iterable[Run],
    good: Callable[[Run], bool],
    levels: Callable[[Sequence[Run], Sequence[Run]], tuple[float, float]],
    cause: Callable[[Sequence[Run]], str],
) -> Iterator[LevelChange]:
    """Yield a change where the share of good runs differs from that of the runs before.

    Runs are compared with the last ones of their seed and repeat, and the commit before is the
    newest with one of those that turned. `levels` returns the levels of the better side and of the worse
    side, `cause` describes the worse side.
    """
    known: dict[tuple[int, int], list[Run]] = {}
    for order, here in grouped(runs, lambda run: run.order).items():
        now = grouped(here, lambda run: (run.record.seed, run.record.repeat))
        both = [key for key in now if key in known]
        other = [key for key in both if _share(known[key], good) != _share(now[key], good)]
        before, after = ([run for key in both for run in side[key]] for side in (known, now))
        if other and _share(before, good) != _share(after, good):
            last = max(known[key][0].order for key in other)
            if _share(after, good) < _share(before, good):
                sides, why = levels(before, after), cause(after)
            else:
                sides, why = levels(after, before)[::-1], f"was {cause(before)}"
            yield LevelChange(last, order, *sides, cause=plain(why, CAUSE_LENGTH))
        known |= now


def _share(runs: Sequence[Run], good: Callable[[Run], bool]) -> float:
    return sum(map(good, runs)) / len(runs)


def disagreements(runs: Sequence[Run], commits: Sequence[Commit]) -> tuple[str, ...]:
    """Write at most three lines on commits whose runs of one seed differ beyond their meter's noise."""
    if _constant(runs):
        return ()
    found = []
    for (order, seed), several in grouped(runs, lambda run: (run.order, run.record.seed)).items():
        least, most = min(several, key=lambda run: run.value), max(several, key=lambda run: run.value)
        if _differs(least, most):
            low, high = bytes_text(least.value), bytes_text(most.value)
            if low == high:
                low, high = f"{least.value:,.0f}", f"{most.value:,.0f} bytes"
            found.append(f"runs of {commits[order].name} disagree (seed {seed}): {low} to {high}")
    return tuple(first(found, 3, "{} more such disagreements"))
