"""Charts of what quality costs: quality against memory and throughput, with the Pareto front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.tables.aggregate import Stat
from harness.tables.page import chart
from harness.tables.page.chart import Chart
from harness.tables.page.html import chart_text
from harness.tables.page.quantities import (
    Better,
    Group,
    Quantity,
    groups,
    labels,
    memory,
    missing,
    names,
    point,
    quality,
    speed,
    titled,
    written,
)
from harness.tables.report.at_scale import AtScale
from harness.tables.report.view import View

_HEIGHT = 420


def front(points: Sequence[tuple[float, float]], better: tuple[Better, Better]) -> list[int]:
    """Return the indices of points that no other dominates: as good in both, and better in one.

    `better` is the direction of each coordinate. The indices are in order of the first, the best before.
    """
    across, up = (1 if direction == "lower" else -1 for direction in better)
    signed = [(across * x, up * y) for x, y in points]
    undominated = [
        place
        for place, (x, y) in enumerate(signed)
        if not any(other <= x and worse <= y and (other, worse) != (x, y) for other, worse in signed)
    ]
    return sorted(undominated, key=lambda place: signed[place])


def tradeoffs(view: View, scale: AtScale | None = None) -> list[Chart]:
    """Return charts of the first quality against memory and throughput, at scale where that is known.

    Without any quality there is one of throughput against memory.
    """
    found: list[Chart] = []
    for group in groups(view):
        cost, rate = memory(view, group, scale), speed(view, scale)
        best = quality(view)[:1]
        for axes in ((cost, best[0]), (rate, best[0])) if best else ((cost, rate),):
            across, up = axes
            both = {
                place: (x, y)
                for place in group.places
                if (x := point(view, place, across)) and (y := point(view, place, up))
            }
            if len(both) > 1:
                found.append(_tradeoff(view, group, both, axes, scale, f"tradeoff-{len(found)}"))
    return found


def _tradeoff(
    view: View,
    group: Group,
    known: Mapping[int, tuple[Stat, Stat]],
    axes: tuple[Quantity, Quantity],
    scale: AtScale | None,
    name: str,
) -> Chart:
    """Draw the rows of `known`, their values on both axes by their places."""
    full, brief = names(view), dict(zip(group.places, labels(view, group), strict=True))
    points = [(x.mean, y.mean) for x, y in known.values()]
    best = front(points, (axes[0].better, axes[1].better))
    line = {"color": "#8a919b", "dash": "dot", "shape": "hv", "width": 2}
    across, up = zip(*_edge(points, best, axes), strict=True)
    traces = [chart.scatter("lines", across, up, None, line=line, hoverinfo="skip")]
    for at, (place, (x, y)) in enumerate(known.items()):
        texts = [written(view, place, quantity) for quantity in axes]
        texts += ["on the front"] if at in best else []
        traces.append(
            chart.scatter(
                "markers",
                [x.mean],
                [y.mean],
                [chart.hover(full[place], *texts)],
                name=chart_text(brief[place]),
                marker=chart.marker(place, 11, single=y.n == 1),
                error_x=chart.whiskers([x]),
                error_y=chart.whiskers([y]),
            )
        )
    drawn = chart.content(
        traces,
        xaxis=chart.axis(axes[0].name),
        yaxis=chart.axis(axes[1].name),
        showlegend=False,
        meta={"named": True},
        height=_HEIGHT,
    )
    title = f"{axes[1].name} against {axes[0].name}"
    return Chart(name, titled(title, group), _caption(view, group, known, axes, scale), drawn)


def _edge(
    points: Sequence[tuple[float, float]], best: Sequence[int], axes: tuple[Quantity, Quantity]
) -> list[tuple[float, float]]:
    """Return the front with its ends: on to the worst value of all points in either direction."""
    worst = [
        (max if quantity.better == "lower" else min)(values)
        for quantity, values in zip(axes, zip(*points, strict=True), strict=True)
    ]
    return [(points[best[0]][0], worst[1]), *(points[at] for at in best), (worst[0], points[best[-1]][1])]


def _caption(
    view: View,
    group: Group,
    known: Mapping[int, object],
    axes: tuple[Quantity, Quantity],
    scale: AtScale | None,
) -> str:
    """Say which corner is best, what is drawn, what is forecast, and which rows are missing."""
    corner = f"{axes[1].better} {'left' if axes[0].better == 'lower' else 'right'}".replace("higher", "upper")
    parts = [f"best is {corner}; dotted: the front of rows that no other beats in both", chart.SPREAD]
    unknown = "no value"
    if scale and any(quantity.forecast for quantity in axes):
        unknown = "no forecast"
        on = f" on {scale.device}" if any(q.forecast and q.key == "tokens_per_s" for q in axes) else ""
        parts += [
            f"values of {scale.model} are forecasts, not measured: {scale.work} with {scale.setting}{on}; "
            "quality is measured on the suite's own model"
        ]
    full = names(view)
    absent = [
        f"{full[place]} ({missing(view, place, unknown)})" for place in group.places if place not in known
    ]
    return "; ".join(parts + ([f"not in the chart: {', '.join(absent)}"] if absent else []))
