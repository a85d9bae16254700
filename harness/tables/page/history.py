"""Charts of a history: each quantity over commits, its steps marked, nothing joined across a break."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from harness.tables.history import wording
from harness.tables.history.series import ChangePoint, History, Quantity, Series
from harness.tables.page import chart
from harness.tables.page.chart import Chart
from harness.tables.page.html import chart_text
from harness.tables.page.quantities import short

#: Names of commits that an axis has room for, and lines of text below the charts.
TICKS, MOST_LINES = 10, 40
#: The colour of a step and what its symbol ends in: open where it may be the machine's.
_MARKS = {
    "worse": ("#d1495b", ""),
    "better": ("#2f9459", ""),
    "worse?": ("#d1495b", "-open"),
    "better?": ("#2f9459", "-open"),
}


def charts(history: History) -> tuple[list[Chart], list[str]]:
    """A chart for each quantity that is drawn; in words the steps, the breaks, and what is to be known."""
    if len(history.commits) < 2:
        alone = "".join(commit.name for commit in history.commits)
        return [], [f"one commit, {alone}, so nothing can have moved yet", *history.notes]
    drawn = [quantity for quantity in history.quantities if _is_drawn(history, quantity)]
    found = [_chart(history, quantity, f"history-{place}") for place, quantity in enumerate(drawn)]
    left = [quantity.name for quantity in history.quantities if quantity not in drawn]
    said = [*_first(_changes(history)), *_first(wording.breaks(history)), *wording.method(history)]
    said += _first(wording.remarks(history))
    said += [f"not drawn, since nothing stepped: {', '.join(left)}"] if left else []
    aside = [f"{len(history.skipped)} files skipped"] if history.skipped else []
    return found, [*said, *history.notes, *aside]


def _is_drawn(history: History, quantity: Quantity) -> bool:
    """All but the components of a peak, and how runs ended, where these never stepped."""
    own = [series for series in history.series if series.quantity == quantity]
    return not (quantity.part or quantity.kind == "status") or any(series.change_points for series in own)


def _chart(history: History, quantity: Quantity, name: str) -> Chart:
    rows = history.rows
    own = [series for series in history.series if series.quantity == quantity]
    environments = list(dict.fromkeys(tuple(series.environment.items()) for series in own))
    seen: set[str] = set()
    traces: list[dict[str, Any]] = []
    for series in own:
        place = rows.index(series.row)
        line = chart.line(place)
        line["dash"] = chart.DASHES[environments.index(tuple(series.environment.items())) % len(chart.DASHES)]
        traces.append(_line(history, series, line, series.row not in seen) | {"marker": _marker(place)})
        seen.add(series.row)
    traces += _marks(history, own)
    ends = sorted({each.order for each in history.breaks if each.quantity == quantity and not each.beside})
    unit = f", {quantity.shown_unit}" if quantity.shown_unit else ""
    content = chart.content(
        traces,
        xaxis=chart.axis("commit, oldest first") | _ticks(history),
        yaxis=chart.axis(f"{quantity.name}{unit}") | {"separatethousands": True},
        shapes=[_rule(order) for order in ends],
        legend=chart.legend_below(),
        hovermode="closest",
        height=chart.HEIGHT,
    )
    title = f"{quantity.name}{unit}"
    changes = [change for series in own for change in series.change_points]
    level = "shares" if quantity.kind == "status" else "medians"
    caption = f"{quantity.better} is better; {level} of the runs of a commit"
    caption += "; triangles are change points" if changes else ""
    caption += ", open ones may be the machine's" if any(change.doubtful for change in changes) else ""
    caption += "; at an upright line a series ends and another one begins" if ends else ""
    caption += "; other dashes, another environment" if len(environments) > 1 else ""
    return Chart(name, title[0].upper() + title[1:], caption, content)


def _line(history: History, series: Series, line: dict[str, Any], first: bool) -> dict[str, Any]:
    """One series: a point for each commit, joined in their order."""
    levels = {order: (series.level(order), len(points)) for order, points in series.by_commit.items()}
    environment = ", ".join(f"{key} {value}" for key, value in list(series.environment.items())[:1])
    hover = []
    for order, (level, count) in levels.items():
        commit = history.commits[order]
        value = f"{wording.number(series.quantity, level)} {series.quantity.shown_unit}".rstrip()
        said = [
            series.row,
            f"{commit.name}: {commit.subject}".rstrip(": "),
            f"{value} (n={count})",
            environment,
        ]
        hover.append("<br>".join(chart_text(text, 90) for text in said if text))
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": chart_text(short(series.row)),
        "legendgroup": str(history.rows.index(series.row)),
        "showlegend": first,
        "x": list(levels),
        "y": [series.quantity.shown(level) for level, _ in levels.values()],
        "line": line,
        "hovertext": hover,
        "hoverinfo": "text",
    }


def _marker(place: int) -> dict[str, Any]:
    return {**chart.marker(place), "size": 7}


def _marks(history: History, own: Sequence[Series]) -> Iterator[dict[str, Any]]:
    """The steps of some series, one trace for each way of marking them."""
    changes = [
        change for series in own for change in series.change_points if change.quantity.usable(change.after)
    ]
    for verdict, (colour, ending) in _MARKS.items():
        here = [change for change in changes if wording.verdict(change) == verdict]
        if here:
            symbol = f"triangle-{'up' if here[0].after > here[0].before else 'down'}{ending}"
            yield {
                "type": "scatter",
                "mode": "markers",
                "name": f"step: {verdict}",
                "x": [change.second for change in here],
                "y": [change.quantity.shown(change.after) for change in here],
                "marker": {"color": colour, "symbol": symbol, "size": 15, "line": {"width": 2}},
                "hovertext": [chart_text(_told(history, change), 200) for change in here],
                "hoverinfo": "text",
            }


def _ticks(history: History) -> dict[str, Any]:
    """Names of commits below their places, of many only some, always with the newest."""
    last = len(history.commits) - 1
    stride = -(-len(history.commits) // TICKS)
    places = [order for order in range(last + 1) if (last - order) % stride == 0]
    return {
        "tickvals": places,
        "ticktext": [chart_text(history.commits[order].name, 12) for order in places],
        "range": [-0.5, last + 0.5],
    }


def _rule(order: int) -> dict[str, Any]:
    """An upright line before the first commit of a new series."""
    line = {"color": "#8a919b", "dash": "dot", "width": 1.5}
    place = order - 0.5
    return {
        "type": "line",
        "xref": "x",
        "yref": "paper",
        "x0": place,
        "x1": place,
        "y0": 0,
        "y1": 1,
        "line": line,
    }


# ------------------------------------------------------------------------------------------- words
def _changes(history: History) -> list[str]:
    return [_told(history, change) for change in wording.listed_change_points(history)] or [
        "no change points"
    ]


def _told(history: History, change: ChangePoint) -> str:
    """`worse: row, peak memory 1 -> 2 MiB (ratio) at abc1234: subject; why`."""
    commit = history.commits[change.second]
    how = f" ({wording.ratio(change)})" if wording.ratio(change) else ""
    subject = f": {commit.subject}" if commit.subject else ""
    why = f"; {wording.why(change)}" if wording.why(change) else ""
    size = f"{change.quantity.name} {wording.levels(change)}{how}"
    return f"{wording.verdict(change)}: {change.row}, {size} at {commit.name}{subject}{why}"


def _first(lines: Sequence[str]) -> list[str]:
    left = len(lines) - MOST_LINES
    more = [f"{left} more: lorebench history says all of them"] if left > 0 else []
    return [*lines[:MOST_LINES], *more]
