"""Charts of training: the loss of every run over its updates."""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness import series
from harness.errors import UserError, counted
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
_HEIGHT = 420
_PARTS = 20


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
                    loss = series.losses(record)
                except UserError as error:
                    unread.append(str(error))
                    continue
                if any(map(math.isfinite, loss)):
                    runs.append((place, record, loss))
    notes = [f"not drawn: {counted(len(unread), 'run')}: {plain(unread[0], NOTE_LENGTH)}"] if unread else []
    return [_chart(view, runs)] if runs else [], notes


def _chart(view: View, runs: Sequence[tuple[int, Record, Sequence[float]]]) -> Chart:
    room = max(2, POINTS // (2 * len(runs)))
    labels, traces, seen = names(view), [], set[int]()
    coarsest = 1
    for place, record, loss in runs:
        stride = -(-len(loss) // room)
        coarsest = max(coarsest, stride)
        name = chart_text(run_name(labels[place], record)).replace("%", "&#37;")
        line, smooth = chart.line(place), smoothed(loss, _window(len(loss)))
        shared = {"x0": 1, "dx": stride, "legendgroup": str(place)}
        raw = shared | {"line": line | {"width": 0.8, "dash": "solid"}, "opacity": 0.4}
        traces += [
            chart.lines(thinned(loss, stride), **raw, showlegend=False, hoverinfo="skip"),
            chart.lines(
                thinned(smooth, stride),
                **shared,
                name=chart_text(short(labels[place])),
                showlegend=place not in seen,
                line=line,
                hovertemplate=name + "<br>update %{x}: %{y:.4f}<extra></extra>",
            ),
        ]
        seen.add(place)
    drawn = chart.content(
        traces,
        xaxis=chart.axis("update"),
        yaxis=chart.axis("training loss, nats per token"),
        legend=chart.legend_below(),
        hovermode="closest",
        height=_HEIGHT,
    )
    thinner = f"; each point is the mean of up to {coarsest} updates" if coarsest > 1 else ""
    caption = (
        f"a line per run is the running median over 1/{_PARTS} of its updates, thin behind it the loss "
        f"itself; all runs of a row have one colour; a legend entry shows or hides a row{thinner}"
    )
    return Chart("losses", "Training loss", caption, drawn)


def _window(updates: int) -> int:
    """Return the odd number of updates that a curve of so many is smoothed over."""
    return max(3, 2 * round(updates / _PARTS / 2) + 1)


def smoothed(values: Sequence[float], window: int) -> list[float]:
    """Return the median of the finite values in a window around each, shorter at the ends; NaN if none."""
    import pandas as pd

    finite = pd.Series([value if math.isfinite(value) else math.nan for value in values], dtype="float64")
    return finite.rolling(window, center=True, min_periods=1).median().tolist()


def thinned(values: Sequence[float], stride: int) -> list[float | None]:
    """Return the mean of each `stride` values, the last of what is left; None if not finite."""
    means = [float(f"{mean(values[start : start + stride]):.4g}") for start in range(0, len(values), stride)]
    return [value if math.isfinite(value) else None for value in means]


def run_name(label: str, record: Record) -> str:
    """Name a run by its row, seed and repeat."""
    repeat = f", repeat {record.repeat}" if record.repeat else ""
    return f"{label}, seed {record.seed}{repeat}"
