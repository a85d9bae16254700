"""Charts of ranks: by layer and kind of matrix, and over training."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from harness import series
from harness.errors import UserError
from harness.record import RankMove, Record
from harness.tables.format import plain
from harness.tables.page import chart
from harness.tables.page.chart import Chart
from harness.tables.page.html import chart_text
from harness.tables.page.quantities import names
from harness.tables.page.training import run_name
from harness.tables.records import NOTE_LENGTH
from harness.tables.report.view import View

_NUMBERED = re.compile(r"(?:^|\.)([0-9]{1,6})\.")  # no model has a million layers
_FEW_LAYERS = 12  # up to so many layers the numbers are legible inside the map
Known = TypeVar("Known")


def placed(ranks: Mapping[str, Known]) -> tuple[list[str], list[int], dict[tuple[str, int], Known]]:
    """Return kinds of matrices, layers, and by (kind, layer) the value of each matrix.

    Matrices outside numbered layers are left out.
    """
    found: dict[tuple[str, int], Known] = {}
    for name, rank in ranks.items():
        number = _NUMBERED.search(name)
        if number:
            found[name[number.end() :], int(number[1])] = rank
    kinds = list(dict.fromkeys(kind for kind, _ in found))
    brief = {kind: kind.partition(".")[2] or kind for kind in kinds}  # `self_attn.` says nothing more
    if len(set(brief.values())) == len(kinds):
        found = {(brief[kind], layer): rank for (kind, layer), rank in found.items()}
        kinds = list(brief.values())
    return kinds, sorted({layer for _, layer in found}), found


def maps(view: View) -> tuple[list[Chart], list[str]]:
    """Return a map of ranks for each row in which they differ, and a line on each other row."""
    labels = names(view)
    differing, equal = [], []
    for place, row in enumerate(view.rows):
        # the first run that has ranks represents the row
        record = next((r for r in row.records if r.parameters and r.parameters.ranks), None)
        if record is None or record.parameters is None:
            continue
        ranks = record.parameters.ranks
        if len(set(ranks.values())) > 1 and placed(ranks)[0]:
            differing.append((place, record, ranks))
        else:
            low, high = min(ranks.values()), max(ranks.values())
            values = f"{low}" if low == high else f"{low} to {high}"
            equal.append(f"{labels[place]}: rank {values} in all {len(ranks)} matrices")
    most = max((max(ranks.values()) for *_, ranks in differing), default=0)
    longest_first = sorted((ranks for *_, ranks in differing), key=len, reverse=True)
    order = placed({name: rank for ranks in longest_first for name, rank in ranks.items()})[0]
    charts = [
        _map(run_name(labels[place], record), ranks, (most, order), f"ranks-{place}")
        for place, record, ranks in differing
    ]
    return charts, equal


def _map(title: str, ranks: Mapping[str, int], shared: tuple[int, list[str]], name: str) -> Chart:
    """Return one map; `shared` holds the largest rank and the order of kinds of all maps."""
    most, order = shared
    kinds, layers, found = placed(ranks)
    kinds.sort(key=lambda kind: order.index(kind) if kind in order else len(order))
    grid = [[found.get((kind, layer)) for layer in layers] for kind in kinds]
    hover = [
        [
            f"layer {layer}, {chart_text(kind)}: rank {found[kind, layer]}" if (kind, layer) in found else ""
            for layer in layers
        ]
        for kind in kinds
    ]
    trace: dict[str, Any] = {
        "type": "heatmap",
        "z": grid,
        "x": layers,
        "y": list(range(len(kinds))),
        "zmin": 0,
        "zmax": most,
        "xgap": 1,
        "ygap": 1,
        "colorscale": "Viridis",
        "colorbar": chart.colour_bar("rank"),
        "hovertext": hover,
        "hoverinfo": "text",
    }
    if len(layers) <= _FEW_LAYERS:
        trace["texttemplate"] = "%{z}"
    drawn = chart.content(
        [trace],
        xaxis=chart.axis("layer") | {"dtick": max(1, len(layers) // 8), "showgrid": False},
        **chart.rows(kinds, showgrid=False),
    )
    outside = {key: rank for key, rank in ranks.items() if not _NUMBERED.search(key)}
    others = "; ".join(f"{key}: {rank}" for key, rank in outside.items())
    caption = "rank by layer and kind of matrix; gaps have none" + (
        f"; outside the layers {others}" if others else ""
    )
    return Chart(name, title, caption, drawn)


# ---------------------------------------------------------------------------------------- movement
def moves(view: View) -> tuple[list[Chart], list[str]]:
    """Return, for each row whose ranks changed in training, a chart of the mean rank by kind over updates.

    The notes tell why a row is left out whose series cannot be read.
    """
    labels, found, notes = names(view), [], []
    for place, row in enumerate(view.rows):
        try:
            each = next((pair for pair in map(_with_moves, row.records) if _moved(pair[1])), None)
        except UserError as error:
            notes.append(f"{labels[place]} is not drawn: {plain(str(error), NOTE_LENGTH)}")
            continue
        if each:
            found.append(_moves(run_name(labels[place], each[0]), *each, f"moves-{place}"))
    return found, notes


def _with_moves(record: Record) -> tuple[Record, list[RankMove]]:
    return record, series.rank_moves(record)


def _moved(moved: Sequence[RankMove]) -> bool:
    """Return whether the rank of any matrix ever changed."""
    seen: dict[str, int] = {}
    for move in moved:
        if any(seen.get(name, rank) != rank for name, rank in move.ranks.items()):
            return True
        seen |= move.ranks
    return False


def course(record: Record, moved: Sequence[RankMove]) -> tuple[list[int], dict[str, list[float | None]]]:
    """Return the updates at which ranks changed, with the last, and after each the mean rank by kind."""
    kinds = placed({name: rank for move in moved for name, rank in move.ranks.items()})[0]
    known: dict[str, int] = {}
    steps: list[int] = []
    lines: dict[str, list[float | None]] = {kind: [] for kind in kinds}
    last = RankMove(step=record.training.steps if record.training else 0, ranks={})
    for move in (*moved, last):
        known |= move.ranks
        steps.append(move.step)
        _, _, grid = placed(known)
        for kind, line in lines.items():
            values = [rank for (of, _), rank in grid.items() if of == kind]
            line.append(math.fsum(values) / len(values) if values else None)
    return steps, lines


def _moves(title: str, record: Record, moved: Sequence[RankMove], name: str) -> Chart:
    steps, lines = course(record, moved)
    traces = [
        chart.scatter(
            "lines", steps, values, None, name=chart_text(kind), line=chart.line(place) | {"shape": "hv"}
        )
        for place, (kind, values) in enumerate(lines.items())
    ]
    drawn = chart.content(
        traces,
        xaxis=chart.axis("update"),
        yaxis=chart.axis("mean rank over the layers") | {"rangemode": "tozero"},
        legend=chart.legend_below(),
        hovermode="x unified",
        height=chart.HEIGHT,
    )
    return Chart(name, title, "mean over the matrices of a kind, after each change", drawn)
