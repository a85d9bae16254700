"""Suites whose rows try several learning rates: perplexity over the rate, and each row at its best rate."""

from __future__ import annotations

import json
from collections.abc import Sequence

from harness.tables.aggregate import Row, grouped
from harness.tables.page import chart
from harness.tables.page.chart import Chart
from harness.tables.page.html import chart_text
from harness.tables.page.quantities import (
    Group,
    Quantity,
    groups,
    missing,
    names,
    point,
    quality,
    short,
    titled,
    written,
)
from harness.tables.report.view import View

_HEIGHT = 420
LINEAR = 3  # where the largest value is more than so many times the smallest, the axis is logarithmic


def charts(view: View) -> list[Chart]:
    """Return, for rows that tried several rates, a chart of the first quality over the rate."""
    found: list[Chart] = []
    for group in groups(view):
        lines = _lines(view, group)
        for judged in quality(view)[:1]:
            if any(point(view, place, judged) for line in lines for place in line):
                found.append(_chart(view, group, lines, judged, f"rates-{len(found)}"))
    return found


def best(view: View) -> View:
    """Return the view with each row at its best rate alone; the same view where no row tried several."""
    left_out: set[int] = set()
    for group in groups(view):
        for line in _lines(view, group):
            left_out |= set(line) - {_best(view, line, next(iter(quality(view)), None))}
    if not left_out:
        return view
    left = tuple(row for place, row in enumerate(view.rows) if place not in left_out)
    return View(left, view.baseline, view.targets)


def _lines(view: View, group: Group) -> list[list[int]]:
    """Return the places of rows that differ in the rate alone, by rate, where there are several."""
    alike = grouped(group.places, lambda place: _without_rate(view.rows[place])).values()
    return [sorted(line, key=lambda place: _rate(view.rows[place])) for line in alike if len(line) > 1]


def _without_rate(row: Row) -> str:
    config = row.records[0].config
    left_out = {"seed": None, "repeat": None, "tuning": None}
    train = {key: value for key, value in config["train"].items() if key != "lr"}
    return json.dumps(config | left_out | {"label": row.label, "train": train}, sort_keys=True)


def _rate(row: Row) -> float:
    return float(row.records[0].config["train"]["lr"])


def _best(view: View, line: Sequence[int], judged: Quantity | None) -> int:
    """Return the place of the best row, the first where none has a value."""
    values = {
        place: known.mean if judged.better == "lower" else -known.mean
        for place in line
        if judged and (known := point(view, place, judged))
    }
    return min(values, key=values.__getitem__, default=line[0])


def _chart(view: View, group: Group, lines: Sequence[Sequence[int]], judged: Quantity, name: str) -> Chart:
    traces, drawn = [], [line for line in lines if any(point(view, place, judged) for place in line)]
    labels = _labels(view, drawn)
    for number, line in enumerate(drawn):
        traces.append(_line(view, line, judged, number, labels[number]))
    values = [known.mean for line in drawn for place in line if (known := point(view, place, judged))]
    wide = min(values) > 0 and max(values) > LINEAR * min(values)
    round_values = [digit * 10.0**power for power in range(-3, 9) for digit in (1, 2, 5)]
    tried = sorted({_rate(view.rows[place]) for line in drawn for place in line})
    figure = chart.content(
        traces,
        xaxis=chart.axis("learning rate") | {"type": "log"} | ticks(tried),
        yaxis=chart.axis(judged.name) | ({"type": "log"} | ticks(round_values) if wide else {}),
        legend=chart.legend_below(),
        height=_HEIGHT,
    )
    title = titled(f"{judged.name} over the learning rate", group)
    return Chart(name, title, _caption(view, lines, judged), figure)


def ticks(values: Sequence[float]) -> dict[str, object]:
    """Return the marks of an axis at some values."""
    return {"tickvals": list(values), "ticktext": [f"{value:,g}" for value in values]}


def _labels(view: View, lines: Sequence[Sequence[int]]) -> list[str]:
    """Name lines by the label of their rows, those that share one by all that distinguishes the first row."""
    labels = [view.rows[line[0]].label for line in lines]
    full = names(view)
    return [
        label if labels.count(label) == 1 else full[line[0]]
        for label, line in zip(labels, lines, strict=True)
    ]


def _line(view: View, line: Sequence[int], judged: Quantity, number: int, label: str) -> object:
    """Draw one row over the rates, its best as the large mark."""
    known = {place: stat for place in line if (stat := point(view, place, judged))}
    chosen, full = _best(view, line, judged), names(view)
    mark = chart.marker(number, 12, single=known[chosen].n == 1)
    mark |= {
        "size": [12 if place == chosen else 5 for place in known],
        "symbol": [mark["symbol"] if place == chosen else "circle" for place in known],
        "line": {"width": [2 if place == chosen else 0 for place in known]},
        "opacity": 1,
    }
    return chart.scatter(
        "lines+markers",
        [_rate(view.rows[place]) for place in known],
        [stat.mean for stat in known.values()],
        [chart.hover(full[place], written(view, place, judged)) for place in known],
        name=chart_text(f"{short(label)}: {_rate(view.rows[chosen]):g}"),
        line=chart.line(number),
        marker=mark,
        error_y=chart.whiskers(list(known.values())),
    )


def _caption(view: View, lines: Sequence[Sequence[int]], judged: Quantity) -> str:
    """Say what is marked, which rows are best at the edge of their rates, and what is missing."""
    full, edges = names(view), []
    for line in lines:
        chosen = _best(view, line, judged)
        edges += [full[chosen]] if point(view, chosen, judged) and chosen in (line[0], line[-1]) else []
    parts = [
        f"{judged.better} is better; the large mark is a row's best rate, which follows its name",
        chart.SPREAD,
    ]
    parts += [f"best at the lowest or highest rate tried: {', '.join(edges)}"] if edges else []
    parts += ["the charts below show each row at its best rate"]
    absent = [
        f"{full[place]} at {_rate(view.rows[place]):g} ({missing(view, place)})"
        for line in lines
        for place in line
        if not point(view, place, judged)
    ]
    return "; ".join(parts + ([f"not in the chart: {', '.join(absent)}"] if absent else []))
