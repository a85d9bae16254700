"""Read records as pandas frames: `from harness import load_records`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import series
from harness.errors import UserError
from harness.record import Record
from harness.series import Series
from harness.tables import records

if TYPE_CHECKING:
    import pandas as pd

#: Sections with a key for each matrix of the model: one cell each.
BY_MATRIX = ("parameters.ranks", "parameters.chosen_ranks", "parameters.spectra")
#: What is one run, and no other.
INDEX = ("folder", "run_id")


def load_records(*paths: str | Path, updates: bool = False) -> pd.DataFrame:
    """Return a frame with a row for each run, or for each update, of the records below some folders.

    A path is a folder, by default `runs`, or a record file. The index is `folder`, that of the record, and
    `run_id`, which is unique only within a folder; for updates also `step`, counted from 1. No index comes
    twice: `updates.join(runs[["label"]])` works, and a record below two of the paths is one row.

    Columns of runs are the keys of the record, dotted: `label`, `suite`, `outcome.status`, `config.train.lr`,
    `config.method.0.name`, `memory.train.peak_allocated_bytes`. `machine` is the name of the folder above
    that of the suite. Columns of updates are those of the file beside the record: `loss`, `lr`, `grad_norm`,
    `step_s`, `refresh_step` and `ranks`. What was not measured is missing.

    A file that holds no record is left out with a warning, and so are the updates of a record whose file of
    updates cannot be read. UserError where a path does not exist.
    """
    import pandas as pd

    index, lines = [*INDEX, "step"] if updates else [*INDEX], list[dict[str, Any]]()
    for file, record in _found(paths or ("runs",)):
        key = {"folder": str(file.parent), "run_id": record.run_id}
        if not updates:
            lines.append(key | _machine(file, record) | dict(_flat(record.model_dump(exclude_none=True))))
            continue
        try:
            lines += (key | values for values in _updates(record))
        except UserError as error:
            warnings.warn(f"{file}: its updates are left out: {error}", stacklevel=2)
    return pd.DataFrame(lines, columns=_columns(lines, *index)).set_index(index)


def _found(paths: tuple[str | Path, ...]) -> Iterator[tuple[Path, Record]]:
    """Yield each file with its record, once; of a run that a folder holds twice, the first."""
    seen, taken = set[Path](), dict[tuple[Path, str], str]()
    for path in paths:
        for file, record, reason in records.read_below(Path(path)):
            if (place := file.resolve()) in seen:
                continue
            seen.add(place)
            if record is not None:
                first = taken.setdefault((file.parent.resolve(), record.run_id), file.name)
                if first == file.name:
                    yield file, record
                    continue
                reason = f"a copy of run {record.run_id}: {first} is read"
            warnings.warn(f"{file}: left out: {reason}", stacklevel=3)


def _machine(file: Path, record: Record) -> dict[str, str]:
    """Return the machine that the folders of a record name, `<machine>/<suite>`; none where they do not."""
    folder = Path(os.path.normpath(file.parent.absolute()))
    return {"machine": folder.parent.name} if folder.name == record.suite else {}


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
        yield {"step": step + 1, **values}


def _older(record: Record) -> Series:
    """Return the updates of a record that holds them itself; its timed updates have no number."""
    training = record.training
    if training is None:
        return Series((), ())
    moves = {move.step: move.ranks for move in training.rank_moves}
    ranks = [moves.get(step) for step in range(1, len(training.loss) + 1)] if moves else []
    return Series(training.loss, training.lr, training.grad_norm, ranks=ranks)
