"""The published figures, typed: `papers.yaml` read and checked, units turned into bytes.

A figure belongs to a row of the shapes suite and is set beside that row's peak, or, where a paper reckons
rather than measures, beside its weights and optimizer states. Why they differ stands beside the figures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from harness.suite import read_yaml
from harness.validation import validate

FILE = Path(__file__).with_name("papers.yaml")

#: Bytes of one unit. A paper's "G" or "GB" is taken as 10^9 unless its table says otherwise.
UNITS = {"MB": 10**6, "MiB": 2**20, "GB": 10**9, "GiB": 2**30}
Unit = Literal["MB", "MiB", "GB", "GiB"]


class Strict(BaseModel):
    """Frozen; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Cell(Strict):
    """One published figure, in the unit of its table, and the label of the row that it is set beside."""

    row: str
    value: Annotated[float, Field(gt=0)]


class Remark(Strict):
    """Why some figures differ from ours. Names in braces become figures of these rows (`table.facts`)."""

    rows: Annotated[tuple[str, ...], Field(min_length=1)]
    text: str


class PaperTable(Strict):
    """One published table, or the part of it that is about memory."""

    title: str
    paper: str
    source: str
    kind: Literal["measured", "estimated"]
    against: Literal["peak", "states"] = "peak"
    unit: Unit
    note: str = ""
    cells: Annotated[tuple[Cell, ...], Field(min_length=1)]
    remarks: tuple[Remark, ...] = ()

    def bytes_of(self, cell: Cell) -> float:
        """A figure of this table in bytes."""
        return cell.value * UNITS[self.unit]


class Papers(Strict):
    """All of them, in the order of the page."""

    tables: tuple[PaperTable, ...]


def load(path: Path = FILE) -> Papers:
    """Read the file; UserError in one line for anything that is not as above."""
    return validate(Papers, read_yaml(path), where=str(path))
