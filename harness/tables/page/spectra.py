"""Charts of singular values: spectra of the initial weights, by kind of matrix and layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.record import Record
from harness.tables.page import chart
from harness.tables.page.chart import Chart
from harness.tables.page.html import chart_text
from harness.tables.page.quantities import names
from harness.tables.page.ranks import placed
from harness.tables.report.view import View

#: Colours from the first layer to the last, visible on white and on black.
DEPTH = ("#3b7fc4", "#cf5fa8", "#d06f1c")
_HEIGHT = 320

Spectra = Mapping[str, list[float]]


@dataclass
class Weights:
    """The spectra of one set of weights, and the rows whose runs started from it."""

    first: Record
    spectra: dict[str, list[float]]
    rows: list[str] = field(default_factory=list)


def spectra(view: View) -> tuple[list[Chart], list[str]]:
    """Return a chart per kind of matrix of each set of weights, and a line with its rows."""
    found = _weights(view)
    charts: list[Chart] = []
    for weights in found:
        kinds, layers, grid = placed(weights.spectra)
        model = f", {_model(weights.first)}" if len(found) > 1 else ""
        positive = [value for values in weights.spectra.values() for value in values if value > 0]
        for kind in kinds:
            lines = [(layer, grid[kind, layer]) for layer in layers if (kind, layer) in grid]
            drawn = _drawn(kind, lines, (layers[0], layers[-1]), min(positive, default=1.0))
            caption = f"one line per layer, {len(lines)} of them"
            if any(min(values, default=1.0) <= 0 for _, values in lines):
                caption += "; singular values of 0 are not drawn"
            charts.append(Chart(f"spectra-{len(charts)}", f"{kind}{model}", caption, drawn))
    return charts, [_described(weights) for weights in found]


def _weights(view: View) -> list[Weights]:
    """Return every set of weights once, with all its rows; equal weights have equal spectra."""
    labels, found = names(view), list[Weights]()
    for label, row in zip(labels, view.rows, strict=True):
        record = next((r for r in row.records if r.parameters and r.parameters.spectra), None)
        if record is None or record.parameters is None:
            continue
        own = record.parameters.spectra
        same = next((weights for weights in found if _same(weights, record, own)), None)
        if same is None:
            found.append(same := Weights(record, {}))
        same.spectra = own | same.spectra  # rows may have spectra of different kinds of matrices
        same.rows.append(label)
    return found


def _same(weights: Weights, record: Record, own: Spectra) -> bool:
    """Compare by the hash of the checkpoint, without one by the values themselves."""
    one, other = (each.data and each.data.model_sha256 for each in (weights.first, record))
    return one == other if one and other else weights.spectra == own


def _model(record: Record) -> str:
    return record.data.model if record.data else "unknown model"


def _described(weights: Weights) -> str:
    outside = len(weights.spectra) - len(placed(weights.spectra)[2])
    more = f"; not drawn: {outside} outside numbered layers" if outside else ""
    return f"{_model(weights.first)}, before training: {', '.join(weights.rows)}{more}"


def _drawn(
    kind: str, lines: Sequence[tuple[int, list[float]]], depth: tuple[int, int], least: float
) -> dict[str, Any]:
    """Draw a line per layer; `depth` are the first and last layer, `least` is the end of the axis."""
    first, last = depth
    colours = chart.library("plotly.colors")
    shares = [(layer - first) / max(1, last - first) for layer, _ in lines]
    tints = colours.sample_colorscale(list(DEPTH), shares)
    traces: list[dict[str, Any]] = [
        chart.lines(
            [value if value > 0 else None for value in values],
            x0=0,
            dx=1 / max(1, len(values) - 1),
            line={"color": tint, "width": 1.4},
            hovertemplate=f"layer {layer}, {chart_text(kind).replace('%', '&#37;')}"
            "<br>at %{x:.0%}: %{y:.3g}<extra></extra>",
        )
        for (layer, values), tint in zip(lines, tints, strict=True)
    ]
    if last > first:
        traces.append(_scale(first, last))
    return chart.content(
        traces,
        xaxis=chart.axis("share of the index: 0 largest, 1 smallest") | {"range": [0, 1]},
        yaxis=chart.axis("singular value / largest") | _decades(least),
        hovermode="closest",
        showlegend=False,
        height=_HEIGHT,
    )


def _scale(first: int, last: int) -> dict[str, Any]:
    """Return an empty trace that shows the colour bar of layers."""
    colours = [[place / (len(DEPTH) - 1), colour] for place, colour in enumerate(DEPTH)]
    marker = {"colorscale": colours, "showscale": True, "cmin": first, "cmax": last, "color": [first]}
    marker["colorbar"] = chart.colour_bar("layer") | {"tickformat": "d"}
    return chart.scatter("markers", [None], [None], None, marker=marker, hoverinfo="skip")


def _decades(least: float) -> dict[str, Any]:
    """Return a logarithmic axis from below the least value to above 1, with a line per power of 10."""
    decades = min(math.log10(least), -0.2)
    axis = {"type": "log", "range": [1.05 * decades, -0.05 * decades], "exponentformat": "power"}
    return axis | ({"dtick": 1} if decades < -1 else {})
