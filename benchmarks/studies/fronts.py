"""Draw quality against the memory of LLaMA-2 7B, a point a row: results/tables/SUITE-front.svg.

Perplexity is the mean over seeds on the suite's own model, memory the forecast of its section `at_scale`;
both are read from the suite's table, results/tables/SUITE.csv.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.studies.memory import charts
from harness.errors import UserError
from harness.tables.page.tradeoffs import front

#: Suites with a chart, and the perplexity that each is judged by.
SUITES = {"zoo": "world-b", "related": "world-b", "related_pretrain": "world-a"}

#: GiB at the peak of training, and perplexity.
Point = tuple[float, float]


def pages(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield the chart of each suite; one that was drawn from these values is left as it is."""
    for name, text in SUITES.items():
        points = points_of(root / "results" / "tables" / f"{name}.csv", text)
        path = path_of(root, name)
        yield path, charts.current(path, [name, text, points], partial(draw, name, text, points))


def path_of(root: Path, name: str) -> Path:
    """Return where the chart of a suite is."""
    return root / "results" / "tables" / f"{name}-front.svg"


def points_of(path: Path, text: str) -> dict[str, Point]:
    """Return the point of each row of a table that has both values; UserError where none has."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = ("at_scale_peak_bytes", f"perplexity_{text}_mean")
    found = {
        row["method"]: (float(row[wanted[0]]) / charts.GIB, float(row[wanted[1]]))
        for row in rows
        if all(row.get(key) for key in wanted)
    }
    if not found:
        raise UserError(f"{path}: no row has both {' and '.join(wanted)}")
    return found


def draw(name: str, text: str, points: Mapping[str, Point]) -> Any:
    """Draw a number for each row, the front of those that no other beats in both, and a key of numbers."""
    pyplot = charts.pyplot_for_files()
    figure, axes = pyplot.subplots(figsize=(9.0, 5.6), layout="constrained")
    best = front(list(points.values()), ("lower", "lower"))
    order = [list(points.values())[place] for place in best]
    axes.step(*zip(*order, strict=True), where="post", color=charts.COLOURS["weights, frozen"], linestyle=":")
    for place, (label, point) in enumerate(points.items()):
        colour = charts.LINES[0] if place in best else charts.COLOURS["weights, frozen"]
        axes.plot(*point, "o", color=colour, markersize=5, label=f"{place + 1}  {label}")
        axes.annotate(str(place + 1), point, (3, 3), textcoords="offset points", fontsize=8, color=charts.INK)
    axes.set(xscale="log", yscale="log")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("{x:g}")
    axes.set_xlabel("GiB at the peak of training LLaMA-2 7B, forecast")
    axes.set_ylabel(f"perplexity on {text}, embedded model")
    axes.grid(True, which="both", color=charts.FAINT, linewidth=0.8)
    charts.plain(axes)
    figure.suptitle(f"{name}: lower left is better", x=0.01, ha="left", fontsize=12, fontweight="bold")
    figure.legend(loc="outside right upper", frameon=False, handlelength=0.8, fontsize=8)
    return figure
