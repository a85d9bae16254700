"""Charts of a history: each quantity over commits, change points marked, lines broken where series break."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from harness.errors import counted
from harness.tables.aggregate import grouped
from harness.tables.format import first
from harness.tables.history import wording
from harness.tables.history.series import ChangePoint, History, Quantity, Series
from harness.tables.page import chart
from harness.tables.page.chart import Chart
from harness.tables.page.html import chart_text
from harness.tables.page.quantities import short

#: Names of commits on an axis, and lines of text below the charts.
TICKS, MOST_LINES = 10, 40
#: The colour of a change point and the suffix of its symbol: open where it may be machine noise.
_MARKS = {
    "worse": ("#d1495b", ""),
    "better": ("#2f9459", ""),
    "worse?": ("#d1495b", "-open"),
    "better?": ("#2f9459", "-open"),
}


def charts(history: History) -> tuple[list[Chart], list[str]]:
    """Return a chart per quantity, and lines on change points, breaks, method and notes."""
    if len(history.commits) < 2:
        alone = "".join(commit.name for commit in history.commits)
        return [], [f"one commit, {alone}, so nothing can have changed yet", *history.notes]
    series = grouped(history.series, lambda each: each.quantity)
    drawn = [quantity for quantity in history.quantities if _is_drawn(quantity, series[quantity])]
    found = [_chart(history, each, series[each], f"history-{place}") for place, each in enumerate(drawn)]
    left = [quantity.name for quantity in history.quantities if quantity not in drawn]
    lines = [*_shown(_changes(history)), *_shown(wording.breaks(history)), *wording.method(history)]
    lines += _shown(wording.remarks(history))
    lines += [f"not drawn, without change points: {', '.join(left)}"] if left else []
    skipped = [f"{counted(len(history.skipped), 'file')} skipped"] if history.skipped else []
    return found, [*lines, *history.notes, *skipped]


def _is_drawn(quantity: Quantity, own: Sequence[Series]) -> bool:
    """Return whether to draw a quantity: components of a peak and outcomes only with a change point."""
    return not (quantity.part or quantity.kind == "status") or any(series.change_points for series in own)


def _chart(history: History, quantity: Quantity, own: Sequence[Series], name: str) -> Chart:
    rows = history.rows
    environments = list(dict.fromkeys(tuple(series.environment.items()) for series in own))
    seen: set[str] = set()
    traces: list[dict[str, Any]] = []
    for series in own:
        place = rows.index(series.row)
        line = chart.line(place)
        line["dash"] = chart.DASHES[environments.index(tuple(series.environment.items())) % len(chart.DASHES)]
        traces.append(_line(history, series, line, series.row not in seen))
        seen.add(series.row)
    traces += _marks(history, own)
    ends = sorted({each.order for each in history.breaks if each.quantity == quantity and not each.beside})
    title = quantity.name + (f", {quantity.shown_unit}" if quantity.shown_unit else "")
    content = chart.content(
        traces,
        xaxis=chart.axis("commit, oldest first") | _ticks(history),
        yaxis=chart.axis(title) | {"separatethousands": True},
        shapes=[_rule(order) for order in ends],
        legend=chart.legend_below(),
        hovermode="closest",
        height=chart.HEIGHT,
    )
    changes = [change for series in own for change in series.change_points]
    level = "shares" if quantity.kind == "status" else "medians"
    caption = f"{quantity.better} is better; {level} of the runs of a commit"
    caption += "; triangles are change points" if changes else ""
    caption += ", open ones may be machine noise" if any(change.doubtful for change in changes) else ""
    caption += "; at a vertical line a series ends and another one begins" if ends else ""
    caption += "; other dashes, another environment" if len(environments) > 1 else ""
    return Chart(name, title[0].upper() + title[1:], caption, content)


def _line(history: History, series: Series, line: dict[str, Any], first: bool) -> dict[str, Any]:
    """Draw one series: a point for each commit, joined in their order."""
    levels = {order: (series.level(order), len(points)) for order, points in series.by_commit.items()}
    environment = ", ".join(f"{key} {value}" for key, value in list(series.environment.items())[:1])
    hover = []
    for order, (level, count) in levels.items():
        commit = history.commits[order]
        value = f"{wording.number(series.quantity, level)} {series.quantity.shown_unit}".rstrip()
        where = f"{commit.name}: {commit.subject}".rstrip(": ")
        texts = (series.row, where, f"{value} (n={count})", environment)
        hover.append("<br>".join(chart_text(text, 90) for text in texts if text))
    place = history.rows.index(series.row)
    return chart.scatter(
        "lines+markers",
        list(levels),
        [series.quantity.shown(level) for level, _ in levels.values()],
        hover,
        name=chart_text(short(series.row)),
        legendgroup=str(place),
        showlegend=first,
        line=line,
        marker=chart.marker(place, 7),
    )


def _marks(history: History, own: Sequence[Series]) -> Iterator[dict[str, Any]]:
    """Yield the change points of some series, one trace per way of marking them."""
    changes = [
        change for series in own for change in series.change_points if change.quantity.usable(change.after)
    ]
    for verdict, (colour, ending) in _MARKS.items():
        here = [change for change in changes if wording.verdict(change) == verdict]
        if here:
            symbol = f"triangle-{'up' if here[0].after > here[0].before else 'down'}{ending}"
            yield chart.scatter(
                "markers",
                [change.second for change in here],
                [change.quantity.shown(change.after) for change in here],
                [chart_text(_sentence(history, change), 200) for change in here],
                name=f"change point: {verdict}",
                marker={"color": colour, "symbol": symbol, "size": 15, "line": {"width": 2}},
            )


def _ticks(history: History) -> dict[str, Any]:
    """Return the names of commits below the axis, of many only some, always with the newest."""
    last = len(history.commits) - 1
    stride = -(-len(history.commits) // TICKS)
    places = [order for order in range(last + 1) if (last - order) % stride == 0]
    return {
        "tickvals": places,
        "ticktext": [chart_text(history.commits[order].name, 12) for order in places],
        "range": [-0.5, last + 0.5],
    }


def _rule(order: int) -> dict[str, Any]:
    """Return a vertical line before the first commit of a new series."""
    place = {"x0": order - 0.5, "x1": order - 0.5, "y0": 0, "y1": 1}
    line = {"color": "#8a919b", "dash": "dot", "width": 1.5}
    return {"type": "line", "xref": "x", "yref": "paper", **place, "line": line}


# ------------------------------------------------------------------------------------------- words
def _changes(history: History) -> list[str]:
    found = [_sentence(history, change) for change in wording.listed_change_points(history)]
    return found or ["no change points"]


def _sentence(history: History, change: ChangePoint) -> str:
    """Write `worse: row, peak memory 1 -> 2 MiB (ratio) at abc1234: subject; why`."""
    commit = history.commits[change.second]
    how = f" ({wording.ratio(change)})" if wording.ratio(change) else ""
    subject = f": {commit.subject}" if commit.subject else ""
    why = f"; {wording.why(change)}" if wording.why(change) else ""
    size = f"{change.quantity.name} {wording.levels(change)}{how}"
    return f"{wording.verdict(change)}: {change.row}, {size} at {commit.name}{subject}{why}"


def _shown(lines: Sequence[str]) -> list[str]:
    return first(lines, MOST_LINES, "{} more: see lorebench history")
