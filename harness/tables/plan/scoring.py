"""The forecast of scoring text by models that are compressed and not trained, as a table for each device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from harness.devices import DeviceProfile
from harness.forecast import Scoring
from harness.speed_forecast import SpeedForecast
from harness.tables.format import DASH, Column, Show, Table, plain
from harness.tables.plan.plan import Plan, Row, fits, largest_groups
from harness.tables.plan.speed import costliest, ms, percent

Known = TypeVar("Known")

TITLE = "Scoring text, forward only"
#: What the table shows, said where there is one.
CAPTION = (
    "scoring text: a forward pass without gradients over one batch of a row that does not train, train.batch "
    "sequences of data.seq_len tokens with all of their logits, as perplexity is measured; tokens: those "
    "that it predicts; its tokens/s do not compare with those of training; MFU there: 2 operations for each "
    "weight of the dense model and token"
)


def tables(plan: Plan, unit: str, show: Show) -> list[Table]:
    """Return a table for each device, or one without speed; none where no row has a forecast of scoring.

    Peaks are written by `show` in `unit`. Rows that train are left out.
    """
    rows = [row for row in plan.rows if row.scoring or (row.steps is None and row.report is None)]
    if not any(row.scoring for row in rows):
        return []
    stub = (Column("config", tuple(plain(row.label) for row in rows), numeric=False),)
    if not plan.devices:
        return [Table(f"{TITLE}, forecast", stub, tuple(_memory(plan, rows, unit, show)))]
    return [
        Table(
            f"{TITLE}, on {device.title}, forecast",
            stub,
            (*_memory(plan, rows, unit, show, device), *_speed(plan, rows, device)),
        )
        for device in plan.devices
    ]


def _memory(
    plan: Plan, rows: Sequence[Row], unit: str, show: Show, device: DeviceProfile | None = None
) -> Iterator[Column]:
    known = [row.scoring for row in rows]
    yield _column("tokens", known, lambda each: f"{each.tokens:,}")
    yield _column(f"peak {unit}", known, lambda each: show(each.peak_allocated_bytes))
    yield _column("largest groups at the peak", known, partial(_groups, show=show), False)
    for gib in dict.fromkeys((*plan.device_gib, *((device.memory_gib,) if device else ()))):
        spare = [fits(plan.spare_scoring(row, gib)) for row in rows]
        yield Column(f"fits {gib:g} GiB", tuple(text or DASH for text in spare), numeric=False)


def _groups(scoring: Scoring, show: Show) -> str:
    return "; ".join(f"{name} {show(size)}" for name, size in largest_groups(scoring).items())


def _speed(plan: Plan, rows: Sequence[Row], device: DeviceProfile) -> Iterator[Column]:
    found = [row.scoring_speed.get(device.title) for row in rows]
    known = [each if isinstance(each, SpeedForecast) else None for each in found]
    bases = (each for row, each in zip(rows, known, strict=True) if row.label == plan.baseline)
    base = next(bases, None)
    yield _column("tokens/s", known, lambda each: f"{each.tokens_per_s:,.0f}")
    if base is not None:
        yield _column("ratio", known, lambda each: f"{each.tokens_per_s / base.tokens_per_s:.2f}")
    yield _column("MFU %", known, lambda each: percent(each.mfu))
    yield _column("HFU %", known, lambda each: percent(each.hfu))
    yield _column("ms", known, lambda each: ms(each.step_s))
    yield _column("costliest operations, % of the time", known, costliest, False)


def _column(
    name: str, values: Sequence[Known | None], show: Callable[[Known], str | None], numeric: bool = True
) -> Column:
    """Return a column of one cell per value, a dash where nothing is known."""
    shown = (None if value is None else show(value) for value in values)
    return Column(name, tuple(DASH if text is None else plain(text) for text in shown), numeric)


def notes(row: Row) -> list[str]:
    """Return why a config has no forecast of the speed of scoring."""
    found = row.scoring_speed.items()
    return [f"no speed of scoring on {device}: {each}" for device, each in found if isinstance(each, str)]
