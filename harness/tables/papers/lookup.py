"""Look up our values: in calculations, forecasts, records and other printed cells."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from harness import devices
from harness.errors import UserError, counted, nearest
from harness.files import visible
from harness.record import Record
from harness.suite import suites_folder
from harness.tables.aggregate import Row
from harness.tables.aggregate import rows as rows_of
from harness.tables.papers import published
from harness.tables.papers.published import Cell
from harness.tables.papers.schema import Calculated, Paper, Predicted, Printed, Recorded, Selector, Timed
from harness.tables.records import read_each

#: Bytes of a forecast by what is asked for; states are what training keeps beside activations and gradients.
WEIGHTS = ("weights_trainable_bytes", "weights_frozen_bytes")
PARTS = {
    "peak": ("peak_allocated_bytes",),
    "weights": WEIGHTS,
    "gradients": ("gradients_bytes",),
    "optimizer": ("optimizer_bytes",),
    "states": (*WEIGHTS, "optimizer_bytes", "buffers_bytes"),
}
UNITS = {"peak_allocated_bytes": "bytes", "tokens_per_s": "tokens/s"}
#: Bytes in one unit. `G` is that of GaLore's tables (arXiv 2403.03507): 1024 times 10^6 bytes, which is
#: millions of numbers, times their bytes, over 1024 (found by calculation: benchmarks/papers/calculations).
BYTE_UNITS: dict[str, float] = {
    "bytes": 1,
    "MB": 10**6,
    "MiB": 2**20,
    "GiB/1000": 2**30 / 1000,
    "GB": 10**9,
    "GiB": 2**30,
    "G": 1024 * 10**6,
}
#: Kinds of units that can be turned into each other.
KINDS: tuple[dict[str, float], ...] = (
    BYTE_UNITS,
    {"x": 1, "ratio": 1, "share": 1, "percent": 0.01},
    {"ppl": 1, "perplexity": 1},
)


@dataclass(frozen=True)
class Ours:
    """Our number, text or truth, and how it was obtained."""

    value: float | str | bool
    by: Literal["calculated", "predicted", "measured", "printed"]
    how: str = ""
    conditions: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Sources:
    """The files that our values come from: results of the project, and folders of records."""

    papers: Path
    results: Path
    records: tuple[Path, ...]
    _rows: dict[str, list[Row]] = field(default_factory=dict)
    _papers: dict[str, Paper] = field(default_factory=dict)

    @cached_property
    def calculations(self) -> dict[str, Mapping[str, Any]]:
        """Return every evaluated call by its text."""
        path = self.results / "calculations.json"
        entries = _json(path, "nox -s tables")
        if not isinstance(entries, list) or not all(isinstance(item, dict) for item in entries):
            raise UserError(f"{path}: not a list of calculations; run nox -s tables")
        return {_call(item["calculation"], item.get("with", {})): item for item in entries}

    @cached_property
    def forecasts(self) -> dict[str, Mapping[str, Any]]:
        """Return the rows of the plan of the shapes suite by label."""
        path = self.results / "forecasts" / "shapes.json"
        return {row["label"]: row for row in _json(path, "nox -s bench-shapes")["rows"]}

    def paper(self, name: str) -> Paper:
        """Return a paper, read once; UserError as from `published.load`."""
        if name not in self._papers:
            self._papers[name] = published.load(self.papers, name)
        return self._papers[name]

    @cached_property
    def printed(self) -> dict[str, list[Cell]]:
        """Return the cells of every paper."""
        names = published.available(self.papers)
        return {name: list(published.cells(name, self.paper(name))) for name in names}

    def take(self, suite: str, records: Iterable[Record]) -> None:
        """Use these records of a suite, already read, in place of its files."""
        self._rows[suite] = rows_of(item for item in records if item.outcome.status == "ok")

    # ------------------------------------------------------------------------------------- looking up
    def find(self, cell: Cell) -> Ours | None:
        """Return our value in the unit of the cell, by the first selector that has one."""
        try:
            found = (self._one(selector, cell.unit) for selector in cell.answer.selectors)
            return next((ours for ours in found if ours is not None), None)
        except UserError as error:
            raise UserError(f"{cell.where}: {error}") from error

    def _one(self, selector: Selector, unit: str) -> Ours | None:
        if isinstance(selector, Calculated):
            return self._calculated(selector, unit)
        if isinstance(selector, Predicted):
            return self.predicted(selector, unit)
        if isinstance(selector, Timed):
            return self._timed(selector)
        if isinstance(selector, Recorded):
            return self._recorded(selector, unit)
        other = self.printed_cell(selector)
        return Ours(other.published, "printed", f"as printed in {other.paper}, {other.table.id}")

    def _calculated(self, selector: Calculated, unit: str) -> Ours:
        entry = self.calculation(selector)
        value = entry["value"]
        if not isinstance(value, (bool, str)):
            value = converted(value, str(entry.get("unit", "")), unit)
        return Ours(value, "calculated", str(entry.get("how", "")))

    def calculation(self, selector: Calculated) -> Mapping[str, Any]:
        """Return the entry of one call; UserError for a call that has not been evaluated."""
        call = _call(selector.calculation, selector.arguments)
        if call not in self.calculations:
            raise UserError(f"no value of {call} yet; run nox -s tables")
        return self.calculations[call]

    def predicted(self, selector: Predicted, unit: str) -> Ours:
        """Return what a forecast says, or two say together, in a unit."""
        what = {"peak": "peak of training", "states": "weights and optimizer states"}
        how = f"{what.get(selector.part, selector.part)} of {selector.forecast!r} of suite shapes, simulated"
        size = self.forecast_bytes(selector.forecast, selector.part)
        if selector.beside is None:
            return Ours(converted(size, "bytes", unit), "predicted", how)
        other = self.forecast_bytes(selector.beside, selector.part)
        how += f", beside that of {selector.beside!r}"
        if selector.give == "difference":
            return Ours(converted(size - other, "bytes", unit), "predicted", how)
        share = size / other if selector.give == "ratio" else (size - other) / size
        return Ours(converted(share, "share", unit), "predicted", how)

    def size(self, selector: Calculated | Predicted) -> float:
        """Return bytes by a calculation or a forecast; UserError for anything but bytes."""
        if isinstance(selector, Predicted):
            return float(self.predicted(selector, "bytes").value)
        return float(self._calculated(selector, "bytes").value)

    def forecast_bytes(self, label: str, part: str) -> int:
        """Return the bytes of some PARTS of a forecast; UserError where there is no forecast."""
        return sum(int(self._forecast(label)["forecast"]["train"][name]) for name in PARTS[part])

    def _forecast(self, label: str) -> Mapping[str, Any]:
        """Return the row of a plan with its forecast; UserError where there is none."""
        found = self.forecasts.get(label)
        if found is None:
            raise UserError(f"no forecast {label!r}; {nearest(label, self.forecasts)}")
        if not found["forecast"]:
            raise UserError(f"the forecast {label!r} failed: {found['reason']}; run nox -s bench-shapes")
        return found

    def _timed(self, selector: Timed) -> Ours:
        """Return the forecast of a speed on a device; UserError where there is none."""
        device = devices.profile(selector.on).title
        known = {each["device"]: each for each in self._forecast(selector.speed)["speed"]}
        if device not in known or selector.give not in known[device]:
            raise UserError(f"no speed of {selector.speed!r} on {device} yet; run nox -s bench-shapes")
        value = known[device][selector.give] / selector.per
        how = f"speed of {selector.speed!r} of suite shapes, forecast"
        return Ours(value, "predicted", how, (("device", f"{device}, forecast with assumed rates"),))

    def printed_cell(self, selector: Printed) -> Cell:
        """Return the one published cell selected; UserError where there are none or several."""
        if selector.paper not in self.printed:
            raise UserError(f"no paper {selector.paper!r}; {nearest(selector.paper, self.printed)}")
        found = [
            cell
            for cell in self.printed[selector.paper]
            if cell.table.id == selector.table
            if cell.quantity == (selector.quantity or cell.table.value)
            if all(cell.row.get(key) == value for key, value in selector.where.items())
        ]
        if len(found) != 1:
            raise UserError(
                f"{len(found)} cells of {selector.paper}, {selector.table} have {selector.where}; name one"
            )
        return found[0]

    def _recorded(self, selector: Recorded, unit: str) -> Ours | None:
        name, label = Path(selector.suite).name, selector.only.get("label")
        key = selector.quantity.replace(".", "_", 1)
        found = [
            (len(row.records), row, value)
            for row in self._of_suite(name)
            if row.label == label
            and all(row.settings.get(k) == v for k, v in selector.only.items() if k != "label")
            if (value := _measured(row, key)) is not None
        ]
        if not found:
            return None
        _, row, value = max(found, key=lambda item: item[0])
        given = UNITS.get(selector.quantity, "share" if key.startswith("accuracy_") else unit)
        ours = converted(value, given, unit) if selector.per is None else value / selector.per
        device = row.environment.get("device")
        how = f"mean of {counted(len(row.records), 'run')} of suite {name}"
        return Ours(ours, "measured", how, (("device", device),) if device else ())

    def _of_suite(self, name: str) -> list[Row]:
        """Return the rows of a suite over all folders of records, without those that cannot be read."""
        if name not in self._rows:
            found: dict[str, Record] = {}
            for folder in self.records:
                for path, item, _ in read_each(visible(folder, f"*/{name}/*.json"), name):
                    if item is not None:
                        found.setdefault(f"{path.parent.parent.name}/{path.stem}", item)
            self._rows[name] = rows_of(item for item in found.values() if item.outcome.status == "ok")
        return self._rows[name]


def converted(value: float, given: str, wanted: str) -> float:
    """Convert a value to another unit; UserError where the two cannot be compared.

    A value without a unit has that of the published values that it was made of.
    """
    if given in (wanted, ""):
        return value
    for kind in KINDS:
        if given in kind and wanted in kind:
            return value * kind[given] / kind[wanted]
    raise UserError(
        f"a value in {given!r} cannot be compared with one in {wanted!r}; name the same kind of unit"
    )


def command(selectors: Sequence[Selector]) -> list[str] | None:
    """Return the words of the command that would fill a cell, None where no suite can."""
    for selector in selectors:
        if isinstance(selector, Recorded):
            shipped = (suites_folder() / f"{selector.suite}.yaml").relative_to(suites_folder().parents[1])
            only = [word for key, value in selector.only.items() for word in ("--only", f"{key}={value}")]
            return ["lorebench", "run", shipped.as_posix(), *only]
    return None


def _measured(row: Row, key: str) -> float | None:
    """Return the mean of a quantity, whose name may end with the options of a protocol."""
    names = [name for name in row.stats if name == key or name.startswith(f"{key}(")]
    return row.mean(names[0]) if len(names) == 1 else None


def _call(name: str, arguments: Mapping[str, Any]) -> str:
    return f"{name} {json.dumps(arguments, sort_keys=True)}"


def _json(path: Path, remedy: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; run {remedy}") from error
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON: {error}; run {remedy}") from error


def sources(root: Path, *records: Path) -> Sources:
    """Return the sources of a checkout, with further folders of records searched first."""
    results = root / "results"
    return Sources(published.folder(), results, (*records, results / "raw"))
