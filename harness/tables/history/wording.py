"""Phrases that text, Markdown and page of a history share: values, change points, breaks, method."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile

from harness.tables.aggregate import grouped
from harness.tables.compare.comparison import Difference, listed
from harness.tables.compare.memory import CUDA_BYTES, CUDA_SHARE, EXACT
from harness.tables.format import points
from harness.tables.history.change_points import METHOD, PERMUTATIONS
from harness.tables.history.series import Break, ChangePoint, History, Quantity
from harness.tables.statistics import ALPHA, LEAST_PERPLEXITY_CHANGE, LEAST_SPEED_CHANGE

#: Names of rows or quantities that a line lists before it counts.
MOST_NAMES = 3


def number(quantity: Quantity, value: float) -> str:
    """Write a value in the displayed unit, without the unit."""
    shown = quantity.shown(value)
    if not quantity.usable(value):
        return f"{shown:.3g}"
    if quantity.kind == "perplexity":
        return f"{shown:,.{3 if shown < 10 else 2 if shown < 100 else 1}f}"
    if quantity.unit == "bytes":
        return f"{shown:,.1f}" if shown >= 100 else f"{shown:,.2f}"
    return f"{shown:,.0f}" if quantity.unit == "tokens/s" and shown >= 100 else f"{shown:,.1f}"


def heads(quantities: Sequence[Quantity]) -> dict[Quantity, str]:
    """Return short headings of columns: tasks without the prefix that all their names share."""
    tasks = [
        quantity.name.removeprefix("accuracy ") for quantity in quantities if quantity.kind == "accuracy"
    ]
    shared = _beginning(tasks)
    found = {}
    for quantity in quantities:
        name = quantity.name.removeprefix("memory: ").removeprefix("accuracy ").removeprefix(shared)
        name = name.replace("perplexity ", "ppl ")
        name = {"throughput": "", "wall time": "wall", "peak memory": "peak"}.get(name, name)
        found[quantity] = f"{name} {quantity.shown_unit}".strip()
    return found


def _beginning(names: Sequence[str]) -> str:
    """Return the words, up to a `_`, that several names begin with; "" where one name has no others."""
    words = zip(*(name.split("_")[:-1] for name in names), strict=False) if len(names) > 1 else ()
    return "".join(f"{several[0]}_" for several in takewhile(lambda each: len(set(each)) == 1, words))


def levels(change: ChangePoint) -> str:
    """`130.8 -> 142.8 MiB`; in bytes where MiB would hide the change."""
    before, after = (number(change.quantity, value) for value in (change.before, change.after))
    unit = change.quantity.shown_unit
    if before == after and change.quantity.unit == "bytes":
        before, after, unit = f"{change.before:,.0f}", f"{change.after:,.0f}", "bytes"
    return f"{before} -> {after} {unit}".rstrip()


def ratio(change: ChangePoint) -> str:
    """Write after over before, "" without a before; for a share the difference in points."""
    if change.quantity.unit == "share":
        return f"{points(change.after - change.before)} points"
    if change.ratio is None:
        return ""
    digits = 3 if abs(change.ratio - 1) >= 0.001 else 6
    return f"\N{MULTIPLICATION SIGN}{change.ratio:.{digits}f}"


def verdict(change: ChangePoint) -> str:
    """`worse` or `better`, with a question mark where it may be machine noise."""
    return ("worse" if change.worse else "better") + ("?" if change.doubtful else "")


def why(change: ChangePoint) -> str:
    """Write the cause of a change point, its p value and its remark."""
    tested = "" if change.p_value is None else f"p = {change.p_value:.3f}"
    return "; ".join(filter(None, (change.cause, tested, change.remark)))


def listed_change_points(history: History) -> list[ChangePoint]:
    """Return the change points to show, the worst first; a component belongs to the line of its peak."""
    peaks = {
        (change.row, change.first, change.second)
        for change in history.change_points
        if change.quantity.kind == "memory" and not change.quantity.part
    }
    found = [
        c for c in history.change_points if not (c.quantity.part and (c.row, c.first, c.second) in peaks)
    ]
    return sorted(found, key=lambda change: (change.doubtful, not change.worse))


def breaks(history: History) -> list[str]:
    """Write where and why series end, a line for each place and reason."""
    quantities = [quantity.name for quantity in history.quantities]
    ordered = sorted(history.breaks, key=lambda each: each.order)
    found = []
    for (order, beside, differences), alike in grouped(ordered, _reason).items():
        rows = _listed([each.row for each in alike], history.rows, "rows")
        what = _listed([each.quantity.name for each in alike], quantities, "quantities")
        kind = "also" if beside else "from here"
        why = listed(differences) or "nothing that records name"
        found.append(f"{history.commits[order].name}: {kind} {why} ({rows}; {what})")
    return found


def _reason(each: Break) -> tuple[int, bool, tuple[Difference, ...]]:
    """Return the place and the reason of a break; an id of a config is one only without its settings."""
    reasons = tuple(field for field in each.differences if field.field != "config_id")
    return each.order, each.beside, reasons or each.differences


def _listed(several: Iterable[str], everything: Iterable[str], word: str) -> str:
    """Write a few names, `all <word>`, or how many."""
    names, count = list(dict.fromkeys(several)), len(set(everything))
    if len(names) == count > 1:
        return f"all {count} {word}"
    return ", ".join(names) if len(names) <= MOST_NAMES else f"{len(names)} of {count} {word}"


def method(history: History) -> list[str]:
    """Describe how change points were found, and which series could not be searched."""
    noisy = [series for series in history.series if not series.quantity.exact]
    searched = sum(series.tested for series in noisy)
    found = []
    if searched:
        found.append(
            f"noisy quantities: {METHOD}, {PERMUTATIONS} permutations, at most {100 * ALPHA:.0f} % "
            f"false alarms a series ({searched} searched); ignored are changes of time below "
            f"{100 * LEAST_SPEED_CHANGE:.0f} %, of perplexity below {100 * LEAST_PERPLEXITY_CHANGE:.1f} %, "
            "and of accuracy within its sampling error over documents"
        )
    few = sum(len(series.by_commit) > 1 and not series.tested for series in noisy)
    if few:
        found.append(
            f"{few} noisy series have too few runs to be searched: it takes 8, with 3 on each side, of one "
            "seed where it is quality (or 3 seeds at 4 commits)"
        )
    return [*found, *_exact(history)] if len(history.commits) > 1 else found


def _exact(history: History) -> Iterator[str]:
    """Describe which changes of bytes and outcomes count: those of an allocator are not exact."""
    exact = [series for series in history.series if series.quantity.exact]
    outcomes = any(series.quantity.kind == "status" for series in exact)
    counted = [s.environment.get("meter") in EXACT for s in exact if s.quantity.kind == "memory"]
    bytes_ = "bytes" if all(counted) else "bytes that are counted"
    names = [name for name, is_there in ((bytes_, any(counted)), ("outcomes", outcomes)) if is_there]
    if names:
        yield f"{' and '.join(names)}: any change between runs of one seed counts"
    if not all(counted):
        yield (
            "bytes by an allocator: a change between runs of one seed counts beyond "
            f"{100 * CUDA_SHARE:.1f} % + {CUDA_BYTES >> 20} MiB"
        )


def remarks(history: History) -> list[str]:
    """Return the remarks on single series, but that they are short."""
    return [
        f"{series.row}: {series.quantity.name}: {remark}"
        for series in history.series
        for remark in series.remarks
        if series.tested and "no test" not in remark
    ]
