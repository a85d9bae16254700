"""Compare the records of two revisions, cell by cell, with a verdict for each.

`pairing.py` decides which runs are compared; the rules are those of `memory.py`, `speed.py` and `quality.py`.
Nothing here reads the command line or writes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from harness.record import Record
from harness.tables.compare import memory as compare_memory
from harness.tables.compare import quality as compare_quality
from harness.tables.compare import speed as compare_speed
from harness.tables.compare.comparison import STATUS, Cell, Comparison, Difference, Verdict, not_comparable
from harness.tables.compare.pairing import Loaded, Pair, Side, differences, pair
from harness.tables.compare.quality import Answers
from harness.tables.compare.statistics import holm
from harness.tables.format import plain


@dataclass(frozen=True)
class Open:
    """A cell of a task whose verdict waits for the p values of all others."""

    cell: Cell
    answers: Answers


def compare(base: Side, candidate: Side, controls: Mapping[str, str] | None = None) -> Comparison:
    """Return all verdicts; `controls` maps each suite to the label of its control row."""
    pairs = pair(base.records, candidate.records)
    found = [item for each in pairs for item in _run(each)]
    speed = compare_speed.judge(compare_speed.rows(pairs), controls or {})
    skipped = [f"base: {note}" for note in base.skipped]
    skipped += [f"candidate: {note}" for note in candidate.skipped]
    return Comparison((*_closed(found), *speed), tuple(skipped))


def _closed(found: list[Cell | Open]) -> list[Cell]:
    """Decide open cells: p values are adjusted over all tasks and runs of the comparison."""
    waiting = iter(holm([item.answers.p_value for item in found if isinstance(item, Open)]))
    cells = []
    for item in found:
        if isinstance(item, Open):
            verdict, cause = item.answers.judge(next(waiting))
            item = Cell.of(*_place(item.cell), item.cell.quantity, verdict, cause)
        cells.append(item)
    return cells


def _place(cell: Cell) -> tuple[str, str, str]:
    return cell.suite, cell.row, cell.runs


def _run(each: Pair) -> Iterator[Cell | Open]:
    """Yield the cells of one run, all but throughput, which is judged by row."""
    some = each.some
    place = some.suite, some.label, f"seed {some.seed}" + (f", repeat {some.repeat}" if some.repeat else "")

    def cell(quantity: str, verdict: Verdict, cause: str, fields: tuple[Difference, ...] = ()) -> Cell:
        return Cell.of(*place, quantity, verdict, cause, fields)

    if each.base is None or each.candidate is None:
        side: Verdict = "new" if each.base is None else "missing"
        other = "base" if each.base is None else "candidate"
        yield cell("run", side, f"no record of the {other} (here: {some.outcome.status})")
        return
    base, candidate = each.base.record, each.candidate.record
    if base.config_id != candidate.config_id:
        fields = differences(base, candidate, "memory")
        yield cell("run", "x", not_comparable(fields), fields)
        return
    fields = differences(base, candidate, "memory")
    verdict, cause = _status(base, candidate)
    if verdict == "regression" and fields:
        yield cell(STATUS, "x", f"{cause}; {not_comparable(fields)}", fields)
    else:
        yield cell(STATUS, verdict, cause)
    if base.outcome.status == candidate.outcome.status == "ok":
        for quantity, kind, judged in _quantities(each.base, each.candidate):
            fields = differences(base, candidate, kind)
            if fields:
                yield cell(quantity, "x", not_comparable(fields), fields)
            elif isinstance(judged, Answers):
                yield Open(cell(quantity, "ok", ""), judged)
            else:
                yield cell(quantity, *judged)


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


def _quantities(
    base: Loaded, candidate: Loaded
) -> Iterator[tuple[str, str, compare_quality.Judged | Answers]]:
    """Yield each quantity with its kind of measurement and the result of its rule."""
    before, after = base.record, candidate.record
    if before.memory and before.memory.train:
        yield "peak memory", "memory", _memory(before, after)
    if before.quality is None:
        return
    scored = after.quality.perplexity if after.quality else {}
    for name, perplexity in before.quality.perplexity.items():
        judged: compare_quality.Judged | Answers = ("x", "not comparable: not measured by the candidate")
        if name in scored:
            judged = compare_quality.perplexity(name, (base, perplexity), (candidate, scored[name]))
        yield f"perplexity {name}", "perplexity", judged
    tasks = after.quality.tasks if after.quality else {}
    for name, accuracy in before.quality.tasks.items():
        judged = ("x", "not comparable: not measured by the candidate")
        if name in tasks:
            judged = compare_quality.answers(name, (base, accuracy), (candidate, tasks[name]))
        yield f"accuracy {name}", "accuracy", judged


def _memory(base: Record, candidate: Record) -> compare_quality.Judged:
    assert base.memory is not None
    assert base.memory.train is not None
    if candidate.memory is None or candidate.memory.train is None:
        return "x", "not comparable: not measured by the candidate"
    before, after = base.memory.train, candidate.memory.train
    peaks = before.peak_allocated_bytes, after.peak_allocated_bytes
    parts = compare_memory.components(before), compare_memory.components(after)
    return compare_memory.judge(base.memory.meter, *peaks), compare_memory.cause(*peaks, *parts)
