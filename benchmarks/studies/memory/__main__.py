"""Predict and measure the memory of LLaMA shapes: `nox -s bench-shapes`.

Forecasts of the shapes suite and of its rows at other batches and lengths are plans, as by
`lorebench plan shapes --out results/forecasts/shapes.json`; the cache answers what has not changed. Where
there is a GPU, rows that fit it are measured by `lorebench run`. The pages `results/tables/shapes-memory.md`
and `growth.md` and their charts follow from forecasts and records alone: `nox -s tables` writes just these.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.studies.memory import growth, table
from harness import files, imports, suite
from harness.cli.plan import plan_suite
from harness.config import Run
from harness.devices import DeviceProfile, profile
from harness.errors import UserError
from harness.files import ROOT
from harness.forecast import MemoryReport
from harness.suite import Suite
from harness.tables import generated
from harness.tables.plan.plan import as_json, read_forecasts

#: The devices whose speed is forecast.
DEVICES = ("h200", "a100-80gb", "rtx4090")


def main(arguments: Sequence[str], root: Path = ROOT) -> int:
    """Forecast, measure and render; 1 when a row has no forecast, 2 for bad input."""
    if arguments:
        print(f"unknown: {' '.join(arguments)}; this command has no options", file=sys.stderr)
        return 2
    try:
        rows = table.resolved()
        devices = [profile(name) for name in DEVICES]
        complete = forecast(suite.load(table.SUITE), root / table.FORECASTS, devices)
        complete &= forecast(growth.suite_of(rows), root / growth.FORECASTS)
        if not complete:
            return 1
        measure(list(rows.values()), read_forecasts(root / table.FORECASTS), root)
        generated.write([*table.pages(root), *growth.pages(root)])
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def forecast(chosen: Suite, file: Path, profiles: Sequence[DeviceProfile] = ()) -> bool:
    """Write the plan of a suite to a file if every row has a forecast, and return whether that is so."""
    raw = file.parents[1] / "raw"

    def say(line: str) -> None:
        print(line, flush=True)

    made = plan_suite(chosen, device="cpu", results=raw, profiles=profiles, notify=say)
    missing = [row for row in made.rows if row.report is None]
    for row in missing:
        print(f"{row.label}: no forecast: {row.forecast}; {file} is left as it was", flush=True)
    if not missing:
        files.replace(file, as_json(made))
    return not missing


def measure(runs: Sequence[Run], forecasts: Mapping[str, MemoryReport | str], root: Path) -> None:
    """Run the rows that fit the GPU, where there is one; `lorebench run` skips what has been measured."""
    import torch

    if not torch.cuda.is_available():
        print("no CUDA device: every row is simulated", flush=True)
        return
    room = torch.cuda.get_device_properties(0).total_memory
    for command in commands(runs, forecasts, room, root):
        subprocess.run(command, check=False)


def commands(
    runs: Sequence[Run], forecasts: Mapping[str, MemoryReport | str], room: int, root: Path
) -> list[list[str]]:
    """Return the command that measures the rows whose training fits into `room` bytes, none without rows."""
    rows = table.rows_of(runs, forecasts, None)
    fitting = [name for name, row in rows.items() if row.predicted is not None and row.predicted <= room]
    chosen = [part for name in fitting for part in ("--only", f"label={json.dumps(name)}")]
    program = [*imports.command("harness.cli"), "run", table.SUITE, "--device", "cuda"]
    return [[*program, "--results", str(root / "results" / "raw"), *chosen]] if fitting else []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
