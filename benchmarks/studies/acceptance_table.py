"""What the acceptance on a GPU came to: measured beside simulated peaks, steps, ratios to full training."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from harness import files
from harness.config import Run
from harness.forecast import FORECAST_VERSION
from harness.record import Record
from harness.tables.format import DASH, markdown

HEADING = (
    "suite",
    "run",
    "model",
    "status",
    "measured GiB",
    "simulated GiB",
    "simulated / measured",
    "requested GiB",
    "plain step s",
    "refresh step s",
    "tokens/s",
    "MFU %",
)
GIB = 2**30
TOLERANCE = 0.02
Line = tuple[str, ...]


class Forecasts:
    """Simulated peaks of the training phase in bytes, by run, in a file; a str says why there is none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        current = kept.get("version") == FORECAST_VERSION
        self.peaks: dict[str, int | str] = dict(kept["peaks"]) if current else {}

    def fill(self, found: Iterable[Record], go_on: Callable[[], bool]) -> int:
        """Simulate every measured run that has no forecast yet; how many are missing when time was over."""
        missing = [r for r in found if r.memory and r.memory.train and r.run_id not in self.peaks]
        for done, record in enumerate(missing):
            if not go_on():
                return len(missing) - done
            self.peaks[record.run_id] = self._simulated(record)
            content = {"version": FORECAST_VERSION, "peaks": self.peaks}
            files.replace(self.path, json.dumps(content, indent=1) + "\n")
        return 0

    def of(self, record: Record) -> int | None:
        """The simulated peak of a run, where there is one."""
        peak = self.peaks.get(record.run_id)
        return peak if isinstance(peak, int) else None

    @staticmethod
    def _simulated(record: Record) -> int | str:
        """With the ranks that the run chose, so that only memory is compared."""
        from harness.engine.forecast.dry_run import simulate

        chosen = record.parameters.chosen_ranks if record.parameters else {}
        try:
            report = simulate(Run.model_validate(record.config), chosen or None)
        except Exception as error:  # a fault of the simulation must not hide what was measured
            return f"{type(error).__name__}: {error}"
        return report.train.peak_allocated_bytes if report.train else "no training"


def rows(found: Iterable[Record], forecasts: Forecasts) -> list[Line]:
    """A line per run: what was measured, what was simulated, and how both relate."""
    lines: list[Line] = []
    for record in found:
        memory, clock = record.memory, record.time
        measured = memory.train.peak_allocated_bytes if memory and memory.train else None
        simulated = forecasts.of(record)
        ratio = simulated / measured if simulated and measured else None
        lines.append(
            (
                record.suite,
                record.label,
                str(record.config["model"].get("name", record.config["model"]["source"])),
                record.outcome.status,
                _text(measured, GIB),
                _text(simulated, GIB),
                DASH if ratio is None else f"{ratio:.4f}{'' if abs(ratio - 1) <= TOLERANCE else ' !'}",
                _text(memory.requested_bytes if memory else None, GIB),
                _text(step_s(record, refreshed=False), decimals=4),
                _text(step_s(record, refreshed=True), decimals=4),
                _text(clock.tokens_per_s if clock else None, decimals=0),
                _text(clock.mfu if clock else None, 0.01, decimals=1),
            )
        )
    return lines


def step_s(record: Record, refreshed: bool) -> float | None:
    """The median of the timed steps with, or without, a refresh."""
    if record.time is None:
        return None
    both = zip(record.time.step_s, record.time.refresh_step, strict=True)
    kept = [seconds for seconds, fresh in both if fresh == refreshed]
    return statistics.median(kept) if kept else None


def pairs(found: Iterable[Record], baselines: Mapping[str, str | None]) -> list[str]:
    """Throughput and peak of each run as ratios to the baseline of its suite, on the same model and data."""
    everything, said = list(found), []
    for record in everything:
        base = next((other for other in everything if _is_base(other, record, baselines)), None)
        if base is None or base is record:
            continue
        parts = [
            f"{name} {own / theirs:.3f}"
            for name, own, theirs in (
                ("throughput", _speed(record), _speed(base)),
                ("peak memory", _peak(record), _peak(base)),
            )
            if own and theirs
        ]
        if parts:
            model = record.config["model"].get("name", "")
            said.append(f"{record.suite}, {model}: {record.label} / {base.label}: {', '.join(parts)}")
    return said


def tests_line(tested: Mapping[str, Any]) -> str:
    """How the tests ended, and every failure."""
    counts = {end: sum(file[end] for file in tested.values()) for end in ("passed", "failed", "skipped")}
    lines = ["tests: " + ", ".join(f"{count} {end}" for end, count in counts.items())]
    for name, file in tested.items():
        failures = [case for case in file["cases"] if case["outcome"] == "failed"]
        lines += [f"  {name}: {case['name']}: {case.get('message', '')}" for case in failures]
    return "\n".join(lines)


def show(lines: Sequence[Line], ratios: Sequence[str], folder: Path) -> None:
    """Print the table and keep it as Markdown beside the records."""
    if not lines:
        print("nothing has run yet, so there is no table")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title="measured and simulated", header_style="bold")
    for column in HEADING:
        table.add_column(column, overflow="fold")
    for line in lines:
        table.add_row(*line)
    Console(width=170).print(table, markup=False)
    page = ["|" + " | ".join(HEADING) + "|", "|" + "---|" * len(HEADING)]
    page += ["|" + " | ".join(map(markdown, line)) + "|" for line in lines]
    notes = [
        *ratios,
        f"! beyond {TOLERANCE:.0%}; requested is what tensors asked for, without blocks left over",
    ]
    print("\n".join(notes))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text("\n".join([*page, "", *map(markdown, notes)]) + "\n", encoding="utf-8")


def _is_base(other: Record, record: Record, baselines: Mapping[str, str | None]) -> bool:
    alike = all(other.config[key] == record.config[key] for key in ("model", "data"))
    return other.suite == record.suite and other.label == baselines.get(record.suite) and alike


def _speed(record: Record) -> float | None:
    return record.time.tokens_per_s if record.time else None


def _peak(record: Record) -> float | None:
    return record.memory.train.peak_allocated_bytes if record.memory and record.memory.train else None


def _text(value: float | None, unit: float = 1.0, decimals: int = 2) -> str:
    return DASH if value is None else f"{value / unit:,.{decimals}f}"
