"""Judge throughput: only interleaved runs on one machine beside a stable control row get a verdict.

Between days one machine moved by -27 … +5 %, all methods alike. So runs that were not interleaved are
informational and never fail.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from harness.errors import counted
from harness.record import Record
from harness.tables.compare.comparison import Cell, Difference, Verdict, not_comparable
from harness.tables.compare.pairing import Pair, differences, same_conditions
from harness.tables.statistics import LEAST_RUNS, Shift, interleaved, shift

QUANTITY = "throughput"


@dataclass(frozen=True)
class Row:
    """The finished runs of one configuration on both sides, in the order of the base's."""

    suite: str
    label: str
    base: tuple[Record, ...]
    candidate: tuple[Record, ...]

    @property
    def measured(self) -> Shift:
        """The shift of the row alone: of its simultaneous pairs from 1, else of its throughputs."""
        if not self.ratios:
            return shift(_speeds(self.base), _speeds(self.candidate))
        centre = statistics.median(self.ratios)
        return shift([1.0 + ratio - centre for ratio in self.ratios], self.ratios)

    @cached_property
    def ratios(self) -> list[float]:
        """Candidate over base of each simultaneous pair, whose updates were interleaved; else none.

        A pair has one seed and one repeat. The machine does the same to both, so ratios vary far less than
        throughputs do.
        """
        others = {(record.seed, record.repeat): record for record in self.candidate}
        found = [
            _speeds([other])[0] / _speeds([one])[0]
            for one in self.base
            if (other := others.get((one.seed, one.repeat))) and _simultaneous(one, other)
        ]
        return found if len(found) == len(self.base) == len(self.candidate) else []

    @cached_property
    def differences(self) -> tuple[Difference, ...]:
        """The fields of any run's environment that differ from the base's first run, without seeds."""
        first, *others = (*self.base, *self.candidate)
        unlike = (other for other in others if not same_conditions(first, other))
        found = (field for other in unlike for field in differences(first, other, "time"))
        return tuple(dict.fromkeys(field for field in found if field.field not in ("seed", "data", "model")))

    @property
    def doubt(self) -> str | None:
        """The reason why differing throughputs are inconclusive, None where they are not."""
        fewest = min(len(self.base), len(self.candidate))
        if self.differences:
            return f"another machine or day: {'; '.join(map(str, self.differences[:3]))}"
        sides = ((False, self.base), (True, self.candidate))
        starts = sorted((record.started_at or "", side) for side, records in sides for record in records)
        if not all(when for when, _ in starts) or not interleaved([side for _, side in starts]):
            return "another day or time: the runs of the two sides were not interleaved"
        few = f"{counted(fewest, 'run')} of a side, a verdict needs {LEAST_RUNS}"
        return few if fewest < LEAST_RUNS else None


def _simultaneous(*records: Record) -> bool:
    known = [record.environment.flags if record.environment else {} for record in records]
    return all(flags.get("in_turns") is True for flags in known)


def _speeds(records: Sequence[Record]) -> list[float]:
    return [record.time.tokens_per_s for record in records if record.time and record.time.tokens_per_s]


def judge(pairs: Sequence[Pair], controls: Mapping[str, str]) -> list[Cell]:
    """Return a cell for each row that has a throughput on both sides.

    `controls` maps each suite to the label of its control row.
    """
    sides: dict[tuple[str, str], tuple[list[Record], list[Record]]] = {}
    for pair in pairs:
        for place, item in enumerate((pair.base, pair.candidate)):
            if item and item.record.outcome.status == "ok" and _speeds([item.record]):
                key = item.record.suite, item.record.config_id
                sides.setdefault(key, ([], []))[place].append(item.record)
    found = [
        Row(suite, base[0].label, tuple(base), tuple(candidate))
        for (suite, _), (base, candidate) in sides.items()
        if base and candidate
    ]
    return [_judge(row, found, controls.get(row.suite)) for row in found]


def _judge(row: Row, found: Sequence[Row], control: str | None) -> Cell:
    protocols = [field for field in row.differences if field.field == "time protocol"]
    if protocols:
        return _cell(row, "x", not_comparable(protocols), tuple(protocols))
    controls = [other for other in found if (other.suite, other.label) == (row.suite, control)]
    moved, text = _moved(row, controls)
    if row.doubt is not None:
        return _cell(row, "reported", f"{text}; {row.doubt}", row.differences)
    if row.label == control:
        return _cell(row, "reported", f"{text}; the control row")
    unstable = _unstable(controls)
    # Beside a control that moved, a row that moved alike looks still.
    if not moved.certain and not (unstable and _in_pairs(row, controls)):
        why = "the runs of both sides overlap" if moved.large else f"within {100 * moved.threshold:.1f} %"
        return _cell(row, "ok", f"{text}, {why}")
    if unstable:
        return _cell(row, "withheld", f"{text}; {unstable}")
    return _cell(row, "regression" if moved.slower else "improvement", f"{text}, completely separated")


def _moved(row: Row, controls: Sequence[Row]) -> tuple[Shift, str]:
    """Return how a row moved, and a sentence on it: against the control's pairs where all were simultaneous.

    Then the control's ratios are noise alone, and the row's must lie beyond all of them.
    """
    if _in_pairs(row, controls):
        ratios = controls[0].ratios
        moved = shift(ratios, row.ratios)
        pairs = counted(len(ratios), "pair")
        return moved, f"{100 * (moved.ratio - 1):+.1f} % beside the control by medians of {pairs}"
    moved, runs = row.measured, f"{len(row.base)} and {counted(len(row.candidate), 'run')}"
    counts = counted(len(row.ratios), "pair") if row.ratios else runs
    return moved, f"{100 * (moved.ratio - 1):+.1f} % by medians of {counts}"


def _in_pairs(row: Row, controls: Sequence[Row]) -> bool:
    """Return whether a row is judged against the control: both ran in simultaneous pairs."""
    return len(controls) == 1 and row is not controls[0] and bool(controls[0].ratios and row.ratios)


def _unstable(control: Sequence[Row]) -> str | None:
    """Return why the control row is no evidence, or that it moved itself; None where it is stable."""
    if not control:
        return "no control row on both sides: name one by --control"
    if len(control) > 1:
        return f"{len(control)} rows are named {control[0].label} as the control is: name one by --control"
    if control[0].doubt is not None:
        return f"the control row {control[0].label}: {control[0].doubt}"
    moved = control[0].measured
    if moved.large:
        return f"the control row {control[0].label} moved, too: {100 * (moved.ratio - 1):+.1f} %"
    return None


def _cell(row: Row, verdict: Verdict, cause: str, fields: tuple[Difference, ...] = ()) -> Cell:
    return Cell(row.suite, row.label, "all runs", QUANTITY, verdict, cause, fields)
