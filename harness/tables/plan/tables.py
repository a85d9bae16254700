"""The plan of a suite as tables of text, printed like a report."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any

from harness.errors import counted
from harness.forecast import LEAST
from harness.tables import format
from harness.tables.format import DASH, Column, Show, Table, plain
from harness.tables.plan import scoring, speed
from harness.tables.plan.plan import (
    GIB,
    Plan,
    Row,
    as_dict,
    components,
    fits,
    largest_groups,
    phase_of_peak,
)
from harness.tables.report.build import Report

#: Names of the settings of `lorebench plan` in headings.
NAMES = {"batch": "batch", "seq_len": "length"}
#: Heads of the columns of components, by their key in the JSON file.
COMPONENTS = {name: name for name in ("weights", "gradients", "optimizer", "buffers")} | {
    "transient": "activations"
}

#: What a forecast of speed assumes.
SPEED = (
    "speed: each operation takes the longer of computing and of moving its bytes, plus a latency, one after "
    "the other and none fused; refresh: beyond an update without, spread over the period; MFU: share of the "
    "peak for full training of the dense model, HFU: for all operations"
)

MIB = 1 << 20

_gib = format.fixed(2)


def build(plan: Plan) -> Report:
    """Return all tables with their caption and notes."""
    trains = any(row.scoring is None for row in plan.rows)
    speeds = [speed.table(plan, device) for device in plan.devices] if trains else []
    scored = scoring.tables(plan, *_unit(plan))
    made = (_runs(plan), *speeds, _largest(plan), _components(plan), *scored)
    tables = [table for table in made if table]
    return Report(
        title=plain(f"{plan.suite}: what it needs"),
        question=plain(plan.question),
        tables=tuple(tables),
        caption=tuple(plain(text) for text in _caption(plan)),
        notes=tuple(plain(text) for text in _notes(plan)),
        lines=tuple(as_dict(plan)["rows"]),
    )


# --------------------------------------------------------------------------------------- the tables
def _stub(plan: Plan) -> tuple[Column, ...]:
    return (Column("config", tuple(plain(row.label) for row in plan.rows), numeric=False),)


def _column(plan: Plan, name: str, show: Any, numeric: bool = True) -> Column:
    """Return a column of one cell per row, a dash where `show` returns None."""
    shown = (show(row) for row in plan.rows)
    return Column(name, tuple(DASH if text is None else plain(text) for text in shown), numeric)


def _unit(plan: Plan) -> tuple[str, Show]:
    """Return the unit of the peaks, and how bytes are written in it."""
    large = any(row.report and row.report.peak_allocated_bytes >= GIB for row in plan.rows)
    return ("GiB", lambda size: _gib(size / GIB)) if large else ("MiB", lambda size: _gib(size / MIB))


def _runs(plan: Plan) -> Table:
    unit, show = _unit(plan)
    columns = [
        _column(plan, "done", lambda row: str(row.done)),
        _column(plan, "to do", lambda row: str(row.todo)),
        _column(plan, "minutes", _minutes),
        _column(plan, "steps", lambda row: row.steps and f"{row.steps:,}"),
        _column(plan, "tokens/step", lambda row: row.steps and f"{row.tokens_per_step:,}"),
        _column(plan, f"peak {unit}", lambda row: row.report and show(row.report.peak_allocated_bytes)),
    ]
    for gib in plan.device_gib:
        columns.append(
            _column(plan, f"fits {gib:g} GiB", lambda row, gib=gib: fits(plan.spare(row, gib)), False)
        )
    return Table("Runs", _stub(plan), tuple(columns))


def _minutes(row: Row) -> str | None:
    return None if row.seconds is None else format.fixed(1)(row.seconds / 60)


def _largest(plan: Plan) -> Table | None:
    columns = []
    settings = dict.fromkeys(setting for row in plan.rows for setting in row.largest)
    for setting, gib in product(settings, plan.device_gib):
        cells = partial(_capacity, setting=setting, gib=gib)
        columns.append(_column(plan, f"{NAMES[setting]}, {gib:g} GiB", cells, False))
    title = "The largest that fits (its peak; the peak of the next), GiB"
    return Table(title, _stub(plan), tuple(columns)) if columns else None


def _capacity(row: Row, setting: str, gib: float) -> str | None:
    found = row.largest.get(setting, {}).get(gib)
    if found is None or isinstance(found, str):
        return None
    following = "" if found.next_peak_bytes is None else _gib(found.next_peak_bytes / GIB)
    if found.peak_bytes is None:
        return f"none: {LEAST[found.setting]} needs {following}"
    return f"{found.largest} ({_gib(found.peak_bytes / GIB)}; {following or found.bound})"


def _components(plan: Plan) -> Table | None:
    if not any(row.report for row in plan.rows):
        return None
    unit, show = _unit(plan)
    columns = (
        *(
            _column(plan, head, partial(_component, name=name, show=show))
            for name, head in COMPONENTS.items()
        ),
        _column(plan, "peak in", _place, False),
        _column(plan, "largest groups at the peak of training", partial(_groups, show=show), False),
    )
    return Table(f"Memory at the peak of training, by component, {unit}", _stub(plan), columns)


def _component(row: Row, name: str, show: Show) -> str | None:
    found = components(row.report) if row.report else {}
    return show(found[name]) if name in found else None


def _place(row: Row) -> str | None:
    if row.report is None:
        return None
    phase = phase_of_peak(row.report)
    return f"{phase}, {row.report.peak.part}" if phase == "train" and row.report.peak else phase


def _groups(row: Row, show: Show) -> str | None:
    groups = largest_groups(row.report) if row.report else {}
    return "; ".join(f"{name} {show(size)}" for name, size in groups.items()) or None


# ------------------------------------------------------------------------------------ beside the tables
def _caption(plan: Plan) -> Iterator[str]:
    runs, done = sum(row.done + row.todo for row in plan.rows), sum(row.done for row in plan.rows)
    known = [row for row in plan.rows if row.todo and row.seconds is not None]
    text = f"{counted(runs, 'run')} on {plan.machine}: {done} done, {runs - done} to do"
    if runs > done:
        timed = sum(row.todo for row in known)
        text += f"; times known from records of equal runs: {timed}"
        text += f", {sum(row.seconds or 0 for row in known) / 60:.1f} minutes" if known else ""
    yield text
    if plan.setting:
        yield f"planned: {plan.setting}"
    if plan.device_gib or plan.devices:
        yield f"fits: the peak plus a reserve of {plan.reserve_gib:g} GiB is at most the memory of the device"
    yield plan.unseen
    if any(row.report for row in plan.rows):
        yield "activations: activations and temporaries, all that is alive beside the other components"
        yield "all peaks are predicted, none is measured"
    if any(row.scoring for row in plan.rows):
        yield scoring.CAPTION
    if plan.devices:
        yield SPEED
    for device in plan.devices:
        if device.assumed:
            yield f"{device.title}: assumed, not measured: {', '.join(device.assumed)}"


def _notes(plan: Plan) -> Iterator[str]:
    if plan.ranks is not None:
        yield f"ranks given: {plan.ranks}"
    sources: dict[str, list[str]] = {}
    for row in plan.rows:
        for method, source in (row.report.ranks if row.report else {}).items():
            sources.setdefault(f"{method}, which depend on values, by {source}", []).append(row.label)
    for source, labels in sources.items():
        yield f"ranks of {source} ({'; '.join(dict.fromkeys(labels))})"
    if alone := list(_training_alone(plan)):
        yield f"the peak is before training, in load or prepare; training alone needs: {'; '.join(alone)}"
    for row in plan.rows:
        if row.report is None:
            yield f"{row.label}: no forecast: {row.forecast}"
            continue
        reasons = [
            f"no largest {NAMES[setting]}: {found}"
            for setting, by_device in row.largest.items()
            for found in by_device.values()
            if isinstance(found, str)
        ]
        texts = dict.fromkeys([*reasons, *speed.notes(row), *scoring.notes(row), *row.report.warnings])
        yield from (f"{row.label}: {text}" for text in texts)


def _training_alone(plan: Plan) -> Iterator[str]:
    """Yield "label: peak of training" of each row whose peak is in an earlier phase."""
    unit, show = _unit(plan)
    for row in plan.rows:
        if row.report and row.report.train and phase_of_peak(row.report) in ("load", "prepare"):
            yield f"{row.label}: {show(row.report.train.peak_allocated_bytes)} {unit}"
