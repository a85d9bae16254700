"""What all charts of a page share: the drawing library, colours, axes and the names of rows on them.

Colours that stand for text and lines come from the page, which knows whether it is light or dark.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from harness.errors import UserError
from harness.tables.page.html import chart_text

#: Told apart on white and on black; with symbols, so that no reader depends on colour.
COLOURS = (
    "#3b7fc4",
    "#d06f1c",
    "#2f9459",
    "#d1495b",
    "#8a6fd1",
    "#a9713f",
    "#cf5fa8",
    "#78828e",
    "#8f8712",
    "#128fa0",
)
SYMBOLS = (
    "circle",
    "square",
    "diamond",
    "triangle-up",
    "cross",
    "star",
    "triangle-down",
    "x",
    "pentagon",
    "hexagon",
)
DASHES = ("solid", "dash", "dot", "dashdot")
#: Pixels of a plot without its legend, of a row, and of what surrounds rows.
HEIGHT = 360
_ROW_HEIGHT = 30
_AROUND = 110


@dataclass(frozen=True)
class Chart:
    """A chart with its number within the page, what a reader of it must know, and what is drawn."""

    name: str
    title: str
    caption: str
    content: dict[str, Any]


def library(part: str = "plotly.graph_objects") -> Any:
    """A module of the drawing library; UserError where it is not installed."""
    try:
        return importlib.import_module(part)
    except ImportError as error:
        raise UserError("the page needs plotly: pip install 'lorebench[page]'") from error


def library_script() -> str:
    """The drawing library for a browser, its one large function in parentheses.

    By these an engine knows that a function is called at once, and does not read its five million characters
    twice. A library that is wrapped in another way stays as it is.
    """
    text: str = library("plotly.offline").get_plotlyjs()
    begin, end = 'this, () => {\n"use strict"', "}));"
    head, found, rest = text.partition(begin)
    body, closed, after = rest.rpartition(end)
    if not found or not closed or begin in rest or after.strip():
        return text
    return f'{head}this, (() => {{\n"use strict"{body}}})));{after}'


def marker(place: int) -> dict[str, Any]:
    """How a row is drawn in every chart: colours repeat after ten rows, with another symbol."""
    turn = place // len(COLOURS)
    return {"color": COLOURS[place % len(COLOURS)], "symbol": SYMBOLS[(place + turn) % len(SYMBOLS)]}


def line(place: int) -> dict[str, Any]:
    """The same for a line."""
    return {
        "color": COLOURS[place % len(COLOURS)],
        "dash": DASHES[place // len(COLOURS) % len(DASHES)],
        "width": 1.6,
    }


def content(traces: Sequence[Any], **layout: Any) -> dict[str, Any]:
    """Traces and layout, checked by the library, as JSON without its default colours."""
    objects = library()
    drawn = objects.Figure(data=list(traces), layout=objects.Layout(template="none", **layout))
    found: dict[str, Any] = json.loads(drawn.to_json())
    found["layout"].pop("template", None)
    return found


def rows_axis(labels: Sequence[str]) -> dict[str, Any]:
    """A vertical axis with a line for each row, the first on top; equal labels stay apart."""
    return {
        "tickvals": list(range(len(labels))),
        "ticktext": [chart_text(label) for label in labels],
        "range": [len(labels) - 0.5, -0.5],
        "automargin": True,
        "fixedrange": True,
        "zeroline": False,
    }


def rows_height(count: int) -> int:
    """Pixels for so many rows, without a legend."""
    return _AROUND + _ROW_HEIGHT * count


def axis(title: str) -> dict[str, Any]:
    """An axis with a title that names its unit."""
    return {"title": {"text": chart_text(title)}, "automargin": True}


def legend_below() -> dict[str, Any]:
    """A legend at the lower edge, where it takes no width; the page makes room for it."""
    return {"orientation": "h", "yref": "container", "yanchor": "bottom", "y": 0, "xanchor": "left", "x": 0}


def ended(place: int, text: str) -> dict[str, Any]:
    """A few words in the place of a row that has nothing to draw; the table says all of it."""
    return {
        "xref": "paper",
        "x": 0.01,
        "y": place,
        "xanchor": "left",
        "showarrow": False,
        "text": chart_text(text.partition(",")[0].partition(":")[0], 60),
    }
