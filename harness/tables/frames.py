"""Read records as pandas frames: `from harness import load_records`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import series
from harness.record import Record
from harness.series import Series
from harness.tables import records

if TYPE_CHECKING:
    import pandas as pd

#: Sections with a key for each matrix of the model: one cell each.
BY_MATRIX = ("parameters.ranks", "parameters.chosen_ranks", "parameters.spectra")


def load_records(*paths: str | Path, updates: bool = False) -> pd.DataFrame:
    """Return a frame with a row for each run, or for each update, of the records below some folders.

    A path is a folder, by default `runs`, or a record file. The index is `run_id`, for updates with `step`,
    counted from 1. Columns of runs are the keys of the record, dotted: `label`, `outcome.status`,
    `config.train.lr`, `config.method.0.name`, `memory.train.peak_allocated_bytes`. Columns of updates are
    those of the file beside the record: `loss`, `lr`, `grad_norm`, `step_s`, `refresh_step` and `ranks`.
    What was not measured is missing. A file that holds no record is left out with a warning; UserError where
    a path does not exist, or the updates of a record cannot be read.
    """
    import pandas as pd

    found = list(_found(paths or ("runs",)))
    if not updates:
        lines = [dict(_flat(record.model_dump(exclude_none=True))) for record in found]
        return pd.DataFrame(lines, columns=_columns(lines, "run_id")).set_index("run_id")
    lines = [line for record in found for line in _updates(record)]
    return pd.DataFrame(lines, columns=_columns(lines, "run_id", "step")).set_index(["run_id", "step"])


def _found(paths: tuple[str | Path, ...]) -> Iterator[Record]:
    for path in paths:
        for file, record, reason in records.read_below(Path(path)):
            if record is None:
                warnings.warn(f"{file}: left out: {reason}", stacklevel=3)
            else:
                yield record


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested sections by their dotted keys; a list of sections is one by position."""
    for key, value in section.items():
        name = f"{prefix}{key}"
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            value = dict(enumerate(value))
        if isinstance(value, dict) and name not in BY_MATRIX:
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _columns(lines: list[dict[str, Any]], *first: str) -> list[str]:
    return list(dict.fromkeys((*first, *(name for line in lines for name in line))))


def _updates(record: Record) -> Iterator[dict[str, Any]]:
    course = series.read(record) if record.series else _older(record)
    columns = {name: values for name, values in vars(course).items() if len(values)}
    for step in range(len(course)):
        values = {name: column[step] for name, column in columns.items()}
        yield {"run_id": record.run_id, "step": step + 1, **values}


def _older(record: Record) -> Series:
    """Return the updates of a record that holds them itself; its timed updates have no number."""
    training = record.training
    if training is None:
        return Series((), ())
    moves = {move.step: move.ranks for move in training.rank_moves}
    ranks = [moves.get(step) for step in range(1, len(training.loss) + 1)] if moves else []
    return Series(training.loss, training.lr, training.grad_norm, ranks=ranks)
