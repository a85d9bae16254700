"""Memory and speed of a suite's rows on the large model of its section `at_scale`, by forecast alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.suite import Suite
from harness.tables import format
from harness.tables.format import DASH, Column

GIB = 1 << 30
#: The device whose speed is forecast, by the name of its profile.
DEVICE = "h200"
#: Sizes of devices that a row may fit, in GiB, and what is kept free on them.
DEVICES_GIB, RESERVE_GIB = (24, 48, 80), 1.0


@dataclass(frozen=True)
class Forecast:
    """Peak bytes of training and tokens per second of a row; None where nothing trains or is known."""

    peak_bytes: int | None = None
    tokens_per_s: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class AtScale:
    """The forecasts of a suite by label, of a `model` in a `setting`, the speed on a `device`."""

    model: str
    setting: str
    device: str
    rows: Mapping[str, Forecast]
    baseline: str | None = None

    def columns(self, labels: Sequence[str]) -> Iterator[Column]:
        """Yield a column of each value for rows in this order, all dashes where a row has none."""
        found = [self.rows.get(label) for label in labels]
        base = self.rows.get(self.baseline or "", Forecast())
        peaks = [each.peak_bytes if each else None for each in found]
        speeds = [each.tokens_per_s if each else None for each in found]
        short = self.model.rpartition("-")[2]
        yield _column(f"{short} GiB", [peak and format.fixed(1)(peak / GIB) for peak in peaks])
        yield _column("ratio", _ratios(peaks, base.peak_bytes), spare=True)
        yield _column("fits", [peak and smallest(peak) for peak in peaks], joined=True)
        yield _column(f"{short} tokens/s", [speed and f"{speed:,.0f}" for speed in speeds])
        yield _column("ratio", _ratios(speeds, base.tokens_per_s), spare=True)

    @property
    def caption(self) -> str:
        """Say what the columns are."""
        return (
            f"columns of {self.model}, forecast, not measured: peak of training and speed on {self.device} "
            f"with {self.setting}, at rates that are partly assumed, those of decompositions above all "
            f"(lorebench plan --at-scale --on {DEVICE}); fits: GiB of a device with {RESERVE_GIB:g} to spare"
        )

    def notes(self) -> list[str]:
        """Return why rows have no forecast."""
        reasons = {label: row.reason for label, row in self.rows.items() if row.reason}
        return [f"{label}: no forecast at scale: {reason}" for label, reason in reasons.items()]

    def line(self, label: str) -> dict[str, float | None]:
        """Return the values of a row for the CSV."""
        found = self.rows.get(label)
        return {
            "at_scale_peak_bytes": found.peak_bytes if found else None,
            "at_scale_tokens_per_s": found.tokens_per_s if found else None,
        }


def of_plan(plan: Mapping[str, Any], suite: Suite) -> AtScale:
    """Return the forecasts in a plan, as its JSON file has them, of a suite's runs at scale."""
    run, device = suite.runs[0], ""
    rows = {}
    for row in plan["rows"]:
        speed: dict[str, Any] = next(iter(row["speed"]), {})
        device = speed.get("device", device)
        rows[row["label"]] = Forecast(
            peak_bytes=row["peak_allocated_bytes"] if row["steps"] is not None else None,
            tokens_per_s=speed.get("tokens_per_s"),
            reason=row["reason"] or speed.get("reason"),
        )
    setting = f"{run.train.batch} \N{MULTIPLICATION SIGN} {run.data.seq_len:,} tokens in {run.train.dtype}"
    return AtScale(str(getattr(run.model, "name", run.model.source)), setting, device, rows, suite.baseline)


def smallest(peak_bytes: int) -> str:
    """Return the smallest device that a peak fits on, with what is kept free there."""
    fitting = [gib for gib in DEVICES_GIB if peak_bytes / GIB + RESERVE_GIB <= gib]
    return str(fitting[0]) if fitting else f"> {DEVICES_GIB[-1]}"


def _column(name: str, cells: Sequence[Any], joined: bool = False, spare: bool = False) -> Column:
    texts = tuple(DASH if cell is None else str(cell) for cell in cells)
    return Column(name, texts, joined=joined or spare, spare=spare)


def _ratios(values: Sequence[float | None], base: float | None) -> list[str | None]:
    return [format.ratio(value / base) if value and base else None for value in values]
