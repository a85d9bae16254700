"""Judge each published cell: our value beside it, and a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.errors import UserError
from harness.tables.papers import published
from harness.tables.papers.lookup import Sources
from harness.tables.papers.published import Cell
from harness.tables.papers.schema import Paper
from harness.tables.papers.verdicts import Ours, Verdict, verdict


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
