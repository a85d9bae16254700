"""Charts as SVG: bytes by method, and growth. Each holds a mark of the values that it was drawn from.

`is_of` compares the mark, so a chart that is up to date needs no drawing, and another version of the drawing
library causes no drift.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import UserError

#: Okabe & Ito's palette, safe for colour-blind readers, with grey for what does not train.
COLOURS = {
    "weights, trainable": "#0072B2",
    "weights, frozen": "#999999",
    "gradients": "#E69F00",
    "optimizer states": "#009E73",
    "buffers": "#F0E442",
    "activations and workspace": "#CC79A7",
}
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
INK, FAINT = "#222222", "#DDDDDD"
GIB = 2**30


@dataclass(frozen=True)
class Bars:
    """Bytes by part, one of COLOURS, for each method."""

    title: str
    bars: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Panel:
    """Lines over one quantity: x and bytes by the name of the line."""

    title: str
    axis: str
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    logarithmic: bool = False


def mark(data: Any) -> str:
    """Return the mark of a chart of these values."""
    text = json.dumps(data, sort_keys=True, default=vars)
    return f"figures {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def is_of(path: Path, data: Any) -> bool:
    """Return whether a chart was drawn from these values."""
    return path.exists() and mark(data) in path.read_text(encoding="utf-8")


def current(path: Path, data: Any, draw: Callable[[], Any]) -> str:
    """Return the text of a chart of these values: that of the file where it is one, else of a new figure."""
    return path.read_text(encoding="utf-8") if is_of(path, data) else svg(draw(), data)


def bars_figure(data: Bars) -> Any:
    """Draw one stacked bar for each method, its sum behind it."""
    pyplot = pyplot_for_files()
    figure, axes = pyplot.subplots(figsize=(9.0, 1.9 + 0.44 * len(data.bars)), layout="constrained")
    sums = {name: sum(parts.values()) for name, parts in data.bars.items()}
    for place, parts in enumerate(data.bars.values()):
        left = 0.0
        for part, colour in COLOURS.items():
            width = parts.get(part, 0) / GIB
            edge = {"edgecolor": "white", "linewidth": 0.6}
            axes.barh(place, width, left=left, color=colour, height=0.68, **edge)
            left += width
        behind = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        beside = left + 0.012 * max(sums.values()) / GIB
        axes.text(beside, place, f"{left:.1f}", va="center", color=INK, bbox=behind)
    axes.set_yticks(range(len(data.bars)), list(data.bars))
    axes.invert_yaxis()
    axes.set_xlim(0, 1.09 * max(sums.values()) / GIB)
    axes.set_xlabel("GiB at the peak of training")
    axes.xaxis.grid(True, color=FAINT, linewidth=0.8)
    axes.tick_params(length=0)
    plain(axes)
    shown = [part for part in COLOURS if any(parts.get(part, 0) for parts in data.bars.values())]
    handles = [pyplot.Rectangle((0, 0), 1, 1, color=COLOURS[part]) for part in shown]
    figure.suptitle(data.title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    figure.legend(handles, shown, loc="outside lower center", ncols=3, frameon=False)
    return figure


def lines_figure(title: str, panels: Sequence[Panel]) -> Any:
    """Draw panels beside each other with one legend below."""
    pyplot = pyplot_for_files()
    figure, found = pyplot.subplots(
        1, len(panels), figsize=(4.0 * len(panels), 4.4), layout="constrained", squeeze=False
    )
    for axes, panel in zip(found[0], panels, strict=True):
        for index, (name, (x, y)) in enumerate(panel.lines.items()):
            style = {"color": LINES[index % len(LINES)], "marker": MARKERS[index % len(MARKERS)]}
            axes.plot(x, [size / GIB for size in y], label=name, markersize=5, linewidth=1.8, **style)
        if panel.logarithmic:
            _logarithmic(axes, panel)
        else:
            axes.set_ylim(bottom=0)
            axes.set_xlim(left=0)
        axes.set_title(panel.title, fontsize=10.5, loc="left", color=INK)
        axes.set_xlabel(panel.axis)
        axes.grid(True, color=FAINT, linewidth=0.8)
        plain(axes)
    found[0][0].set_ylabel("GiB at the peak of training")
    handles, labels = found[0][0].get_legend_handles_labels()
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return figure


def _logarithmic(axes: Any, panel: Panel) -> None:
    """Make both axes logarithmic, with ticks at each x and at 1, 2 and 5 times powers of ten."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    x = sorted({value for own, _ in panel.lines.values() for value in own})
    y = [size / GIB for _, own in panel.lines.values() for size in own]
    marks = [digit * 10.0**power for power in range(-3, 5) for digit in (1, 2, 5)]
    marks = [mark for mark in marks if min(y) / 1.3 <= mark <= 1.3 * max(y)]
    axes.set_xticks(x, [f"{value / 1e9:.1f}B" if value >= 1e9 else f"{value / 1e6:.0f}M" for value in x])
    axes.set_yticks(marks, [f"{mark:g}" for mark in marks])
    axes.minorticks_off()


def plain(axes: Any) -> None:
    """Remove the spines that carry no information."""
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)


def svg(figure: Any, data: Any) -> str:
    """Return a figure as SVG, marked with the values that it was drawn from."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Description": mark(data)}, dpi=150)
    pyplot_for_files().close(figure)
    return text.getvalue()


def pyplot_for_files() -> Any:
    """Return pyplot, set up so that equal values give equal files; UserError where it is missing."""
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ImportError as error:
        raise UserError("charts need matplotlib: pip install 'lorebench[charts]'") from error
    matplotlib.use("svg")
    matplotlib.rcParams.update(
        {"svg.hashsalt": "lorebench", "svg.fonttype": "path", "font.family": "DejaVu Sans", "font.size": 10}
    )
    return importlib.import_module("matplotlib.pyplot")
