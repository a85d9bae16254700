"""Charts of what was scored in training: perplexity over tokens and over seconds, one line a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from harness.errors import UserError, counted
from harness.record import Record
from harness.tables.curves import Curve, curves
from harness.tables.format import plain
from harness.tables.page import chart
from harness.tables.page.chart import Chart
from harness.tables.page.html import chart_text
from harness.tables.page.quantities import Group, groups, names, short, titled
from harness.tables.page.rates import LINEAR, ticks
from harness.tables.page.training import POINTS, run_name
from harness.tables.records import NOTE_LENGTH
from harness.tables.report.view import View

_HEIGHT = 420
#: What perplexity is drawn over: an attribute of `Curve`, and the title of its axis.
OVER = (("tokens", "tokens of training"), ("seconds", "seconds of training"))

Runs = list[tuple[int, Record, Curve]]


def charts(view: View) -> tuple[list[Chart], list[str]]:
    """Return for each protocol that was scored in training a chart over tokens and one over seconds.

    The notes tell how many runs are left out because their series cannot be read.
    """
    known: dict[str, Runs] = {}
    unread: list[str] = []
    for place, row in enumerate(view.rows):
        for record in row.records:
            try:
                found = curves(record)
            except UserError as error:
                unread.append(str(error))
                continue
            for protocol, curve in found.items():
                known.setdefault(protocol, []).append((place, record, curve))
    drawn: list[Chart] = []
    for group in groups(view):
        for protocol, runs in known.items():
            inside = [run for run in runs if run[0] in group.places]
            for over, axis in OVER if inside else ():
                drawn.append(_chart(view, group, protocol, inside, (over, axis), f"curves-{len(drawn)}"))
    notes = [f"not drawn: {counted(len(unread), 'run')}: {plain(unread[0], NOTE_LENGTH)}"] if unread else []
    return drawn, notes


def _chart(view: View, group: Group, protocol: str, runs: Runs, over: tuple[str, str], name: str) -> Chart:
    room = max(2, POINTS // (2 * len(runs)))
    labels, traces, seen = names(view), [], set[int]()
    for place, record, curve in runs:
        traces.append(_line(place, run_name(labels[place], record), curve, over[0], room))
        traces[-1] |= {"name": chart_text(short(labels[place])), "showlegend": place not in seen}
        seen.add(place)
    target = view.targets.get(protocol)
    values = [value for _, _, curve in runs for value in curve.perplexity if math.isfinite(value)]
    values += [target] if target is not None else []
    drawn = chart.content(
        traces,
        xaxis=chart.axis(over[1]) | {"rangemode": "tozero"},
        yaxis=chart.axis(f"perplexity, {protocol}") | _scale(values),
        shapes=[] if target is None else [_target(target)],
        legend=chart.legend_below(),
        hovermode="closest",
        height=_HEIGHT,
    )
    caption = (
        "a line per run with a mark at each score, the last one at the end of the training; all runs of a "
        "row have one colour; a legend entry shows or hides a row"
    )
    caption += "; seconds without loading, scores and checkpoints" if over[0] == "seconds" else ""
    caption += f"; dotted: the target, {target:g}" if target is not None else ""
    return Chart(name, titled(f"perplexity on {plain(protocol)} over {over[1]}", group), caption, drawn)


def _line(place: int, name: str, curve: Curve, over: str, room: int) -> dict[str, Any]:
    """Draw one run, of very many points every so many and the last."""
    stride = -(-len(curve.perplexity) // room)
    chosen = [*range(0, len(curve.perplexity) - 1, stride), len(curve.perplexity) - 1]
    across: Sequence[float] = getattr(curve, over)
    values = [curve.perplexity[at] for at in chosen]
    shown = chart_text(name).replace("%", "&#37;")
    line: dict[str, Any] = chart.scatter(
        "lines+markers",
        [across[at] for at in chosen],
        [value if math.isfinite(value) else None for value in values],
        None,
        line=chart.line(place),
        marker=chart.marker(place, 5),
        legendgroup=str(place),
        hovertemplate=f"<b>{shown}</b><br>%{{y:.4f}} at %{{x}} {over}<extra></extra>",
    )
    return line


def _scale(values: Sequence[float]) -> dict[str, Any]:
    """Return the axis of perplexity, logarithmic where the largest value is many times the smallest."""
    wide = bool(values) and max(values) > LINEAR * min(values)
    every = [digit * 10.0**power for power in range(9) for digit in (1, 2, 5)]
    return {"type": "log"} | ticks(every) if wide else {}


def _target(value: float) -> dict[str, Any]:
    return {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": value,
        "y1": value,
        "line": {"color": "#8a919b", "dash": "dot", "width": 2},
    }
