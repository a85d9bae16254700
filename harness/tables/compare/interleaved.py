"""Compare two interleaved revisions: packages belong to a revision, repeats that agree are one cell."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import replace

from harness.tables.aggregate import grouped
from harness.tables.compare import judge as compared
from harness.tables.compare.comparison import Cell, Comparison
from harness.tables.compare.pairing import Loaded, Side
from harness.tables.compare.speed import QUANTITY
from harness.tables.format import plain

#: Separates, in a record, the driver of a GPU from the version of CUDA that torch was built with.
CUDA = ", CUDA "


def select(side: Side, wanted: Set[tuple[str, int]], repeats: int) -> Side:
    """Return the records of the wanted rows and seeds, at most `repeats` of each."""
    chosen = [
        item
        for item in side.records
        if (item.record.label, item.record.seed) in wanted and item.record.repeat < repeats
    ]
    return replace(side, records=tuple(chosen))


def compare(base: Side, candidate: Side, controls: Mapping[str, str]) -> Comparison:
    """Return all verdicts. Packages whose versions differ are noted, and cells stay comparable."""
    found = compared.compare(_without_packages(base), _without_packages(candidate), controls)
    before, after = _packages(base), _packages(candidate)
    moved = [
        plain(f"{name} {before.get(name, 'absent')} -> {after.get(name, 'absent')}")
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]
    cells = [*_joined(found.cells), *_untimed(base, candidate, found)]
    notes = (f"the environments differ: {', '.join(moved)}",) if moved else ()
    return replace(found, name="ab", cells=tuple(cells), notes=notes, whole=True)


def _packages(side: Side) -> dict[str, str]:
    """Return versions by name, with that of CUDA, which comes with torch."""
    found: dict[str, str] = {}
    for item in side.records:
        known = item.record.environment
        found |= known.packages if known else {}
        cuda = known.driver.partition(CUDA)[2] if known and known.driver else ""
        found |= {"CUDA": cuda} if cuda else {}
    return found


def _without_packages(side: Side) -> Side:
    """Remove versions of packages, since unknown fields never prevent a comparison."""
    return replace(side, records=tuple(map(_bare, side.records)))


def _bare(item: Loaded) -> Loaded:
    known = item.record.environment
    if known is None:
        return item
    driver = known.driver.partition(CUDA)[0] if known.driver else None
    own = known.model_copy(update={"packages": {}, "driver": driver})
    return replace(item, record=item.record.model_copy(update={"environment": own}))


def _untimed(base: Side, candidate: Side, found: Comparison) -> list[Cell]:
    """Return a cell for each row whose successful runs have no throughput, so that silence is no verdict."""
    timed = {(cell.suite, cell.row) for cell in found.cells if cell.quantity == QUANTITY}
    records = ([item.record for item in side.records] for side in (base, candidate))
    before, after = (
        {(r.suite, r.label) for r in several if r.outcome.status == "ok" and r.training is not None}
        for several in records
    )
    cause = "not measured: more updates are needed (train.steps), so that some of each kind are timed"
    cells = [Cell(*row, "all runs", QUANTITY, "x", cause) for row in sorted(before & after)]
    return [cell for cell in cells if (cell.suite, cell.row) not in timed]


def _joined(cells: Iterable[Cell]) -> list[Cell]:
    """Merge cells of a row that are equal but for their runs."""
    return [
        replace(cell, runs=f"{cell.runs} and {len(alike)} more") if alike else cell
        for cell, *alike in grouped(cells, _but_runs).values()
    ]


def _but_runs(cell: Cell) -> tuple[object, ...]:
    return cell.suite, cell.row, cell.quantity, cell.verdict, cell.cause, cell.differences
