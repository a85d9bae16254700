"""Evaluate the calculations of the papers: `python -m benchmarks.papers.calculations [--check] [--list]`."""

from __future__ import annotations

import argparse
import inspect
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.papers.calculations import CALCULATIONS, collecting
from benchmarks.studies import jobs
from harness.errors import UserError

FILE = Path("results", "calculations.json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the file, or with `--check` only compare: 1 when it is stale, 2 for bad input."""
    asked = _asked(arguments)
    if asked.list:
        print("\n".join(listing()))
        return 0
    started = time.monotonic()
    try:
        found = collecting.entries(collecting.calls(asked.papers), asked.jobs)
        stale = _stale(collecting.text_of(found), asked.out, asked.check)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    state = (
        ("stale: run python -m benchmarks.papers.calculations" if asked.check else "written")
        if stale
        else "unchanged"
    )
    print(f"{len(found)} calculations in {time.monotonic() - started:.0f} s; {asked.out} {state}")
    return int(stale and asked.check)


def _stale(text: str, file: Path, check: bool) -> bool:
    """Return whether a file holds another text; unless only checked, write this one."""
    try:
        stale = not file.exists() or file.read_text(encoding="utf-8") != text
        if stale and not check:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--out {file}: cannot be read or written: {error.strerror}") from error
    return stale


def listing() -> list[str]:
    """Return every calculation with its arguments and the first line of its docstring."""
    lines = []
    for name, function in CALCULATIONS.items():
        arguments = inspect.signature(function).parameters.values()
        summary = (inspect.getdoc(function) or "").splitlines()[0]
        lines.append(f"{name}({', '.join(each.name for each in arguments)}): {summary}")
    return lines


def _asked(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.papers.calculations", description=__doc__)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if the file is stale"
    )
    parser.add_argument("--list", action="store_true", help="list the calculations and evaluate none")
    parser.add_argument("--papers", type=Path, default=collecting.PAPERS, help="folder of published tables")
    parser.add_argument("--out", type=Path, default=FILE, help="the file of values")
    jobs.add_to(parser, default=2)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
