"""The plan of a suite as values: what has run, how much memory each config needs, and where it fits.

Forecasts in, values out; nothing here simulates or runs anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import strict_json
from harness.errors import UserError
from harness.tables.format import fixed

if TYPE_CHECKING:
    from harness.devices import DeviceProfile
    from harness.forecast import Capacity, MemoryReport, Scoring
    from harness.speed_forecast import SpeedForecast

GIB = 1 << 30
GROUPS = 3


@dataclass(frozen=True)
class Row:
    """One config: its runs, its forecast or the reason for having none, and the largest settings by device.

    `done` and `todo` count runs; `seconds` is the time of those to do, None where no equal run is known.
    `largest` maps a setting and then a device's GiB to a capacity, or to the reason for having none.
    `speed` maps a device's title to a forecast, or to the reason for having none. `steps` are the updates of
    a run, None where nothing trains; `tokens_per_step` counts padding as well. `scoring_speed` is like
    `speed`, of scoring text by a model that is compressed and not trained.
    """

    label: str
    config_id: str
    done: int
    todo: int
    seconds: float | None
    forecast: MemoryReport | str
    largest: Mapping[str, Mapping[float, Capacity | str]] = field(default_factory=dict)
    steps: int | None = None
    tokens_per_step: int = 0
    speed: Mapping[str, SpeedForecast | str] = field(default_factory=dict)
    scoring_speed: Mapping[str, SpeedForecast | str] = field(default_factory=dict)

    @property
    def report(self) -> MemoryReport | None:
        """Return the forecast, None where there is only a reason."""
        return None if isinstance(self.forecast, str) else self.forecast

    @property
    def scoring(self) -> Scoring | None:
        """Return the forecast of scoring text, None where the row trains or none is known."""
        return None if self.report is None else self.report.scoring


@dataclass(frozen=True)
class Plan:
    """All rows, the devices to fit and the GiB kept free on each.

    `unseen` names what a simulation does not model, `ranks` the source of the ranks given by `--ranks`,
    `devices` those with forecasts of speed, `setting` models and batches of the rows.
    """

    suite: str
    question: str
    machine: str
    rows: tuple[Row, ...]
    device_gib: tuple[float, ...]
    reserve_gib: float
    unseen: str
    ranks: str | None = None
    devices: tuple[DeviceProfile, ...] = ()
    baseline: str | None = None
    setting: str = ""

    def spare(self, row: Row, gib: float) -> float | None:
        """Return the GiB left free on a device, negative where some are short; None without a forecast."""
        return None if row.report is None else self._left(gib, row.report.peak_allocated_bytes)

    def spare_scoring(self, row: Row, gib: float) -> float | None:
        """Return the same for scoring text."""
        return None if row.scoring is None else self._left(gib, row.scoring.peak_allocated_bytes)

    def _left(self, gib: float, peak_bytes: int) -> float:
        return gib - self.reserve_gib - peak_bytes / GIB


def fits(spare: float | None) -> str | None:
    """Say whether so many GiB left free are enough; None where they are not known."""
    if spare is None:
        return None
    return f"yes, {fixed(2)(spare)} spare" if spare >= 0 else f"no, {fixed(2)(-spare)} short"


def components(report: MemoryReport) -> dict[str, int]:
    """Return bytes at the peak of training by component; empty for a run that does not train."""
    train = report.train
    if train is None:
        return {}
    return {
        "weights": train.weights_trainable_bytes + train.weights_frozen_bytes,
        "gradients": train.gradients_bytes,
        "optimizer": train.optimizer_bytes,
        "buffers": train.buffers_bytes,
        "transient": train.transient_bytes,
    }


def phase_of_peak(report: MemoryReport) -> str:
    """Return the phase with the highest peak up to the end of training, the last of several equal ones."""
    peaks = report.run_peaks
    return max(reversed(list(peaks)), key=lambda phase: peaks[phase])


def largest_groups(report: MemoryReport | Scoring) -> dict[str, int]:
    """Return the largest groups of bytes alive at the peak, of training or of scoring, largest first."""
    groups = report.peak.groups if report.peak else {}
    return dict(sorted(groups.items(), key=lambda item: -item[1])[:GROUPS])


def as_json(plan: Plan) -> str:
    """Return the text of a plan's JSON file."""
    return strict_json.text(as_dict(plan), indent=1)


def read_forecasts(path: Path) -> dict[str, MemoryReport | str]:
    """Return the forecasts in a plan's JSON file by config id, or the reason for having none.

    Empty where there is no file; those of an older version of forecasts are left out. UserError for a file
    that is no plan.
    """
    from harness.forecast import FORECAST_VERSION, MemoryReport

    if not path.exists():
        return {}
    found: dict[str, MemoryReport | str] = {}
    try:
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
            report = MemoryReport.model_validate(row["forecast"]) if row["forecast"] else None
            if report is None or report.version == FORECAST_VERSION:
                found[row["config_id"]] = report or str(row["reason"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a plan; rebuild it: lorebench plan SUITE --out {path}") from error
    return found


def as_dict(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain values: sizes in bytes, times in seconds, None where nothing is known."""
    return {
        "suite": plan.suite,
        "machine": plan.machine,
        "device_gib": list(plan.device_gib),
        "reserve_gib": plan.reserve_gib,
        "unseen": plan.unseen,
        "ranks": plan.ranks,
        "runs_done": sum(row.done for row in plan.rows),
        "runs_to_do": sum(row.todo for row in plan.rows),
        "rows": [_row_as_dict(plan, row) for row in plan.rows],
    }


def _row_as_dict(plan: Plan, row: Row) -> dict[str, Any]:
    report = row.report
    return {
        "label": row.label,
        "config_id": row.config_id,
        "runs_done": row.done,
        "runs_to_do": row.todo,
        "to_do_s": row.seconds,
        "steps": row.steps,
        "tokens_per_step": row.tokens_per_step if row.steps else None,
        "tokens": row.steps * row.tokens_per_step if row.steps else None,
        "peak_allocated_bytes": report.peak_allocated_bytes if report else None,
        "peak_phase": phase_of_peak(report) if report else None,
        "components_bytes": components(report) if report else None,
        "forecast": _forecast_as_dict(report) if report else None,
        "reason": None if report else row.forecast,
        "fits": _fits_as_dicts({gib: plan.spare(row, gib) for gib in plan.device_gib}),
        "speed": [_speed_as_dict(device, found) for device, found in row.speed.items()],
        "largest": [
            {"device_gib": gib}
            | (
                {"setting": setting, "reason": found}
                if isinstance(found, str)
                else found.model_dump(mode="json")
            )
            for setting, by_device in row.largest.items()
            for gib, found in by_device.items()
        ],
        **({"scoring": _scoring_as_dict(plan, row, row.scoring)} if row.scoring else {}),
    }


def _forecast_as_dict(report: MemoryReport) -> dict[str, Any]:
    """Return a forecast without its operations; one that scores nothing does not mention it."""
    left_out: dict[str, Any] = {"work": True, "refresh_work": True}
    left_out["scoring"] = {"work"} if report.scoring else True
    return report.model_dump(mode="json", exclude=left_out)


def _scoring_as_dict(plan: Plan, row: Row, scoring: Scoring) -> dict[str, Any]:
    return {
        "tokens": scoring.tokens,
        "peak_allocated_bytes": scoring.peak_allocated_bytes,
        "components_bytes": {
            "weights": scoring.weights_bytes,
            "buffers": scoring.buffers_bytes,
            "transient": scoring.transient_bytes,
        },
        "fits": _fits_as_dicts({gib: plan.spare_scoring(row, gib) for gib in plan.device_gib}),
        "speed": [_speed_as_dict(device, found) for device, found in row.scoring_speed.items()],
    }


def _fits_as_dicts(spare: Mapping[float, float | None]) -> list[dict[str, Any]]:
    return [
        {"device_gib": gib, "fits": None if left is None else left >= 0, "spare_gib": left}
        for gib, left in spare.items()
    ]


def _speed_as_dict(device: str, found: SpeedForecast | str) -> dict[str, Any]:
    if isinstance(found, str):
        return {"device": device, "reason": found}
    return {
        "device": device,
        "tokens_per_s": found.tokens_per_s,
        "step_s": found.step_s,
        "parts_s": found.parts,
        "operations_s": found.operations,
        "mfu": found.mfu,
        "hfu": found.hfu,
    }
