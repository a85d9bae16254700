"""The matrix of compressions: every allocator with every factoriser, at the same measured reductions.

`results/tables/compression-matrix.md`, `-errors.svg` and `-ranks.svg` follow from the records of the suite
`compression`. For records of one's own, e.g. of another model:
`python -m benchmarks.studies.compression runs/cpu-2t/compression --out runs/compression`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from textwrap import fill
from typing import Any

from benchmarks.studies.memory import charts
from harness import files
from harness.errors import UserError
from harness.record import Record
from harness.tables.records import load

SUITE = "compression"
METHOD = "compress"
#: Kinds of matrices in the order of their colours.
KINDS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
#: Title, key of a cell, and how it is printed.
TABLES = (
    ("Perplexity", "perplexity", "{:.4g}"),
    ("Relative error of the layers' outputs on the calibration text", "error", "{:.4f}"),
    ("Reduction of the parameters of the linears, as measured", "linears", "{:.4f}"),
    ("Seconds to compress, statistics and choice of ranks included", "seconds", "{:.2f}"),
    ("Peak memory while compressing, MiB", "peak_mib", "{:.1f}"),
)
ABOUT = (
    "Every allocator (how much of each matrix is kept) with every factoriser (how), from the records of the "
    "suite `{suite}`: {model}, calibrated on {calibration}, scored on {text}. Cells are means over seeds "
    "({seeds}), which draw the calibration text. The error is that of all outputs of a layer, "
    "|Y - Y'| / |Y|, as the root of its mean square over the layers; the layers see inputs of the whole "
    "model.",
    "Without compression the perplexity is {dense:.4g}.",
    "In each layer, `pca` is never worse than `whiten` at equal ranks, nor `whiten` than the others: that is "
    "a theorem; the biases of `pca` cost it a few ranks here. Between allocators nothing is promised, nor "
    "for the perplexity.",
)


@dataclass(frozen=True)
class Cell:
    """Means over seeds of one pair at one target."""

    perplexity: float
    error: float
    linears: float
    seconds: float
    peak_mib: float
    ranks: Mapping[str, int]
    """Those of the first seed."""


#: By allocator and factoriser.
Cells = Mapping[tuple[str, str], Cell]


@dataclass(frozen=True)
class Matrix:
    """What the records of one model say, by target, allocator and factoriser."""

    cells: Mapping[float, Cells]
    dense: float
    about: Mapping[str, str]

    @property
    def allocators(self) -> list[str]:
        """All allocators in the order of the records."""
        return list(dict.fromkeys(pair[0] for cells in self.cells.values() for pair in cells))

    @property
    def factorisers(self) -> list[str]:
        """All factorisers in the order of the records."""
        return list(dict.fromkeys(pair[1] for cells in self.cells.values() for pair in cells))


def pages(root: Path) -> Iterator[tuple[Path, str]]:
    """Yield page and charts of the reference records; none while there are none."""
    folders = sorted((root / "results" / "raw").glob(f"*/{SUITE}"))
    if folders:
        matrix = matrix_of(load(folders[0])[0], "nox -s tables")
        yield from documents(matrix, root / "results" / "tables")


def documents(matrix: Matrix, folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield page and charts of a matrix; charts that were drawn from these values are left as they are."""
    yield folder / f"{SUITE}-matrix.md", page(matrix)
    for name, draw in (("errors", draw_errors), ("ranks", draw_ranks)):
        path = folder / f"{SUITE}-{name}.svg"
        said = [name, *(f"{target} {pair} {cell}" for target, pair, cell in _each(matrix))]
        yield path, charts.current(path, said, partial(draw, matrix))


def _each(matrix: Matrix) -> Iterator[tuple[float, tuple[str, str], Cell]]:
    return ((target, pair, cell) for target, cells in matrix.cells.items() for pair, cell in cells.items())


def matrix_of(records: Iterable[Record], by: str) -> Matrix:
    """Sort records into cells; UserError without any of a compression, or of the whole model."""
    found: dict[float, dict[tuple[str, str], list[Record]]] = {}
    dense: list[float] = []
    about: dict[str, str] = {}
    seeds = set()
    for item in sorted(records, key=lambda item: (item.seed, item.label)):
        scored = _perplexity(item)
        options = _options(item)
        if scored is None:
            continue
        if options is None:
            dense.append(scored[1])
            continue
        pair = options["allocator"]["type"], options["factoriser"]["type"]
        found.setdefault(options["reduction"], {}).setdefault(pair, []).append(item)
        about |= _about(item, scored[0])
        seeds.add(item.seed)
    if not found or not dense:
        raise UserError(
            f"no records of compressions and of the whole model; run `lorebench run {SUITE}` first"
        )
    cells = {
        target: {pair: _cell(found[target][pair]) for pair in sorted(found[target])}
        for target in sorted(found)
    }
    return Matrix(cells, fmean(dense), {**about, "seeds": str(len(seeds)), "by": by})


def _options(item: Record) -> dict[str, Any] | None:
    """Return the options of the compression, None for a run without one."""
    methods = item.config["method"]
    return methods[0]["options"] if len(methods) == 1 and methods[0]["name"] == METHOD else None


def _perplexity(item: Record) -> tuple[str, float] | None:
    """Return the first text of a run and its perplexity."""
    scores = item.quality.perplexity if item.quality is not None else {}
    return next(((name, found.perplexity) for name, found in scores.items()), None)


def _about(item: Record, text: str) -> dict[str, str]:
    assert item.data is not None
    read = item.data.calibration
    counted = "" if read is None else f"{read.counts['sequences']} x {read.length} tokens of {read.name}"
    found = {"suite": item.suite, "model": f"the model {item.data.model}", "text": text}
    return {**found, **({"calibration": counted} if counted else {})}


def _cell(items: Sequence[Record]) -> Cell:
    facts = [item.parameters.facts[METHOD] for item in items if item.parameters is not None]
    errors = [list(each.get("output_errors", {}).values()) for each in facts]
    first = items[0].parameters
    peaks = [item.memory.phase_peak_allocated_bytes["prepare"] for item in items if item.memory is not None]
    return Cell(
        perplexity=fmean(found[1] for item in items if (found := _perplexity(item)) is not None),
        error=fmean(fmean(error * error for error in each) ** 0.5 if each else 0.0 for each in errors),
        linears=fmean(each["measured_reduction"]["linears"] for each in facts),
        seconds=fmean(item.time.phase_s["prepare"] for item in items if item.time is not None),
        peak_mib=fmean(peaks) / 2**20,
        ranks={} if first is None else first.ranks,
    )


# ---------------------------------------------------------------------------------------------- page
def page(matrix: Matrix) -> str:
    """Return the tables as Markdown."""
    parts = [f"<!-- generated by `{matrix.about['by']}`; do not edit -->", "# Compression as a matrix"]
    parts += [fill(text.format(dense=matrix.dense, **matrix.about), 110) for text in ABOUT]
    parts.append(
        f"![Error and perplexity over the measured reduction]({SUITE}-errors.svg)\n\n"
        f"![Ranks by layer]({SUITE}-ranks.svg)"
    )
    for title, key, form in TABLES:
        parts.append(f"## {title}")
        for target, cells in matrix.cells.items():
            head = f"| {target:.0%} | {' | '.join(f'`{name}`' for name in matrix.factorisers)} |"
            lines = [head, "|---" * (1 + len(matrix.factorisers)) + "|"]
            for allocator in matrix.allocators:
                row = [_text(cells, allocator, name, key, form) for name in matrix.factorisers]
                lines.append(f"| `{allocator}` | {' | '.join(row)} |")
            parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _text(cells: Mapping[tuple[str, str], Cell], allocator: str, factoriser: str, key: str, form: str) -> str:
    cell = cells.get((allocator, factoriser))
    return "-" if cell is None else form.format(getattr(cell, key))


# -------------------------------------------------------------------------------------------- charts
def draw_errors(matrix: Matrix) -> Any:
    """Draw error and perplexity over the measured reduction: a line a factoriser, a column an allocator."""
    pyplot = charts.pyplot_for_files()
    names = matrix.allocators
    figure, axes = pyplot.subplots(
        2, len(names), figsize=(2.3 * len(names), 5.4), layout="constrained", sharey="row", squeeze=False
    )
    for column, allocator in enumerate(names):
        for row, key in enumerate(("error", "perplexity")):
            panel = axes[row][column]
            for place, factoriser in enumerate(matrix.factorisers):
                points = [
                    (cells[allocator, factoriser].linears, getattr(cells[allocator, factoriser], key))
                    for cells in matrix.cells.values()
                    if (allocator, factoriser) in cells
                ]
                style = {"color": charts.LINES[place], "marker": charts.MARKERS[place], "markersize": 4}
                label = factoriser if row == column == 0 else None
                panel.plot(*zip(*points, strict=True), label=label, linewidth=1.5, **style)
            panel.set_yscale("log")
            panel.grid(True, which="both", color=charts.FAINT, linewidth=0.6)
            charts.plain(panel)
            panel.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        axes[0][column].set_title(allocator, fontsize=10)
    for axis in (axes[0][0].yaxis, axes[1][0].yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("{x:g}")
    axes[0][0].set_ylabel("relative error of outputs")
    axes[1][0].set_ylabel("perplexity")
    axes[1][0].axhline(matrix.dense, color=charts.INK, linewidth=0.8, linestyle=":")
    axes[1][(len(names) - 1) // 2].set_xlabel("parameters of the linears removed, measured", loc="left")
    figure.legend(loc="outside upper center", ncols=6, frameon=False)
    return figure


def draw_ranks(matrix: Matrix) -> Any:
    """Draw the ranks of each allocator by layer at the middle target: a line a kind of matrix."""
    pyplot = charts.pyplot_for_files()
    targets = list(matrix.cells)
    target = targets[len(targets) // 2]
    names = matrix.allocators
    figure, axes = pyplot.subplots(
        1, len(names), figsize=(2.3 * len(names), 3.2), layout="constrained", sharey=True, squeeze=False
    )
    drawn: dict[str, Any] = {}  # a line of each kind, for the legend
    for panel, allocator in zip(axes[0], names, strict=True):
        pair = next(pair for pair in matrix.cells[target] if pair[0] == allocator)
        kinds: dict[str, dict[int, int]] = {}
        for name, rank in matrix.cells[target][pair].ranks.items():
            layer = next((int(part) for part in name.split(".") if part.isdigit()), 0)
            kinds.setdefault(name.rpartition(".")[2], {})[layer] = rank
        for kind, ranks in kinds.items():
            place = KINDS.index(kind) if kind in KINDS else len(KINDS)
            style = {"color": charts.LINES[place % 6], "marker": charts.MARKERS[place % 6], "markersize": 4}
            dashed = "--" if place >= len(charts.LINES) else "-"
            (drawn[kind],) = panel.plot(list(ranks), list(ranks.values()), dashed, linewidth=1.2, **style)
        panel.set_title(f"{allocator} ({pair[1]})", fontsize=9)
        panel.grid(True, color=charts.FAINT, linewidth=0.6)
        charts.plain(panel)
    axes[0][0].set_ylabel("rank")
    said = (
        f"ranks by layer at a target of {target:.0%}; what is missing stays dense, of equal lines one is seen"
    )
    figure.suptitle(said, x=0.01, ha="left", fontsize=9)
    order = sorted(drawn, key=lambda kind: KINDS.index(kind) if kind in KINDS else len(KINDS))
    lines = [drawn[kind] for kind in order]
    figure.legend(lines, order, loc="outside lower center", ncols=7, frameon=False, fontsize=8)
    return figure


def main(arguments: Sequence[str] | None = None) -> int:
    """Write page and charts of a folder of records."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies.compression", description=__doc__)
    parser.add_argument("records", type=Path, help=f"folder of records, e.g. runs/cpu-2t/{SUITE}")
    parser.add_argument("--out", type=Path, required=True, help="folder for page and charts")
    asked = parser.parse_args(arguments)
    try:
        for path, text in documents(matrix_of(load(asked.records)[0], parser.prog), asked.out):
            files.replace(path, text)
            print(path)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
