"""Charts with a line per row: results with error bars, bytes by component."""

from __future__ import annotations

from harness.record import COMPONENTS
from harness.tables import format
from harness.tables.page import chart
from harness.tables.page.chart import Chart
from harness.tables.page.quantities import (
    Group,
    Quantity,
    groups,
    memory,
    missing,
    names,
    point,
    quality,
    speed,
    titled,
    written,
)
from harness.tables.page.quantities import labels as axis_names
from harness.tables.report.view import View


def figures(view: View) -> list[Chart]:
    """Return one chart per quantity: the mean of every row with its spread, failed rows in their place."""
    found: list[Chart] = []
    for group in groups(view):
        for quantity in (*quality(view), speed(view)):
            if any(point(view, place, quantity) for place in group.places):
                found.append(_figure(view, group, quantity, f"figure-{len(found)}"))
    return found


def _figure(view: View, group: Group, quantity: Quantity, name: str) -> Chart:
    labels = names(view)
    traces, absent = [], []
    for line, place in enumerate(group.places):
        known = point(view, place, quantity)
        if known is None:
            absent.append(chart.ended(line, missing(view, place)))
            continue
        hover = [chart.hover(labels[place], written(view, place, quantity))]
        drawn_as = {
            "marker": chart.marker(place, 10, single=known.n == 1),
            "error_x": chart.whiskers([known]),
        }
        traces.append(chart.scatter("markers", [known.mean], [line], hover, **drawn_as))
    drawn = chart.content(
        traces,
        xaxis=chart.axis(quantity.name),
        annotations=absent,
        showlegend=False,
        **chart.rows(axis_names(view, group)),
    )
    caption = f"{quantity.better} is better; {chart.SPREAD}"
    return Chart(name, titled(quantity.name, group), caption, drawn)


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
                "hovertext": [chart.hover(labels[place], text) for place, text in texts.items()],
                "hoverinfo": "text",
            }
        )
    drawn = chart.content(
        traces,
        barmode="stack",
        xaxis=chart.axis(cost.name),
        annotations=[
            chart.ended(line, missing(view, place)) for place, line in lines.items() if place not in there
        ],
        legend=chart.legend_below() | {"traceorder": "normal"},
        **chart.rows(axis_names(view, group)),
    )
    caption = "means over the runs of a row; the components add up to the peak"
    return Chart(name, titled("bytes of the peak by component", group), caption, drawn)
