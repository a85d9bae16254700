"""Charts of training: the loss of every run over its updates."""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness import series
from harness.errors import UserError
from harness.record import Record
from harness.tables.aggregate import mean
from harness.tables.format import plain
from harness.tables.page import chart
from harness.tables.page.chart import Chart
from harness.tables.page.html import chart_text
from harness.tables.page.quantities import names, short
from harness.tables.records import NOTE_LENGTH
from harness.tables.report.view import View

#: Points of all curves of one chart together: more would be a file that opens slowly and shows no more.
POINTS = 24_000


def losses(view: View) -> tuple[list[Chart], list[str]]:
    """Return a chart of the training loss of every run that has one, failed runs included.

    The notes tell how many runs are left out because their series cannot be read.
    """
    runs: list[tuple[int, Record, Sequence[float]]] = []
    unread: list[str] = []
    for place, row in enumerate(view.rows):
        for record in row.records:
            if series.updates(record) > 1:
                try:
                    runs.append((place, record, series.losses(record)))
                except UserError as error:
                    unread.append(str(error))
    notes = [f"{len(unread)} runs are not drawn: {plain(unread[0], NOTE_LENGTH)}"] if unread else []
    return [_chart(view, runs)] if runs else [], notes


def _chart(view: View, runs: Sequence[tuple[int, Record, Sequence[float]]]) -> Chart:
    room = max(2, POINTS // len(runs))
    labels, traces, seen = names(view), [], set[int]()
    coarsest = 1
    for place, record, loss in runs:
        stride = -(-len(loss) // room)
        coarsest = max(coarsest, stride)
        steps, means = thinned(loss, stride)
        name = chart_text(run_name(labels[place], record)).replace("%", "&#37;")
        traces.append(
            chart.scatter(
                "lines",
                steps,
                means,
                None,
                name=chart_text(short(labels[place])),
                legendgroup=str(place),
                showlegend=place not in seen,
                line=chart.line(place),
                hovertemplate=name + "<br>update %{x}: %{y:.4f}<extra></extra>",
            )
        )
        seen.add(place)
    drawn = chart.content(
        traces,
        xaxis=chart.axis("update"),
        yaxis=chart.axis("training loss, nats per token"),
        legend=chart.legend_below(),
        hovermode="closest",
        height=chart.HEIGHT,
    )
    thinner = f"; each point is the mean of up to {coarsest} updates" if coarsest > 1 else ""
    caption = (
        f"one line per run, all runs of a row in one colour; a legend entry shows or hides a row{thinner}"
    )
    return Chart("losses", "Training loss", caption, drawn)


def thinned(values: Sequence[float], stride: int) -> tuple[list[int], list[float | None]]:
    """Return the number, from 1, of the last of each `stride` values, and their mean, None if not finite."""
    ends = [min(start + stride, len(values)) for start in range(0, len(values), stride)]
    parts = [values[end - 1 - (end - 1) % stride : end] for end in ends]
    means = [float(f"{mean(part):.5g}") for part in parts]
    return ends, [value if math.isfinite(value) else None for value in means]


def run_name(label: str, record: Record) -> str:
    """Name a run by its row, seed and repeat."""
    repeat = f", repeat {record.repeat}" if record.repeat else ""
    return f"{label}, seed {record.seed}{repeat}"
