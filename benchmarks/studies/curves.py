"""Training losses of a suite's reference records as a chart: results/tables/SUITE-loss.svg.

    python -m benchmarks.studies.curves SUITE [SUITE ...] [--check]

Each line is the mean over a row's seeds, averaged over windows of updates so that lines can be told apart.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.studies.memory import charts
from harness import record
from harness import suite as suites
from harness.errors import UserError
from harness.files import ROOT

RESULTS = ROOT / "results"
#: Points a line at most.
POINTS = 40

#: Tokens seen at the end of each window of updates, and the mean loss in it.
Line = tuple[list[float], list[float]]


def lines_of(name: str, raw: Path) -> dict[str, Line]:
    """The lines of a suite's rows in the suite's order; UserError where there is no record with a loss."""
    found: dict[str, list[record.Record]] = {run.name: [] for run in suites.load(name).runs}
    for folder in sorted(raw.glob(f"*/{name}")):
        for item in record.read_all(folder):
            if item.training is not None and item.training.loss and item.label in found:
                found[item.label].append(item)
    lines = {label: _line(items) for label, items in found.items() if items}
    if not lines:
        raise UserError(f"no records of suite {name!r} with a loss under {raw}")
    return lines


def _line(items: Sequence[record.Record]) -> Line:
    losses = [item.training.loss for item in items if item.training is not None]
    tokens = [item.training.tokens / len(item.training.loss) for item in items if item.training is not None]
    updates = min(map(len, losses))
    mean = [fmean(values) for values in zip(*(loss[:updates] for loss in losses), strict=True)]
    width = -(-updates // POINTS)
    windows = [(first, min(first + width, updates)) for first in range(0, updates, width)]
    return [end * tokens[0] for _, end in windows], [fmean(mean[first:end]) for first, end in windows]


def draw(name: str, lines: dict[str, Line]) -> Any:
    """Draw one line per row over the tokens seen in training."""
    pyplot = charts.pyplot_for_files()
    figure, axes = pyplot.subplots(figsize=(8.0, 4.6), layout="constrained")
    for index, (label, (tokens, loss)) in enumerate(lines.items()):
        colour = charts.LINES[index % len(charts.LINES)]
        axes.plot([count / 1e6 for count in tokens], loss, label=label, color=colour, linewidth=1.8)
    axes.set_xlabel("tokens seen, millions")
    axes.set_ylabel("training loss, nats a token")
    axes.grid(True, color=charts.FAINT, linewidth=0.8)
    charts.plain(axes)
    figure.suptitle(f"{name}: loss in training", x=0.01, ha="left", fontsize=12, fontweight="bold")
    figure.legend(loc="outside lower center", ncols=min(len(lines), 6), frameon=False)
    return figure


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; with `--check` exit code 1 says that a chart is not that of the records."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.studies.curves", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("suites", nargs="+", metavar="SUITE")
    parser.add_argument("--check", action="store_true", help="draw nothing, say whether a chart has drifted")
    given = parser.parse_args(arguments)
    drifted = []
    try:
        for name in given.suites:
            lines = lines_of(name, RESULTS / "raw")
            path = RESULTS / "tables" / f"{name}-loss.svg"
            if not charts.is_of(path, [name, lines]):
                drifted.append(path)
                if not given.check:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(charts.svg(draw(name, lines), [name, lines]), encoding="utf-8")
    except UserError as error:
        print(f"benchmarks.studies.curves: {error}", file=sys.stderr)
        return 2
    for path in drifted:
        print(
            f"{path.relative_to(RESULTS.parent)}: {'is not that of the records' if given.check else 'drawn'}"
        )
    return 1 if given.check and drifted else 0


if __name__ == "__main__":
    sys.exit(main())
