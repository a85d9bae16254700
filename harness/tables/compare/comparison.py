"""The parts of a comparison: cells with a verdict and its cause; no rule and no rendering."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

from harness.errors import counted
from harness.tables.aggregate import grouped
from harness.tables.format import plain

#: From the worst: `regression` fails the gate; `withheld` is inconclusive for lack of evidence; `reported` is
#: informational by rule; `x` is not comparable, `missing` has no candidate, `new` no base.
Verdict = Literal["regression", "improvement", "withheld", "reported", "x", "missing", "new", "ok"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
NAME_LENGTH, CAUSE_LENGTH = 80, 400
#: The texts of a cell, and their most characters.
_LIMITS = dict.fromkeys(("suite", "row", "runs", "quantity"), NAME_LENGTH) | {"cause": CAUSE_LENGTH}
#: Fields that a cause names.
MOST_FIELDS = 4
#: Verdicts as people read them; JSON and JUnit keep the tokens.
LABELS: dict[Verdict, str] = {"x": "not comparable", "reported": "informational", "withheld": "inconclusive"}
#: The quantity of a run's outcome.
STATUS = "status"
#: Verdicts on the candidate.
JUDGED: tuple[Verdict, ...] = ("regression", "improvement", "ok")


@dataclass(frozen=True)
class Difference:
    """A field that is not the same on both sides, with its values as text."""

    field: str
    base: str
    candidate: str

    def __str__(self) -> str:
        return f"{self.field} {self.base} -> {self.candidate}"


@dataclass(frozen=True)
class Cell:
    """One quantity of one run, or of all runs of a row, with its verdict and its cause.

    Its texts become single lines of visible characters, whatever was given.
    """

    suite: str
    row: str
    runs: str
    quantity: str
    verdict: Verdict
    cause: str
    differences: tuple[Difference, ...] = ()

    def __post_init__(self) -> None:
        own = vars(self)
        for name, limit in _LIMITS.items():
            own[name] = plain(own[name], limit)

    @property
    def judged(self) -> bool:
        """Whether it is evidence on the candidate; a run that ended as before is none."""
        return self.verdict in JUDGED and (self.quantity, self.verdict) != (STATUS, "ok")


@dataclass(frozen=True)
class Comparison:
    """All cells, a line for each skipped file that is no valid record, and notes.

    `name` is the command that compared; with `whole`, where cells are few, those that are ok are shown, too.
    """

    cells: tuple[Cell, ...]
    skipped: tuple[str, ...] = ()
    name: str = "gate"
    notes: tuple[str, ...] = ()
    whole: bool = False

    @cached_property
    def by_verdict(self) -> dict[Verdict, list[Cell]]:
        """The cells by verdict, the worst first, without verdicts that no cell has."""
        found = grouped(self.cells, lambda cell: cell.verdict)
        return {verdict: found[verdict] for verdict in VERDICTS if verdict in found}

    @property
    def counts(self) -> dict[Verdict, int]:
        """The number of cells by verdict, without zeros."""
        return {verdict: len(cells) for verdict, cells in self.by_verdict.items()}

    @property
    def exit_code(self) -> int:
        """0; 1 with a regression; 2 when a cell is inconclusive or nothing could be judged."""
        counts = self.counts
        if "regression" in counts:
            return 1
        return 0 if any(cell.judged for cell in self.cells) and "withheld" not in counts else 2

    @property
    def summary(self) -> str:
        """One line with all counts."""
        counts = ", ".join(f"{number} {LABELS.get(each, each)}" for each, number in self.counts.items())
        skipped = f"; {counted(len(self.skipped), 'file')} skipped" if self.skipped else ""
        undecided = "inconclusive" if "withheld" in self.counts else "nothing could be judged"
        outcome = ("passed", "failed", undecided)[self.exit_code]
        return f"{self.name}: {outcome} ({counts or 'no cells'}{skipped})"


def listed(differences: Sequence[Difference]) -> str:
    """Write the first fields that differ, at most four, and count the others."""
    more = f" and {len(differences) - MOST_FIELDS} more" if len(differences) > MOST_FIELDS else ""
    return "; ".join(map(str, differences[:MOST_FIELDS])) + more


def not_comparable(differences: Sequence[Difference]) -> str:
    """Return the cause of an `x`: the fields that differ."""
    return f"not comparable: {listed(differences)}"
