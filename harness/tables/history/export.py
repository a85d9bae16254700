"""Export every point of a history as one long table for other programs: CSV or Parquet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import UserError, one_line
from harness.files import replace
from harness.plain_text import cell
from harness.tables.format import plain
from harness.tables.history.series import History, Series

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".csv", ".parquet")
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


def check(path: Path) -> None:
    """UserError for a file that cannot be written, before any work is done."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"--out {path}: points are written as {' or '.join(SUFFIXES)}; name such a file")
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise UserError(f"--out {path}: no file can be written there; choose another")


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


def write(history: History, path: Path) -> None:
    """Write the table in the format of the file's suffix; UserError where that fails."""
    table = frame(history)
    try:
        if path.suffix.lower() == ".csv":
            written = table.map(cell, na_action="ignore").rename(columns=cell)
            replace(path, written.to_csv(index=False, lineterminator="\n"))
        else:
            replace(path, table.to_parquet(index=False))
    except (OSError, ValueError, ImportError) as error:
        raise UserError(f"--out {path}: cannot be written: {one_line(error)}") from error
