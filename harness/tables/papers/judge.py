"""Judge each published cell: our value beside it, and a verdict.

A value that follows from other facts (a formula, an average, a stated setting) is `arithmetic checked`
where ours agrees. One that came from a run is `reproduced`, or `same order` where it is off by no more than
the factor that its table states while no two values of its column are ordered otherwise than ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from harness.errors import UserError
from harness.tables.papers import published
from harness.tables.papers.lookup import Ours, Sources
from harness.tables.papers.published import Cell
from harness.tables.papers.schema import Answer, Paper, Tolerance

Verdict = Literal[
    "reproduced",
    "same order",
    "arithmetic checked",
    "differs",
    "needs weights",
    "needs data",
    "needs device",
    "does not run as published",
]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
NEEDS: dict[str, Verdict] = {
    "weights": "needs weights",
    "data": "needs data",
    "device": "needs device",
}
#: Binary fractions of printed decimals may be off by this share.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Judged:
    """A published cell, our value and the verdict."""

    cell: Cell
    ours: Ours | None
    verdict: Verdict

    @property
    def number(self) -> float | None:
        """Return the published value as a number, None where it is none."""
        return _number(self.cell)

    @property
    def ratio(self) -> float | None:
        """Return ours over published, None where one is no number."""
        value = self.ours.value if self.ours else None
        if isinstance(value, (bool, str)) or value is None or not self.number:
            return None
        return value / self.number


def judge(name: str, paper: Paper, sources: Sources) -> list[Judged]:
    """Judge every printed value of a paper; UserError in one line for data that does not fit."""
    found = [(cell, sources.find(cell)) for cell in published.cells(name, paper)]
    columns: dict[tuple[str, ...], list[tuple[float, float]]] = {}
    for cell, ours in found:
        number = _number(cell)
        if ours is not None and number is not None and not isinstance(ours.value, (bool, str)):
            columns.setdefault(cell.column, []).append((number, ours.value))
    return [_judged(cell, ours, columns.get(cell.column, [])) for cell, ours in found]


def _judged(cell: Cell, ours: Ours | None, column: Sequence[tuple[float, float]]) -> Judged:
    arithmetic = cell.obtained in ("arithmetic", "stated") or (
        ours is not None and ours.by in ("calculated", "printed")
    )
    text = cell.published if isinstance(cell.published, str) else None
    number = _number(cell)
    try:
        found = verdict(
            cell.answer, text if number is None else number, ours, cell.tolerance, arithmetic, column
        )
    except UserError as error:
        raise UserError(f"{cell.where}: {error}") from error
    return Judged(cell, ours, found)


def _number(cell: Cell) -> float | None:
    value = cell.published if cell.answer.reads is None else cell.answer.reads
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


# ------------------------------------------------------------------------------------------ verdicts
def agrees(published: float, ours: float, tolerance: Tolerance) -> bool:
    """Return whether ours lies within the tolerance around the published value."""
    room = max(tolerance.absolute, tolerance.relative * abs(published))
    return abs(ours - published) <= room + ROUNDING * max(abs(published), abs(ours))


def same_order(pairs: Iterable[tuple[float, float]]) -> bool:
    """Return whether no two (published, ours) of a column are in opposite order.

    One alone has no order.
    """
    known = list(pairs)
    discordant = any((a - b) * (x - y) < 0 for a, x in known for b, y in known)
    return len(known) > 1 and not discordant


def within_factor(published: float, ours: float, factor: float) -> bool:
    """Return whether the larger of two values of one sign is at most `factor` times the smaller."""
    if published == 0 or ours == 0 or published * ours < 0:
        return published == ours
    return 1 / factor <= ours / published <= factor


def verdict(
    answer: Answer,
    published: float | str | None,
    ours: Ours | None,
    tolerance: Tolerance | None,
    arithmetic: bool,
    column: Sequence[tuple[float, float]] = (),
) -> Verdict:
    """Return the verdict on a cell; `column` holds every (published, ours) of its column, its own too."""
    if answer.does_not_run:
        return "does not run as published"
    if ours is None:
        if answer.needs is None:
            raise UserError("no value of ours, and nothing that names what is missing; add `needs`")
        return NEEDS[answer.needs]
    if isinstance(ours.value, bool):
        return "arithmetic checked" if ours.value else "differs"
    if isinstance(ours.value, str) or isinstance(published, str) or published is None:
        return "arithmetic checked" if ours.value == published else "differs"
    if not math.isfinite(ours.value):
        return "differs"
    if tolerance is None:
        raise UserError("two numbers and no tolerance; give the table one, with its reason")
    if agrees(published, ours.value, tolerance):
        return "arithmetic checked" if arithmetic else "reproduced"
    near = within_factor(published, ours.value, tolerance.factor) and same_order(column)
    return "same order" if near and not arithmetic else "differs"
