"""Attribute a change of speed to the code or the machine, by interleaved runs or by a control row.

Between days one machine was seen to move by -27 … +5 %, all methods alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from harness.tables.aggregate import agree
from harness.tables.format import plain
from harness.tables.history.commits import started
from harness.tables.history.divergence import LEAST_SIDE
from harness.tables.history.exact_steps import LevelChange
from harness.tables.history.segments import Run, Segment
from harness.tables.statistics import LEAST_SPEED_CHANGE, interleaved

DOUBT = "may be machine noise"


def judge(
    changes: Sequence[LevelChange],
    place: int,
    segment: Segment,
    controls: Sequence[Segment],
    label: str | None,
) -> tuple[str, bool]:
    """Return a remark on one of the change points of a segment, and whether it may be machine noise.

    `label` is the label of the control row.
    """
    change = changes[place]
    if _alternated(segment.runs, change):
        return "runs were interleaved", False
    if label is None:
        return f"{DOUBT}: runs were not interleaved, and the suite has no control row", True
    label = plain(label, 80)
    if any(run.record.label == label for run in segment.runs):
        return f"{DOUBT}: this is the control row", True
    start = changes[place - 1].second if place else segment.runs[0].order
    end = changes[place + 1].first if place + 1 < len(changes) else segment.runs[-1].order
    sides = _sides(segment, controls, (start, change.first), (change.second, end))
    if min(map(len, sides)) < LEAST_SIDE:
        return f"{DOUBT}: too few runs of the control row {label} there", True
    ratio = statistics.median(sides[1]) / statistics.median(sides[0])
    moved = f"the control row {label} moved by {100 * (ratio - 1):+.1f} %"
    if abs(ratio - 1) > LEAST_SPEED_CHANGE:
        return f"{DOUBT}: {moved} there, too", True
    return f"{moved} there, within noise", False


def _alternated(runs: Sequence[Run], change: LevelChange) -> bool:
    """Return whether the runs of the two commits were interleaved, at least three runs of each.

    Fewer could be two days: A A B B has no side three times in a row.
    """
    both = [run for run in runs if run.order in (change.first, change.second)]
    turns = [(when, run.order == change.second) for run in both if (when := started(run.record))]
    sides = [side for _, side in sorted(turns, key=lambda turn: turn[0])]
    enough = min(sides.count(True), sides.count(False)) >= LEAST_SIDE
    return enough and len(turns) == len(both) and interleaved(sides)


def _sides(
    segment: Segment, controls: Sequence[Segment], before: tuple[int, int], after: tuple[int, int]
) -> tuple[list[float], list[float]]:
    """Return the control's values between the commits of the two sides, in the segment's environment."""
    for control in controls:
        if control.quantity == segment.quantity and agree(control.known, segment.known):
            first, second = (
                [run.value for run in control.runs if start <= run.order <= end]
                for start, end in (before, after)
            )
            if first and second:
                return first, second
    return [], []
