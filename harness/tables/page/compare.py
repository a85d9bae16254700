"""Charts that compare rows: results with error bars, Pareto fronts, bytes by component."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import Any

from harness.record import COMPONENTS
from harness.tables import format
from harness.tables.aggregate import Stat
from harness.tables.page import chart
from harness.tables.page.chart import Chart
from harness.tables.page.html import chart_text
from harness.tables.page.quantities import (
    Better,
    Group,
    Quantity,
    groups,
    memory,
    names,
    point,
    quality,
    speed,
    written,
)
from harness.tables.page.quantities import labels as axis_names
from harness.tables.report.notes import status
from harness.tables.report.view import View


def figures(view: View) -> list[Chart]:
    """Return one chart per quantity: the mean of every row with its spread, failed rows in their place."""
    found: list[Chart] = []
    for group in groups(view):
        for quantity in (*quality(view), memory(view, group), speed(view)):
            if any(point(view, place, quantity) for place in group.places):
                found.append(_figure(view, group, quantity, f"figure-{len(found)}"))
    return found


def _figure(view: View, group: Group, quantity: Quantity, name: str) -> Chart:
    labels = names(view)
    traces, absent = [], []
    for line, place in enumerate(group.places):
        known = point(view, place, quantity)
        if known is None:
            absent.append(chart.ended(line, _missing(view, place)))
            continue
        hover = [_hover(labels[place], written(view, place, quantity))]
        marker = {**chart.marker(place), "size": 10}
        bar = _bar(known, thickness=2, width=6)
        traces.append(chart.scatter("markers", [known.mean], [line], hover, marker=marker, error_x=bar))
    drawn = chart.content(
        traces,
        xaxis=chart.axis(quantity.name),
        annotations=absent,
        showlegend=False,
        **chart.rows(axis_names(view, group)),
    )
    caption = f"{quantity.better} is better; bars are the sample standard deviation"
    return Chart(name, _titled(quantity.name, group), caption, drawn)


# ----------------------------------------------------------------------------------------- fronts
def front(points: Sequence[tuple[float, float]], better: Better) -> list[int]:
    """Return the indices of points that no other dominates: as cheap and as good, and better in one.

    A point is (cost, benefit), where less cost is better and `better` is the direction of the benefit. The
    indices are in order of cost.
    """
    signed = [(cost, benefit if better == "lower" else -benefit) for cost, benefit in points]
    undominated = [
        place
        for place, (cost, loss) in enumerate(signed)
        if not any(
            other <= cost and worse <= loss and (other, worse) != (cost, loss) for other, worse in signed
        )
    ]
    return sorted(undominated, key=lambda place: signed[place])


def fronts(view: View) -> list[Chart]:
    """Return charts of each quality, and throughput, against peak memory, with their Pareto fronts."""
    found: list[Chart] = []
    for group in groups(view):
        cost = memory(view, group)
        for benefit in (*quality(view), speed(view)):
            both = {
                place: (across, up)
                for place in group.places
                if (across := point(view, place, cost)) and (up := point(view, place, benefit))
            }
            if len(both) > 1:
                found.append(_front(view, group, both, (cost, benefit), f"front-{len(found)}"))
    return found


def _front(
    view: View,
    group: Group,
    measured: Mapping[int, tuple[Stat, Stat]],
    axes: tuple[Quantity, Quantity],
    name: str,
) -> Chart:
    """Draw the rows of `measured`, their cost and benefit by their places."""
    cost, benefit = axes
    labels, brief = names(view), dict(zip(group.places, axis_names(view, group), strict=True))
    points = [(across.mean, up.mean) for across, up in measured.values()]
    best = front(points, benefit.better)
    line = {"color": "#8a919b", "dash": "dot", "shape": "hv", "width": 2}
    across, up = [points[at][0] for at in best], [points[at][1] for at in best]
    traces = [chart.scatter("lines", across, up, None, name="Pareto front", line=line, hoverinfo="skip")]
    for at, (place, (x, y)) in enumerate(measured.items()):
        texts = [written(view, place, cost), written(view, place, benefit)]
        texts += ["on the front"] if at in best else []
        traces.append(
            chart.scatter(
                "markers",
                [x.mean],
                [y.mean],
                [_hover(labels[place], *texts)],
                name=chart_text(brief[place]),
                marker={**chart.marker(place), "size": 12},
                error_x=_bar(x),
                error_y=_bar(y),
            )
        )
    drawn = chart.content(
        traces,
        xaxis=chart.axis(cost.name),
        yaxis=chart.axis(benefit.name),
        legend=chart.legend_below(),
        height=chart.HEIGHT,
    )
    title = _titled(f"{benefit.name} against peak memory", group)
    return Chart(name, title, _beside(view, group, measured, benefit), drawn)


def _beside(view: View, group: Group, drawn: Container[int], benefit: Quantity) -> str:
    """Write the caption: which corner is best, and which rows are missing."""
    labels = names(view)
    corner = "lower left" if benefit.better == "lower" else "upper left"
    absent = [f"{labels[place]} ({_missing(view, place)})" for place in group.places if place not in drawn]
    return f"best is {corner}" + (f"; not in the chart: {'; '.join(absent)}" if absent else "")


def _bar(stat: Stat, thickness: float = 1.5, width: int = 4) -> dict[str, Any] | None:
    style = {"thickness": thickness, "width": width}
    return None if stat.sd is None else {"type": "data", "array": [stat.sd], **style}


# ------------------------------------------------------------------------------------- components
def components(view: View) -> list[Chart]:
    """Return charts of the peak of each row as a bar of its components."""
    found: list[Chart] = []
    for group in groups(view):
        if any(point(view, place, memory(view, group)) for place in group.places):
            found.append(_components(view, group, f"components-{len(found)}"))
    return found


def _components(view: View, group: Group, name: str) -> Chart:
    cost, labels = memory(view, group), names(view)
    lines = {place: line for line, place in enumerate(group.places)}
    there = [place for place in group.places if point(view, place, cost)]
    traces = []
    for colour, key in zip(chart.COLOURS, COMPONENTS, strict=False):
        part = format.component(key)
        sizes = {place: view.rows[place].mean(key) or 0.0 for place in there}
        if not any(sizes.values()):
            continue
        texts = {p: f"{part}: {cost.show(size)} of {written(view, p, cost)}" for p, size in sizes.items()}
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": part,
                "x": [size * cost.scale for size in sizes.values()],
                "y": [lines[place] for place in there],
                "marker": {"color": colour},
                "hovertext": [_hover(labels[place], text) for place, text in texts.items()],
                "hoverinfo": "text",
            }
        )
    drawn = chart.content(
        traces,
        barmode="stack",
        xaxis=chart.axis(cost.name),
        annotations=[
            chart.ended(line, _missing(view, place)) for place, line in lines.items() if place not in there
        ],
        legend=chart.legend_below() | {"traceorder": "normal"},
        **chart.rows(axis_names(view, group)),
    )
    caption = "means over the runs of a row; the components add up to the peak"
    return Chart(name, _titled("bytes of the peak by component", group), caption, drawn)


# ------------------------------------------------------------------------------------------- parts
def _missing(view: View, place: int) -> str:
    """Return why a row has no point."""
    ended = status(view.rows[place].records)
    return "not measured" if ended.startswith("ok") and ";" not in ended else ended


def _hover(name: str, *lines: str) -> str:
    return "<br>".join((f"<b>{chart_text(name)}</b>", *map(chart_text, lines)))


def _titled(title: str, group: Group) -> str:
    text = f"{title} ({group.title})" if group.title else title
    return text[0].upper() + text[1:]
