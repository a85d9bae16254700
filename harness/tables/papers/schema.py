"""The schema of `benchmarks/papers/*.yaml`: a paper's tables, their rows as transcribed, and our answers.

A row says what tells it apart (`keys`), its printed value, and further printed values (`also`). An answer
says where our value comes from, or why there is none: the first of a table whose `when` fits a row is that
row's. Names in braces are filled from the row, through `names` where a paper calls something otherwise.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from harness.errors import UserError, nearest

#: Keys that any row may have beside those that its table names.
ALWAYS = ("unit", "note")

Obtained = Literal["measured", "arithmetic", "plot", "copied", "stated"]


class Strict(BaseModel):
    """Frozen; unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Calculated(Strict):
    """A call in results/calculations.json."""

    calculation: str
    arguments: dict[str, Any] = Field(default={}, alias="with")


class Predicted(Strict):
    """A forecast of the shapes suite, by label; `part` is the peak of training or some of its components.

    With `beside`, a second label: the first minus the second, the first over it, or by which share of the
    first the second is smaller.
    """

    forecast: str
    part: Literal["peak", "states", "weights", "gradients", "optimizer"] = "peak"
    beside: str | None = None
    give: Literal["difference", "ratio", "reduction"] = "difference"


class Timed(Strict):
    """A forecast of speed of the shapes suite, by label, on a device of benchmarks/devices.

    `per` divides it, where the paper counts in larger pieces.
    """

    speed: str
    on: str
    give: Literal["tokens_per_s", "step_s"] = "tokens_per_s"
    per: Annotated[float, Field(gt=0)] = 1.0


class Recorded(Strict):
    """A value measured by the records of a suite: `only` selects the run, `quantity` names what was measured.

    `suite` is its file under benchmarks without the ending. A quantity is `perplexity.PROTOCOL`,
    `accuracy.TASK`, or the name of any other value of a report, such as `peak_allocated_bytes`; `per`
    divides it, where the paper counts in larger pieces.
    """

    suite: str
    only: dict[str, str]
    quantity: str
    per: Annotated[float, Field(gt=0)] | None = None


class Printed(Strict):
    """Another published cell, such as one that a value is said to be taken from."""

    paper: str
    table: str
    where: dict[str, Any]
    quantity: str | None = None


Selector = Calculated | Predicted | Timed | Recorded | Printed


class Tolerance(Strict):
    """How far ours may be off; `factor` is how far beyond it still counts as the same order."""

    relative: Annotated[float, Field(ge=0)] = 0.0
    absolute: Annotated[float, Field(ge=0)] = 0.0
    factor: Annotated[float, Field(ge=1)] = 2.0
    reason: str


class Answer(Strict):
    """Where our value of some rows comes from: selectors in order, `needs` names what is missing beyond them.

    `reads` is the number that a printed text stands for, `unit` that of these rows. `conditions` are ours,
    set beside those of the table.
    """

    when: dict[str, Any] = {}
    ours: Selector | tuple[Selector, ...] = ()
    needs: Literal["weights", "data", "device"] | None = None
    does_not_run: bool = False
    why: str = ""
    obtained: Obtained | None = None
    tolerance: Tolerance | None = None
    reads: float | str | None = None
    unit: str | None = None
    conditions: dict[str, str] = {}
    copied_from: Printed | None = None

    @property
    def selectors(self) -> tuple[Selector, ...]:
        """One or several, as a tuple."""
        return self.ours if isinstance(self.ours, tuple) else (self.ours,)

    @model_validator(mode="after")
    def _says_something(self) -> Answer:
        uncertain = all(isinstance(item, Recorded) for item in self.selectors)
        if self.does_not_run or self.needs:
            if not self.why:
                raise UserError("an answer that says `needs` or `does_not_run` gives its reason in `why`")
        elif uncertain:
            raise UserError("an answer needs `ours`, and `needs` or `does_not_run` where ours may be missing")
        return self


class Remark(Strict):
    """Why values of some rows differ from ours, those that `when` fits.

    Names in braces become sizes over these rows (`papers/table.py`), or those that `sizes` gives a name, so
    that no number of ours is typed.
    """

    when: dict[str, Any] = {}
    text: str
    sizes: dict[str, Calculated | Predicted] = {}


class Values(Strict):
    """A column of printed values: what they are, in which unit, where ours come from, why they differ."""

    metric: str
    unit: str = ""
    obtained: Obtained = "measured"
    tolerance: Tolerance | None = None
    answers: Annotated[tuple[Answer, ...], Field(min_length=1)]
    remarks: tuple[Remark, ...] = ()


class Collected(Strict):
    """The printed values of the rows that differ from a row in one key alone: the terms of an average."""

    over: str
    without: tuple[Any, ...] = ()


class Table(Values):
    """One published table, or what a source states in running text."""

    id: str
    caption: str
    source: str
    confidence: Literal["verified", "secondary"]
    model: str = ""
    dataset: str = ""
    protocol: str = ""
    note: str = ""
    conditions: dict[str, str] = {}
    keys: Annotated[tuple[str, ...], Field(min_length=1)]
    value: str = "value"
    also: dict[str, Values] = {}
    columns: tuple[str, ...] = ()
    compare: tuple[str, ...] = ("method",)
    names: dict[str, dict[str, dict[str, Any]]] = {}
    collect: dict[str, Collected] = {}
    rows: Annotated[tuple[dict[str, Any], ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _rows_hold_what_is_declared(self) -> Table:
        known = {*self.keys, self.value, *self.also, *ALWAYS}
        for number, row in enumerate(self.rows, start=1):
            for key in row:
                if key not in known:
                    raise UserError(f"{self.id}, row {number}: unknown key {key!r}; {nearest(key, known)}")
            if self.value not in row:
                raise UserError(f"{self.id}, row {number}: no {self.value!r}; every row has a printed value")
        return self


class Source(Strict):
    """The paper itself."""

    title: str
    arxiv: str
    url: str
    code: str | None = None
    read: str


class Paper(Strict):
    """All tables of one paper."""

    paper: Source
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    names: dict[str, dict[str, dict[str, Any]]] = {}
    tables: tuple[Table, ...]
