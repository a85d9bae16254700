"""The forecast speed of a suite's configs on one device as a table."""

from __future__ import annotations

from collections.abc import Callable

from harness.devices import DeviceProfile
from harness.speed_forecast import TIMED, SpeedForecast
from harness.tables import format
from harness.tables.format import DASH, Column, Table, plain
from harness.tables.plan.plan import Plan, Row, fits

COSTLIEST = 5


def table(plan: Plan, device: DeviceProfile) -> Table:
    """Return the table of one device: tokens per second, whether it fits, and where the time goes."""
    found = [row.speed.get(device.title) for row in plan.rows]
    known = [each if isinstance(each, SpeedForecast) else None for each in found]
    bases = (each for row, each in zip(plan.rows, known, strict=True) if row.label == plan.baseline)
    base = next(bases, None)

    def column(name: str, show: Callable[[SpeedForecast], str | None], numeric: bool = True) -> Column:
        shown = [None if each is None else show(each) for each in known]
        return Column(name, tuple(DASH if text is None else plain(text) for text in shown), numeric)

    spare = [fits(plan.spare(row, device.memory_gib)) for row in plan.rows]
    columns = [
        Column(f"fits {device.memory_gib:g} GiB", tuple(text or DASH for text in spare), numeric=False),
        column("tokens/s", lambda each: f"{each.tokens_per_s:,.0f}"),
        column("ratio", lambda each: f"{each.tokens_per_s / base.tokens_per_s:.2f}" if base else None),
        column("MFU %", lambda each: percent(each.mfu)),
        column("HFU %", lambda each: percent(each.hfu)),
        column("ms", lambda each: ms(each.step_s)),
        *(column(f"{part} ms", lambda each, part=part: ms(each.parts[part])) for part in TIMED),  # type: ignore[misc]
        column("costliest operations, % of the time", costliest, False),
    ]
    stub = (Column("config", tuple(plain(row.label) for row in plan.rows), numeric=False),)
    return Table(f"Speed on {device.title}, forecast", stub, tuple(columns))


def ms(seconds: float) -> str | None:
    """Write seconds as milliseconds, None for none."""
    return format.fixed(1)(1000 * seconds) if seconds else None


def percent(share: float | None) -> str | None:
    """Write a share in percent, None where it is not known."""
    return None if share is None else format.fixed(0)(100 * share)


def costliest(speed: SpeedForecast) -> str:
    """Write the operations that take most of the time, with their shares in percent."""
    shares = [(name, 100 * seconds / speed.step_s) for name, seconds in speed.operations.items()]
    return ", ".join(f"{name} {share:.0f}" for name, share in shares[:COSTLIEST] if share >= 0.5)


def notes(row: Row) -> list[str]:
    """Return why a config has no forecast of speed."""
    return [f"no speed on {device}: {each}" for device, each in row.speed.items() if isinstance(each, str)]
