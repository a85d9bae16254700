"""Published values compared with ours: a report for each paper, and the summary of all."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator

from harness.errors import UserError
from harness.tables.format import Column, Table, plain
from harness.tables.papers.judge import VERDICTS, Judged, judge
from harness.tables.papers.lookup import Sources, command
from harness.tables.papers.schema import Paper
from harness.tables.papers.table import conditions, shown, tables_of
from harness.tables.report.build import Report

READING = (
    "ours is calculated from formulas and real modules without weights, predicted by simulation, measured by "
    "a run, or printed elsewhere; ratio: ours over published",
    "verdicts rest on the tolerance of each table; same order: beyond it by no more than the table's factor, "
    "and the column ordered alike",
    "reproduced and same order rest on a run where ours is measured, on a simulation where it is predicted",
    "arithmetic checked says that a value follows from others or from shapes, not that a run was repeated",
)


# ------------------------------------------------------------------------------------------- reports
def build(name: str, paper: Paper, sources: Sources, only: str | None = None) -> Report:
    """Build the report of a paper or of one of its tables; UserError for an unknown table."""
    wanted = [table.id for table in paper.tables] if only is None else [_table(paper, only)]
    judged = judge(name, paper, sources)
    by_table = {table: [item for item in judged if item.cell.table.id == table] for table in wanted}
    tables = [_summary("Verdicts by table", by_table)] if only is None else []
    tables += [table for own in by_table.values() for table in tables_of(own, sources)]
    source = paper.paper
    caption = [f"read: {source.read}", f"code: {source.code or 'none known'}", *READING]
    missing = [f"Not transcribed: {text}" for text in paper.missing]
    return Report(
        title=f"{name}: published values and ours",
        question=f"{source.title}, arXiv {source.arxiv}",
        tables=tuple(tables),
        caption=tuple(plain(text) for text in caption),
        notes=tuple(plain(text) for text in (*paper.notes, *(missing if only is None else ()))),
        lines=tuple(_lines(item for own in by_table.values() for item in own)),
    )


def summary(everything: dict[str, list[Judged]]) -> Report:
    """Build the summary: the number of each verdict by paper, one cell for each transcribed row."""
    table = _summary("Verdicts by paper", everything)
    return Report(
        title="Published values and ours",
        question="Which published values hold, by which check, and what would fill the others?",
        tables=(table,),
        caption=READING,
        notes=("One cell is one transcribed row; further values of a row are in the papers' own pages.",),
        lines=tuple(_lines(item for judged in everything.values() for item in judged)),
    )


def _table(paper: Paper, wanted: str) -> str:
    """Return the table that is meant: `Table 6b`, `table 6 (b)` or `6b`; UserError unless it is one."""
    known = [table.id for table in paper.tables]
    key = _key(wanted)
    exact = [name for name in known if _key(name) == key]
    near = exact or [name for name in known if re.match(re.escape(key) + r"(?![0-9])", _key(name))]
    if not key or len(near) != 1:
        problem = f"no table {wanted[:60]!r}" if len(near) < 2 else f"{wanted[:60]!r} is not one table"
        raise UserError(f"--table: {problem}; known: {', '.join(near or known)}")
    return near[0]


def _key(table: str) -> str:
    """Return what tells a table apart, without the word, spaces and brackets."""
    return re.sub(r"[^a-z0-9]|table", "", table.lower())


def _summary(title: str, groups: dict[str, list[Judged]]) -> Table:
    """Count primary values by verdict, and their sum."""
    counts = {
        name: Counter(item.verdict for item in items if item.cell.primary) for name, items in groups.items()
    }
    counts["all"] = sum(counts.values(), Counter())
    used = [verdict for verdict in VERDICTS if counts["all"][verdict]]
    columns = [Column(name, tuple(str(count[name]) for count in counts.values())) for name in used]
    total = Column("cells", tuple(str(count.total()) for count in counts.values()))
    return Table(title, (Column("", tuple(counts), numeric=False),), (total, *columns))


def _lines(judged: Iterable[Judged]) -> Iterator[dict[str, object]]:
    """Yield one line per printed value, with all that is known of it."""
    for item in judged:
        cell, tolerance = item.cell, item.cell.tolerance
        words = command(cell.answer.selectors) if item.ours is None else None
        yield {
            "paper": cell.paper,
            "table": cell.table.id,
            "row": "; ".join(f"{key}={shown(value)}" for key, value in cell.keys.items()),
            "quantity": cell.quantity,
            "primary": cell.primary,
            "published": shown(cell.published),
            "unit": cell.unit,
            "ours": None if item.ours is None else item.ours.value,
            "ratio": item.ratio,
            "ours_is": item.ours.by if item.ours else None,
            "how": item.ours.how if item.ours else None,
            "verdict": item.verdict,
            "why": cell.answer.why,
            "conditions": conditions(item),
            "obtained": cell.obtained,
            "confidence": cell.table.confidence,
            "source": cell.table.source,
            "tolerance_relative": tolerance.relative if tolerance else None,
            "tolerance_absolute": tolerance.absolute if tolerance else None,
            "command": shlex.join(words) if words else None,
        }
