"""Draw the training losses of a suite's reference records: results/tables/SUITE-loss.svg.

Each line is the mean over a row's seeds, averaged over windows of updates so that lines can be told apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.studies.memory import charts
from harness import record, series
from harness import suite as suites
from harness.errors import UserError
from harness.tables.records import load

#: Suites with a chart.
SUITES = ("pretrain_small",)
#: Points of a line at most.
POINTS = 40

#: Tokens seen at the end of each window of updates, and the mean loss in it.
Line = tuple[list[float], list[float]]


def pages(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield the chart of each suite; one that was drawn from these values is left as it is."""
    for name in SUITES:
        lines = lines_of(name, root / "results" / "raw")
        path = root / "results" / "tables" / f"{name}-loss.svg"
        yield path, charts.current(path, [name, lines], partial(draw, name, lines))


def lines_of(name: str, raw: Path) -> dict[str, Line]:
    """Return the line of each row in the order of the suite; UserError where no record has a loss."""
    found: dict[str, list[record.Record]] = {run.name: [] for run in suites.load(name).runs}
    for folder in sorted(raw.glob(f"*/{name}")):
        for item in load(folder)[0]:
            if series.updates(item) and item.label in found:
                found[item.label].append(item)
    lines = {label: _line(items) for label, items in found.items() if items}
    if not lines:
        raise UserError(f"no records of suite {name!r} with a loss under {raw}")
    return lines


def _line(items: Sequence[record.Record]) -> Line:
    losses = list(map(series.losses, items))
    tokens = [
        item.training.tokens / len(loss) for item, loss in zip(items, losses, strict=True) if item.training
    ]
    updates = min(map(len, losses))
    mean = [fmean(values) for values in zip(*(loss[:updates] for loss in losses), strict=True)]
    width = -(-updates // POINTS)
    windows = [(first, min(first + width, updates)) for first in range(0, updates, width)]
    return [end * tokens[0] for _, end in windows], [fmean(mean[first:end]) for first, end in windows]


def draw(name: str, lines: dict[str, Line]) -> Any:
    """Draw one line per row over the tokens seen in training."""
    pyplot = charts.pyplot_for_files()
    figure, axes = pyplot.subplots(figsize=(8.0, 4.6), layout="constrained")
    for index, (label, (tokens, loss)) in enumerate(lines.items()):
        colour = charts.LINES[index % len(charts.LINES)]
        axes.plot([count / 1e6 for count in tokens], loss, label=label, color=colour, linewidth=1.8)
    axes.set_xlabel("tokens seen, millions")
    axes.set_ylabel("training loss, nats a token")
    axes.grid(True, color=charts.FAINT, linewidth=0.8)
    charts.plain(axes)
    figure.suptitle(f"{name}: loss in training", x=0.01, ha="left", fontsize=12, fontweight="bold")
    figure.legend(loc="outside lower center", ncols=min(len(lines), 6), frameon=False)
    return figure
