"""Shared parts of the charts of a page: drawing library, colours, axes, names of rows on them.

Colours of text and lines come from the page, which knows whether it is light or dark.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.errors import UserError
from harness.tables.aggregate import Stat
from harness.tables.page.html import chart_text

#: Distinguishable on white and on black; with symbols, so that no reader depends on colour.
_STYLES = (
    ("#3b7fc4", "circle"),
    ("#d06f1c", "square"),
    ("#2f9459", "diamond"),
    ("#d1495b", "triangle-up"),
    ("#8a6fd1", "cross"),
    ("#a9713f", "star"),
    ("#cf5fa8", "triangle-down"),
    ("#78828e", "x"),
    ("#8f8712", "pentagon"),
    ("#128fa0", "hexagon"),
)
COLOURS, SYMBOLS = zip(*_STYLES, strict=True)
DASHES = ("solid", "dash", "dot", "dashdot")
#: What a caption says of marks and bars.
SPREAD = "an open mark is a single run; bars are the sample standard deviation"
#: Pixels of a plot without its legend, of a row, and of what surrounds rows.
HEIGHT = 360
_ROW_HEIGHT = 30
_AROUND = 110


@dataclass(frozen=True)
class Chart:
    """A chart: its id within the page, title, caption, and its traces and layout."""

    name: str
    title: str
    caption: str
    content: dict[str, Any]


def library(part: str = "plotly.graph_objects") -> Any:
    """Import a module of the drawing library; UserError where it is not installed."""
    try:
        return importlib.import_module(part)
    except ImportError as error:
        raise UserError("the page needs plotly: pip install 'lorebench[page]'") from error


def library_script() -> str:
    """Return the drawing library for a browser, its one large function in parentheses.

    Parentheses tell an engine that a function is called at once, so it parses five million characters once.
    A library that is wrapped in another way stays as it is.
    """
    text: str = library("plotly.offline").get_plotlyjs()
    begin, end = 'this, () => {\n"use strict"', "}));"
    head, found, rest = text.partition(begin)
    body, closed, after = rest.rpartition(end)
    if not found or not closed or begin in rest or after.strip():
        return text
    return f'{head}this, (() => {{\n"use strict"{body}}})));{after}'


def marker(place: int, size: int, *, single: bool = False) -> dict[str, Any]:
    """Return the marker of a row in every chart: colours repeat after ten rows, with another symbol."""
    turn = place // len(COLOURS)
    symbol = SYMBOLS[(place + turn) % len(SYMBOLS)]
    drawn = {"symbol": f"{symbol}-open", "line": {"width": 2}} if single else {"symbol": symbol}
    return {"color": COLOURS[place % len(COLOURS)], "size": size, **drawn}


def whiskers(known: Sequence[Stat]) -> dict[str, Any] | None:
    """Return the error bars of values, their sample standard deviations; None where none has any."""
    spreads = [stat.sd for stat in known]
    return {"array": spreads, "thickness": 1.5, "width": 5} if any(sd is not None for sd in spreads) else None


def line(place: int) -> dict[str, Any]:
    """Return the line of a row in every chart: colours repeat with another dash."""
    return {
        "color": COLOURS[place % len(COLOURS)],
        "dash": DASHES[place // len(COLOURS) % len(DASHES)],
        "width": 1.6,
    }


def scatter(mode: str, x: Sequence[Any], y: Sequence[Any], hover: Sequence[str] | None, **more: Any) -> Any:
    """Return a trace of lines or markers; `hover` has the label of each point, None leaves it to `more`."""
    labels = {} if hover is None else {"hovertext": hover, "hoverinfo": "text"}
    return {"type": "scatter", "mode": mode, "x": x, "y": y, **labels, **more}


def lines(y: Sequence[float | None], **more: Any) -> Any:
    """Return a trace of a line at equal distances; `more` has the first place `x0` and the distance `dx`."""
    return {"type": "scatter", "mode": "lines", "y": y, **more}


def content(traces: Sequence[Any], **layout: Any) -> dict[str, Any]:
    """Return traces and layout, validated by the library, as JSON without its default colours."""
    objects = library()
    drawn = objects.Figure(data=list(traces), layout=objects.Layout(template="none", **layout))
    found: dict[str, Any] = json.loads(drawn.to_json())
    found["layout"].pop("template", None)
    return found


def rows(labels: Sequence[str], **more: Any) -> dict[str, Any]:
    """Return the layout of a chart with a line per row, the first on top, without a legend.

    Equal labels stay apart; `more` changes the axis.
    """
    axis = {
        "tickvals": list(range(len(labels))),
        "ticktext": [chart_text(label) for label in labels],
        "range": [len(labels) - 0.5, -0.5],
        "automargin": True,
        "fixedrange": True,
        "zeroline": False,
    }
    return {"yaxis": axis | more, "height": _AROUND + _ROW_HEIGHT * len(labels)}


def axis(title: str) -> dict[str, Any]:
    """Return an axis with a title that names its unit."""
    return {"title": {"text": chart_text(title), "standoff": 8}, "automargin": True}


def colour_bar(title: str) -> dict[str, Any]:
    """Return the bar that explains the colours of a map, at the upper right."""
    place = {"lenmode": "pixels", "len": 180, "yanchor": "top", "y": 1}
    return {"title": {"text": title}, "thickness": 12, **place}


def legend_below() -> dict[str, Any]:
    """Return a legend at the lower edge, where it takes no width; the page makes room for it."""
    return {"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0, "xanchor": "left", "x": 0}


def hover(name: str, *lines: str) -> str:
    """Return the label of a point: the name of its row, then lines of text."""
    return "<br>".join((f"<b>{chart_text(name)}</b>", *map(chart_text, lines)))


def ended(place: int, text: str) -> dict[str, Any]:
    """Return a short text in the place of a row without a point; the table has the whole reason."""
    return {
        "xref": "paper",
        "x": 0.01,
        "y": place,
        "xanchor": "left",
        "showarrow": False,
        "text": chart_text(text.partition(",")[0].partition(":")[0], 60),
    }
