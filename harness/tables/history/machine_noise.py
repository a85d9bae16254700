"""Whether a step of speed is the code's or the machine's: runs that took turns, or a control row, tell.

Between days one machine was seen to move by -27 … +5 %, all methods alike.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from harness.tables.aggregate import agree
from harness.tables.compare.statistics import LEAST_SPEED_CHANGE, interleaved
from harness.tables.format import plain
from harness.tables.history.change_points import LEAST_SIDE
from harness.tables.history.commits import started
from harness.tables.history.exact_steps import LevelChange
from harness.tables.history.segments import Run, Segment

DOUBT = "may be the machine"


@dataclass(frozen=True)
class Remark:
    """What is said of a step, and whether it may be the machine's."""

    text: str
    doubtful: bool


def judge(
    changes: Sequence[LevelChange],
    place: int,
    segment: Segment,
    controls: Sequence[Segment],
    label: str | None,
) -> Remark:
    """What speaks for and against one of the steps of a segment; `label` is the control row's."""
    change = changes[place]
    if _alternated(segment.runs, change):
        return Remark("runs took turns", doubtful=False)
    if label is None:
        return Remark(f"{DOUBT}: runs did not take turns, and the suite has no control row", doubtful=True)
    label = plain(label, 80)
    if any(run.record.label == label for run in segment.runs):
        return Remark(f"{DOUBT}: this is the control row", doubtful=True)
    start = changes[place - 1].second if place else segment.runs[0].order
    end = changes[place + 1].first if place + 1 < len(changes) else segment.runs[-1].order
    sides = _sides(segment, controls, (start, change.first), (change.second, end))
    if min(map(len, sides)) < LEAST_SIDE:
        return Remark(f"{DOUBT}: too few runs of the control row {label} there", doubtful=True)
    ratio = statistics.median(sides[1]) / statistics.median(sides[0])
    moved = f"the control row {label} moved by {100 * (ratio - 1):+.1f} %"
    if abs(ratio - 1) > LEAST_SPEED_CHANGE:
        return Remark(f"{DOUBT}: {moved} there, too", doubtful=True)
    return Remark(f"{moved} there, which is no step", doubtful=False)


def _alternated(runs: Sequence[Run], change: LevelChange) -> bool:
    """Whether the runs of the two commits took turns, often enough to tell a machine that changed in between.

    Two runs a side in a row are two days as well as two turns: A A B B has no side three times in a row.
    """
    turns = [
        (started(run.record), run.order == change.second)
        for run in runs
        if run.order in (change.first, change.second)
    ]
    sides = [side for _, side in turns]
    if min(sides.count(True), sides.count(False)) < LEAST_SIDE or any(when is None for when, _ in turns):
        return False
    return interleaved([side for _, side in sorted(turns, key=lambda turn: turn[0] or 0)])


def _sides(
    segment: Segment, controls: Sequence[Segment], before: tuple[int, int], after: tuple[int, int]
) -> tuple[list[float], list[float]]:
    """The control's values between the commits of the two sides, in the environment of the segment."""
    for control in controls:
        if control.quantity == segment.quantity and agree(control.known, segment.known):
            sides = tuple(
                [run.value for run in control.runs if start <= run.order <= end]
                for start, end in (before, after)
            )
            if all(sides):
                return sides[0], sides[1]
    return [], []
