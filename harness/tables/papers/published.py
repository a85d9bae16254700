"""Read the published tables: one cell for each transcribed value, with its answer.

The schema of the files is in `papers/schema.py`, verdicts are in `papers/judge.py`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from harness.errors import UserError, nearest
from harness.files import visible
from harness.suite import read_yaml, suites_folder
from harness.tables.papers.schema import (
    Answer,
    Calculated,
    Collected,
    Obtained,
    Paper,
    Table,
    Tolerance,
    Values,
)
from harness.validation import validate

#: The page of claims lies beside the papers and is no paper.
ERRATA = "errata"
PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Cell:
    """One printed value with the answer that is its own; `quantity` is its key in the row."""

    paper: str
    table: Table
    number: int
    quantity: str
    values: Values
    answer: Answer
    unit: str

    @property
    def row(self) -> Mapping[str, Any]:
        """Return the transcribed row."""
        return self.table.rows[self.number]

    @property
    def published(self) -> Any:
        """Return the value as printed: a number, a text, or a list of numbers."""
        return self.row[self.quantity]

    @property
    def primary(self) -> bool:
        """Return whether it is the one value by which its row counts."""
        return self.quantity == self.table.value

    @property
    def keys(self) -> dict[str, Any]:
        """Return the keys that tell the row apart."""
        return {key: self.row[key] for key in self.table.keys if key in self.row}

    @property
    def obtained(self) -> Obtained:
        """Return how the paper obtained the value."""
        return self.answer.obtained or self.values.obtained

    @property
    def tolerance(self) -> Tolerance | None:
        """Return the tolerance of the answer, else of the column of values."""
        return self.answer.tolerance or self.values.tolerance

    @property
    def column(self) -> tuple[str, ...]:
        """Return the same for cells of one column: those that agree in all that is not compared."""
        kept = (f"{key}={value}" for key, value in self.keys.items() if key not in self.table.compare)
        return (self.table.id, self.quantity, self.unit, *kept)

    @property
    def where(self) -> str:
        """Return the cell in words, for a message."""
        said = ", ".join(f"{key} {value}" for key, value in self.keys.items())
        return f"{self.paper}, {self.table.id}, {said}"


# -------------------------------------------------------------------------------------------- reading
def folder() -> Path:
    """Return the folder of the papers that ship."""
    return suites_folder().with_name("papers")


def available(place: Path) -> list[str]:
    """Return the names of the papers, which are those of the files."""
    return sorted(path.stem for path in visible(place, "*.yaml") if path.stem != ERRATA)


def load(place: Path, name: str) -> Paper:
    """Read one paper; UserError in one line for an unknown name and for anything that does not fit."""
    known = available(place)
    if name not in known:
        raise UserError(f"no paper {name!r}; {nearest(name, [*known, 'all', ERRATA])}")
    path = place / f"{name}.yaml"
    return validate(Paper, read_yaml(path), where=str(path))


def cells(name: str, paper: Paper) -> Iterator[Cell]:
    """Yield every printed value of a paper in the order of its tables, a row's own value first."""
    for table in paper.tables:
        for number, row in enumerate(table.rows):
            for quantity, values in {table.value: table, **table.also}.items():
                if quantity not in row:
                    continue
                answer = _answer(name, paper, table, values, row)
                unit = answer.unit or (str(row.get("unit", values.unit)) if values is table else values.unit)
                yield Cell(name, table, number, quantity, values, answer, unit)


def calls(place: Path, name: str) -> list[Calculated]:
    """Return every calculation that cells and remarks of a paper use, each once, its placeholders filled."""
    paper = load(place, name)
    columns = [values for table in paper.tables for values in (table, *table.also.values())]
    selectors = chain(
        (selector for cell in cells(name, paper) for selector in cell.answer.selectors),
        (size for values in columns for remark in values.remarks for size in remark.sizes.values()),
    )
    found = [selector for selector in selectors if isinstance(selector, Calculated)]
    return [call for number, call in enumerate(found) if call not in found[:number]]


def _answer(name: str, paper: Paper, table: Table, values: Values, row: Mapping[str, Any]) -> Answer:
    """Return the first answer that fits a row, its placeholders filled."""
    found = next((item for item in values.answers if fits(item.when, row)), None)
    if found is None:
        raise UserError(f"{name}, {table.id}: no answer fits the row {row}; add one without `when`")
    content = found.model_dump(by_alias=True, exclude_unset=True)
    if not PLACEHOLDER.search(str(content)):
        return found
    known = {**row, **{key: _collected(table, row, item) for key, item in table.collect.items()}}
    filled = _fill(content, {**paper.names, **table.names}, known, f"{name}, {table.id}")
    return validate(Answer, filled, where=f"{name}, {table.id}")


def _collected(table: Table, row: Mapping[str, Any], wanted: Collected) -> list[Any]:
    kept = [key for key in table.keys if key != wanted.over]
    return [
        other[table.value]
        for other in table.rows
        if all(other.get(key) == row.get(key) for key in kept)
        if other.get(wanted.over) not in wanted.without
    ]


def fits(when: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Return whether a row has all these values; of a list any suffices."""
    return all(
        row.get(key) in (wanted if isinstance(wanted, list) else [wanted]) for key, wanted in when.items()
    )


def _fill(value: Any, names: Mapping[str, Any], row: Mapping[str, Any], where: str) -> Any:
    """Replace placeholders; a text that is nothing but one becomes the value itself, of whatever type."""
    if isinstance(value, dict):
        return {key: _fill(item, names, row, where) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_fill(item, names, row, where) for item in value]
    if not isinstance(value, str):
        return value
    whole = PLACEHOLDER.fullmatch(value)
    if whole:
        return _fill_name(whole[1], names, row, where)
    return PLACEHOLDER.sub(lambda found: str(_fill_name(found[1], names, row, where)), value)


def _fill_name(name: str, names: Mapping[str, Any], row: Mapping[str, Any], where: str) -> Any:
    """Return the value of one placeholder: through a table of names, else the row's own."""
    if name not in names:
        if name not in row:
            raise UserError(f"{where}: nothing is called {{{name}}}; {nearest(name, [*names, *row])}")
        return row[name]
    ((key, mapping),) = names[name].items()
    given = row.get(key)
    if str(given) not in mapping:
        raise UserError(
            f"{where}: {{{name}}} has no name for {key} {given!r}; {nearest(str(given), mapping)}"
        )
    return _fill(mapping[str(given)], names, row, where)
