"""Compare peak memory with its baselines: `python -m benchmarks.studies.baselines [--check | --write]`.

Every method and stack on the smallest shape (the suite `baselines`), simulated and counted, and rows of
LLaMA-2 7B (of the suite `shapes`), simulated: no GPU and no weights. `--check` exits with 1 when any peak has
grown, and says which component; 2 when figures do not compare. `--write` takes the figures of today instead.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.studies import jobs
from harness import suite
from harness.config import Run
from harness.errors import UserError
from harness.files import ROOT

FILE = ROOT / "results" / "baselines" / "memory.json"
#: Rows of the suite `shapes` at 7B that together touch every kind of stepper and of layer.
LARGE = (
    "llama-2-7b: full",
    "llama-2-7b: lora",
    "llama-2-7b: galore",
    "llama-2-7b: velora + full",
    "llama-2-7b: welore 50 %",
    "SLTrain F3: 7b sltrain 8-bit per-layer",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check or write: 0, 1 on an increase, 2 for what does not compare and for a user's mistake."""
    asked = _asked(arguments)
    from benchmarks.studies.baselines import judging, measuring
    from harness.tables.compare.rendering import FORMATS

    started = time.monotonic()
    try:
        # Before anything is measured: other packages, no file, or no place for one, cost a line, not minutes.
        base = None
        if asked.write:
            judging.check(asked.file)
        else:
            base = judging.read(asked.file)
        wanted = rows()
        today = measuring.measure_all(
            wanted, asked.jobs, lambda line: print(line, file=sys.stderr, flush=True)
        )
        if base is None:
            judging.write(asked.file, today)
            print(f"{asked.file.name}: {len(today)} rows written in {time.monotonic() - started:.0f} s")
            return 0
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    found = judging.compare(base.rows, today)
    code = judging.exit_code(found)
    print(FORMATS[asked.format](found), end="", flush=True)
    beside = sys.stdout if asked.format == "text" else sys.stderr
    print(f"{len(today)} rows in {time.monotonic() - started:.0f} s", file=beside)
    if code == 2 or (code == 0 and "improvement" in found.counts):
        print(f"take the figures of today as baselines: {judging.WRITE}", file=beside)
    return code


def rows() -> list[Run]:
    """The rows that have a baseline, the largest first, their options complete."""
    from harness.engine.run import checks

    large = [run for run in suite.load("shapes").runs if run.name in LARGE]
    return checks.resolve([*large, *suite.load("baselines").runs])


def _asked(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies.baselines", description=__doc__)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--check", action="store_true", help="compare with the baselines (the default)")
    mode.add_argument("--write", action="store_true", help="take today's figures as baselines")
    jobs.add_to(parser, default=2)
    forms = "text", "md", "json", "github", "junit"
    parser.add_argument("--format", choices=forms, default="text", help="as of `lorebench gate`")
    parser.add_argument("--file", type=Path, default=FILE, help="the file of baselines")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
