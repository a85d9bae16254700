"""Compare the records of two revisions, cell by cell, with a verdict for each.

`pairing.py` decides which runs are compared; the rules are those of `memory.py`, `speed.py` and `quality.py`.
Nothing here reads the command line or writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from harness.record import Memory, Quality, Record
from harness.tables.compare import memory as compare_memory
from harness.tables.compare import quality as compare_quality
from harness.tables.compare import speed as compare_speed
from harness.tables.compare.comparison import STATUS, Cell, Comparison, Difference, Verdict, not_comparable
from harness.tables.compare.pairing import Loaded, Pair, Side, differences, pair, same_conditions
from harness.tables.compare.quality import Answers, Judged
from harness.tables.format import plain
from harness.tables.statistics import holm

#: Suite, row, runs and quantity of a cell, its verdict with the cause, and fields that differ. Answers to a
#: task get their verdict once the p values of all others are known.
_Open = tuple[tuple[str, str, str, str], Judged | Answers, tuple[Difference, ...]]
UNMEASURED: Judged = ("x", "not comparable: not measured by the candidate")


def compare(base: Side, candidate: Side, controls: Mapping[str, str] | None = None) -> Comparison:
    """Return all verdicts; `controls` maps each suite to the label of its control row."""
    pairs = pair(base.records, candidate.records)
    found = [item for each in pairs for item in _run(each)]
    speed = compare_speed.judge(pairs, controls or {})
    skipped = [f"base: {note}" for note in base.skipped]
    skipped += [f"candidate: {note}" for note in candidate.skipped]
    return Comparison((*_closed(found), *speed), tuple(skipped))


def _closed(found: Sequence[_Open]) -> Iterator[Cell]:
    """Judge answers to tasks: p values are adjusted over all tasks and runs of the comparison."""
    adjusted = iter(holm([judged.p_value for _, judged, _ in found if isinstance(judged, Answers)]))
    for names, judged, fields in found:
        verdict, cause = judged.judge(next(adjusted)) if isinstance(judged, Answers) else judged
        yield Cell(*names, verdict, cause, fields)


def _run(each: Pair) -> Iterator[_Open]:
    """Yield the cells of one run, all but throughput, which is judged by row."""
    some = each.some
    runs = f"seed {some.seed}" + (f", repeat {some.repeat}" if some.repeat else "")

    def cell(quantity: str, judged: Judged | Answers, fields: tuple[Difference, ...] = ()) -> _Open:
        return (some.suite, some.label, runs, quantity), judged, fields

    if each.base is None or each.candidate is None:
        side: Verdict = "new" if each.base is None else "missing"
        other = "base" if each.base is None else "candidate"
        yield cell("run", (side, f"no record of the {other} (here: {some.outcome.status})"))
        return
    base, candidate = each.base.record, each.candidate.record
    alike = base.seed == candidate.seed and same_conditions(base, candidate)
    fields = () if alike else differences(base, candidate, "memory")
    if base.config_id != candidate.config_id:
        yield cell("run", ("x", not_comparable(fields)), fields)
        return
    verdict, cause = _status(base, candidate)
    if verdict == "regression" and fields:
        yield cell(STATUS, ("x", f"{cause}; {not_comparable(fields)}"), fields)
    else:
        yield cell(STATUS, (verdict, cause))
    if base.outcome.status == candidate.outcome.status == "ok":
        by_kind = {"memory": fields}
        for quantity, kind, judged in _quantities(each.base, each.candidate):
            if kind not in by_kind:
                by_kind[kind] = () if alike else differences(base, candidate, kind)
            fields = by_kind[kind]
            yield cell(quantity, ("x", not_comparable(fields)) if fields else judged, fields)


def _status(base: Record, candidate: Record) -> tuple[Verdict, str]:
    before, after = base.outcome.status, candidate.outcome.status
    if before == after:
        return ("ok" if after == "ok" else "reported"), f"{after}, as before"
    where = f" in {candidate.outcome.phase}" if candidate.outcome.phase else ""
    why = f"{where}: {plain(candidate.outcome.message, 160)}" if candidate.outcome.message else where
    cause = f"{before} -> {after}" + (why if after != "ok" else "")
    if before == "ok":
        return "regression", cause
    return ("improvement" if after == "ok" else "reported"), cause


def _quantities(base: Loaded, candidate: Loaded) -> Iterator[tuple[str, str, Judged | Answers]]:
    """Yield each quantity of the base with its kind of measurement and the result of its rule."""
    before, after = base.record, candidate.record
    if before.memory and before.memory.train:
        yield "peak memory", "memory", _memory(before.memory, after.memory)
    own, other = before.quality or Quality(), after.quality or Quality()
    for name, scored in own.perplexity.items():
        judged: Judged | Answers = UNMEASURED
        if name in other.perplexity:
            judged = compare_quality.perplexity(name, (base, scored), (candidate, other.perplexity[name]))
        yield f"perplexity {name}", "perplexity", judged
    for name, accuracy in own.tasks.items():
        judged = UNMEASURED
        if name in other.tasks:
            judged = compare_quality.answers(name, (base, accuracy), (candidate, other.tasks[name]))
        yield f"accuracy {name}", "accuracy", judged


def _memory(base: Memory, candidate: Memory | None) -> Judged:
    before, after = base.train, candidate.train if candidate else None
    if before is None or after is None:
        return UNMEASURED
    peaks = before.peak_allocated_bytes, after.peak_allocated_bytes
    return compare_memory.judge(base.meter, *peaks), compare_memory.cause(*peaks, before, after)
