"""Export every point of a history as one long table for other programs: CSV or Parquet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from harness.plain_text import cell
from harness.tables.format import plain
from harness.tables.history.series import History, Series

if TYPE_CHECKING:
    import pandas as pd

#: Types of the columns that are not text; those of the environments follow the others.
TYPES = {
    "value": "float64",
    "commit_order": "int64",
    "dirty": "bool",
    "seed": "int64",
    "repeat": "int64",
    "step_before": "bool",
}
STAND = "stand_"


def frame(history: History) -> pd.DataFrame:
    """Return one row per point, finite or not; `step_before` is true at the first commit of a new level.

    Bytes are bytes and shares are shares of one; absent text is missing, never empty.
    """
    import pandas as pd

    keys = sorted({key for series in history.series for key in series.environment})
    lines = [line for series in history.series for line in _lines(history, series, keys)]
    table = pd.DataFrame(lines)
    return table.astype({column: TYPES.get(column, "string") for column in table.columns})


def _lines(history: History, series: Series, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    stepped = {change.second for change in series.change_points}
    environment = {_environment(key): series.environment.get(key) or None for key in keys}
    for point in sorted((*series.points, *series.lost), key=lambda point: point.order):
        commit = history.commits[point.order]
        yield {
            "suite": series.suite or None,
            "row": series.row or None,
            "quantity": series.quantity.key,
            "unit": series.quantity.unit or None,
            "value": point.value,
            "commit": commit.name,
            "commit_sha": commit.sha,
            "commit_order": point.order,
            "dirty": commit.dirty,
            "when": point.when,
            "seed": point.seed,
            "repeat": point.repeat,
            "run_id": plain(point.run_id),
            "config_id": plain(series.config_id),
            "series": series.id,
            "step_before": point.order in stepped,
            **environment,
        }


def _environment(key: str) -> str:
    return STAND + plain(key).replace(" ", "_")


def to_csv(history: History) -> str:
    """Return the table as CSV."""
    written = frame(history).map(cell, na_action="ignore").rename(columns=cell)
    return str(written.to_csv(index=False, lineterminator="\n"))


def to_parquet(history: History) -> bytes:
    """Return the table as a Parquet file."""
    return frame(history).to_parquet(index=False)


FORMATS: dict[str, Callable[[History], str | bytes]] = {"csv": to_csv, "parquet": to_parquet}
