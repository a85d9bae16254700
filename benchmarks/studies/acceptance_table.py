"""The table of the acceptance on a GPU: measured beside simulated peaks, steps, ratios to full training."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness import series
from harness.config import Run
from harness.engine.forecast.cache import ForecastAnswer, ForecastRequest
from harness.engine.forecast.client import ForecastClient
from harness.engine.process import child
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


def simulated_peaks(
    found: Iterable[Record], cache: Path, go_on: Callable[[], bool]
) -> tuple[dict[str, int], int]:
    """Forecast the peak of training of each measured run in bytes, by run id, with the ranks that it chose.

    Stops when `go_on` returns False; the second value counts the forecasts that are missing then.
    """
    groups: dict[str, dict[str, ForecastRequest]] = {}
    for record in found:
        if record.memory and record.memory.train:
            chosen = record.parameters.chosen_ranks if record.parameters else {}
            with suppress(ValidationError):  # the record of an older config still shows what was measured
                request = ForecastRequest(Run.model_validate(record.config))
                groups.setdefault(json.dumps(chosen), {})[record.run_id] = request
    peaks, missing = {}, 0
    for ranks, requests in groups.items():
        client = ForecastClient(
            cache, child.WORKER, {"methods": json.loads(ranks)} if ranks != "{}" else None
        )
        answers = _answers(client, list(requests.values()), go_on)
        missing += answers.count(None)
        for run_id, answer in zip(requests, answers, strict=True):
            if answer is not None and answer.report is not None and answer.report.train is not None:
                peaks[run_id] = answer.report.train.peak_allocated_bytes
    return peaks, missing


def _answers(
    client: ForecastClient, requests: Sequence[ForecastRequest], go_on: Callable[[], bool]
) -> Sequence[ForecastAnswer | None]:
    def on_progress(*_: object) -> None:
        if not go_on():
            raise TimeoutError

    with suppress(TimeoutError):
        if None not in (cached := client.cached(requests)):
            return cached
        on_progress()
        return client.ask(requests, on_progress)
    return client.cached(requests)


def rows(found: Iterable[Record], peaks: Mapping[str, int]) -> list[Line]:
    """Return a line for each run: measured and simulated peak, their ratio, and times."""
    lines: list[Line] = []
    for record in found:
        memory, clock = record.memory, record.time
        measured = memory.train.peak_allocated_bytes if memory and memory.train else None
        simulated = peaks.get(record.run_id)
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
    """Return the median of the timed steps with, or without, a refresh."""
    if record.time is None:
        return None
    found = series.times(record.time, refreshed)
    return found.median_s if found else None


def pairs(found: Iterable[Record], baselines: Mapping[str, str | None]) -> list[str]:
    """Return throughput and peak of each run as ratios to its suite's baseline on the same model and data."""
    everything, lines = list(found), []
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
            lines.append(f"{record.suite}, {model}: {record.label} / {base.label}: {', '.join(parts)}")
    return lines


def tests_line(tested: Mapping[str, Any]) -> str:
    """Return the counts of tests by outcome, and every failure."""
    counts = {end: sum(file[end] for file in tested.values()) for end in ("passed", "failed", "skipped")}
    lines = ["tests: " + ", ".join(f"{count} {end}" for end, count in counts.items())]
    for name, file in tested.items():
        failures = [case for case in file["cases"] if case["outcome"] == "failed"]
        lines += [f"  {name}: {case['name']}: {case.get('message', '')}" for case in failures]
    return "\n".join(lines)


def show(lines: Sequence[Line], ratios: Sequence[str], folder: Path) -> None:
    """Print the table and write it as Markdown beside the records."""
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
        f"! beyond {TOLERANCE:.0%}; requested is the size of tensors, without the allocator's rounding",
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
