"""Fill the page of the shapes suite: `python -m benchmarks.studies.memory [--fresh] [--only TEXT] …`.

Every row without a current forecast is simulated and written at once to `results/forecasts/shapes.json`.
Where there is a GPU, rows that fit it are measured, by `lorebench run`. The page
`results/tables/shapes-memory.md` and its charts follow from forecasts, records and published figures alone.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.studies import jobs
from benchmarks.studies.memory import charts, forecasts, papers, table
from harness import suite
from harness.config import Run
from harness.errors import UserError

SUITE = "shapes"
FORECASTS = Path("forecasts", "shapes.json")
#: Not shapes.md: that name belongs to the tables that follow from the suite's records.
PAGE = Path("tables", "shapes-memory.md")
#: Charts by the size whose rows they show.
CHARTS = {
    "1b": (Path("tables", "shapes-1b.svg"), "LLaMA 1B, bfloat16, 16 sequences of 256 tokens"),
    "llama-2-7b": (Path("tables", "shapes-7b.svg"), "LLaMA-2 7B, bfloat16, one sequence of 2048 tokens"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what was asked for: 1 when a row failed or, with `--render-only`, on drift; 2 for bad input."""
    asked = _asked(arguments)
    try:
        runs = _runs()
        if asked.render_only:
            return int(render(runs, asked.out))
        chosen = [run for run in runs if asked.only.lower() in run.name.lower()]
        if not chosen:
            raise UserError(f"no row holds {asked.only!r}; without --only all {len(runs)} are predicted")
        file = asked.out / FORECASTS
        wanted = chosen if asked.fresh else forecasts.read(file).missing(chosen)
        started = time.monotonic()
        known = forecasts.complete(file, runs, wanted, asked.jobs, lambda line: print(line, flush=True))
        print(
            f"{len(wanted)} of {len(chosen)} rows predicted in {time.monotonic() - started:.0f} s", flush=True
        )
        measure(chosen, known, asked.out)
        render(runs, asked.out)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return int(bool(known.missing(chosen)))


def _runs() -> list[Run]:
    """The rows of the suite, their options complete, so that they have the ids of their records."""
    from harness.engine.run import checks

    return checks.resolve(suite.load(SUITE).runs)


def measure(runs: Sequence[Run], known: forecasts.Forecasts, out: Path) -> None:
    """Run the rows that fit the GPU, or say that there is none; what has been measured is not repeated."""
    import torch

    if not torch.cuda.is_available():
        print("no CUDA device: every row is simulated", flush=True)
        return
    room = torch.cuda.get_device_properties(0).total_memory
    for command in commands(runs, known, room, out):
        subprocess.run(command, check=False)


def commands(runs: Sequence[Run], known: forecasts.Forecasts, room: int, out: Path) -> list[list[str]]:
    """The one command that measures the rows whose training fits into `room` bytes; none if nothing fits."""
    rows = table.rows_of(runs, known, None)
    fitting = [name for name, row in rows.items() if (size := row.predicted()) is not None and size <= room]
    chosen = [part for name in fitting for part in ("--only", f"label={json.dumps(name)}")]
    program = [sys.executable, "-m", "harness.cli", "run", SUITE, "--device", "cuda"]
    return [[*program, "--results", str(out / "raw"), *chosen]] if fitting else []


def render(runs: Sequence[Run], out: Path) -> bool:
    """Write page and charts where they do not follow from the files; True when something was written."""
    machine = table.measured(out / "raw")
    rows = table.rows_of(runs, forecasts.read(out / FORECASTS), machine)
    text, target = table.page(rows, papers.load(), machine), out / PAGE
    changed = not target.exists() or target.read_text(encoding="utf-8") != text
    if changed:
        forecasts.write(target, text)
    for size, (name, title) in CHARTS.items():
        data = bars(size, title, rows)
        if data.bars and not charts.is_of(out / name, data):
            charts.draw_bars(data, out / name)
            changed = True
    return changed


def bars(size: str, title: str, rows: dict[str, table.Row]) -> charts.Bars:
    """The bars of one size, from its rows in the section of every method."""
    found: dict[str, dict[str, int]] = {}
    for label, row in rows.items():
        train = row.report.train if row.report else None
        if label.startswith(f"{size}: ") and train:
            parts = zip(charts.COLOURS, table.components(train), strict=True)
            found[label.removeprefix(f"{size}: ")] = dict(parts)
    return charts.Bars(title, found)


def _asked(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies.memory", description=__doc__)
    parser.add_argument(
        "--fresh", action="store_true", help="simulate rows that have a forecast already, too"
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="only rows whose label holds this text")
    jobs.add_to(parser, default=1)
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for all files")
    parser.add_argument(
        "--render-only", action="store_true", help="simulate nothing; exit with 1 if something had drifted"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
