"""The small tables of a report: perplexity, accuracy, memory, speed and size."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from harness.record import COMPONENTS
from harness.tables import format
from harness.tables.aggregate import FACTS, task_names
from harness.tables.format import DASH, Column, Show, Table
from harness.tables.report import notes
from harness.tables.report.view import View

FLOOR = "floor (oracle)"
CHANCE = "chance"
GLANCE = "At a glance"
ENDINGS = "Runs"


def sections(view: View) -> list[Table]:
    """The tables that have something to say; the first says how each row ended and what differs."""
    drafts = [draft for make in (_perplexity, _accuracy, _memory, _speed) if (draft := make(view))]
    if len(drafts) > 1:
        drafts.insert(0, _glance(view))
    name = Column("method", tuple(view.names), numeric=False)
    differs = [Column(key, tuple(view.trait(key)), numeric=False) for key in view.varying]
    stub = [name] if len(set(view.names)) == len(view.names) else [name, *differs]
    ended = Column("status", tuple(notes.status(row.records) for row in view.rows), numeric=False)
    seeds = Column("seeds", tuple(str(len(row.seeds)) for row in view.rows))
    full = [name, *differs]
    # How runs ended stands beside the first figures where the line has room, else in a table of its own.
    if not drafts or len(drafts[0].table(full, [ended, seeds]).split()) > 1:
        drafts.insert(0, _Draft(ENDINGS, []))
    first, *others = drafts
    tables = [first.table(full, [ended, seeds]), *(draft.table(stub) for draft in others)]
    return [piece for table in tables for piece in table.split()]


@dataclass
class _Draft:
    """The value columns of a table, and the name of the line below the rows if there is one."""

    title: str
    columns: list[Column]
    last: str | None = None

    def table(self, stub: Sequence[Column], lead: Sequence[Column] = ()) -> Table:
        """Put the stub and leading columns in front; columns in which nothing was measured are left out."""
        kept = tuple(column for column in self.columns if not column.empty)
        if self.last is not None:
            name, *rest = stub
            stub = [replace(name, cells=(*name.cells, self.last)), *map(_blank_below, rest)]
            lead = [_blank_below(column) for column in lead]
        return Table(self.title, tuple(stub), (*lead, *kept))


def _blank_below(column: Column) -> Column:
    return replace(column, cells=(*column.cells, ""))


# -------------------------------------------------------------------------------------- the tables
def _glance(view: View) -> _Draft:
    """One figure of each kind: what a reader looks at first."""
    peaks = [row.mean("peak_allocated_bytes") for row in view.rows]
    unit, bytes_shown = format.byte_unit(max((peak for peak in peaks if peak is not None), default=0))
    rates = format.significant([row.mean("tokens_per_s") or 0 for row in view.rows], 4)
    wanted: list[tuple[str, str, Show]] = [
        ("mean_accuracy", "accuracy %", format.percent),
        ("peak_allocated_bytes", f"peak {unit}", bytes_shown),
        ("tokens_per_s", "tokens/s", rates),
    ]
    for key in [key for key in _keys(view) if key.startswith("perplexity_")][:1]:
        shown = format.significant([row.mean(key) or 0 for row in view.rows], 4)
        wanted.insert(0, (key, f"ppl {key.removeprefix('perplexity_')}", shown))
    columns = []
    for key, title, show in wanted:
        columns.append(Column(title, tuple(_measured(view, key, show)), key=f"{key}_mean"))
        if key != "mean_accuracy":
            relative = _texts(view.relative(key, _ratio), format.ratio)
            columns.append(Column(view.versus, tuple(relative), joined=True, key=f"{key}_ratio"))
    columns.append(Column("trainable %", tuple(_texts(_trainable_shares(view), format.percent))))
    return _Draft(GLANCE, columns)


def _trainable_shares(view: View) -> list[float | None]:
    pairs = [(row.mean("trainable_parameters"), row.mean("parameters")) for row in view.rows]
    return [part / total if total and part is not None else None for part, total in pairs]


def _perplexity(view: View) -> _Draft | None:
    keys = [key for key in _keys(view) if key.startswith("perplexity_")]
    floors = {key: view.floor(key) for key in keys}
    known = any(value is not None for value in floors.values())
    columns = []
    for key in keys:
        below = floors[key]
        relative = view.relative(key, _ratio)
        bases = {base.mean(key) for base in view.bases if base}
        base = bases.pop() if len(bases) == 1 else None
        last = [below, below / base if below and base else None] if known else [None, None]
        show = format.significant([row.mean(key) or 0 for row in view.rows], 4)
        measured = _measured(view, key, show)
        columns += [
            _column(f"{key}_mean", key.removeprefix("perplexity_"), measured, last[0], show, known),
            _column(
                f"{key}_ratio",
                view.versus,
                _texts(relative, format.ratio),
                last[1],
                format.ratio,
                known,
                joined=True,
            ),
        ]
    return _Draft("Perplexity (lower is better)", columns, FLOOR if known else None) if keys else None


def _accuracy(view: View) -> _Draft | None:
    names = list(task_names(view.rows).values())
    guesses = {name: view.chance(name) for name in names}
    known = any(value is not None for value in guesses.values())
    prefix = _prefix(names)
    columns = []
    for name in names:
        errors = [row.mean(f"accuracy_stderr_{name}") for row in view.rows]
        measured = _measured(view, f"accuracy_{name}", format.percent, errors)
        key = f"accuracy_{name}_mean"
        columns.append(
            _column(key, name.removeprefix(prefix), measured, guesses[name], format.percent, known)
        )
    errors = [row.mean("mean_accuracy_stderr") for row in view.rows]
    measured = _measured(view, "mean_accuracy", format.percent, errors)
    found = [value for value in guesses.values() if value is not None]
    below = math.fsum(found) / len(found) if found and len(found) == len(names) else None
    key = "mean_accuracy" if len(names) > 1 else f"accuracy_{names[0]}" if names else ""
    change = _texts(view.relative(key, _difference), format.points)
    columns += [
        _column("mean_accuracy_mean", "mean", measured, below, format.percent, known),
        _column("", f"Δ {view.versus}", change, None, format.points, known, joined=True),
    ]
    where = f" on {prefix}…" if prefix else ""
    title = f"Accuracy{where}, % (± over seeds) [binomial standard error over documents]"
    return _Draft(title, columns, CHANCE if known else None) if names else None


def _memory(view: View) -> _Draft | None:
    peaks = [row.mean("peak_allocated_bytes") for row in view.rows]
    largest = max((peak for peak in peaks if peak is not None), default=None)
    if largest is None:
        return None
    unit, show = format.byte_unit(largest)
    columns = [
        Column("peak", tuple(_measured(view, "peak_allocated_bytes", show)), key="peak_allocated_bytes_mean"),
        Column(
            view.versus,
            tuple(_texts(view.relative("peak_allocated_bytes", _ratio), format.ratio)),
            joined=True,
            key="peak_allocated_bytes_ratio",
        ),
    ]
    for key in COMPONENTS:
        name = key.removesuffix("_bytes").replace("_", " ").replace("weights ", "")
        texts = tuple(_texts([row.mean(key) for row in view.rows], show))
        columns.append(Column(name, texts, key=f"{key}_mean"))
    meters = sorted({row.stand["meter"] for row in view.rows if "meter" in row.stand})
    title = f"Peak memory of training by component, {unit} (meter: {', '.join(meters)})"
    return _Draft(title, columns)


def _speed(view: View) -> _Draft | None:
    rates = [row.mean("tokens_per_s") or 0 for row in view.rows]
    totals = [row.mean("parameters") for row in view.rows]
    trainable = [row.mean("trainable_parameters") for row in view.rows]
    share = _trainable_shares(view)
    relative = _texts(view.relative("tokens_per_s", _ratio), format.ratio)
    whole = format.fixed(0)
    columns = [
        Column(
            "tokens/s",
            tuple(_measured(view, "tokens_per_s", format.significant(rates, 4))),
            key="tokens_per_s_mean",
        ),
        Column(view.versus, tuple(relative), joined=True, key="tokens_per_s_ratio"),
        Column(
            "MFU %", tuple(_texts([row.mean("mfu") for row in view.rows], format.percent)), key="mfu_mean"
        ),
        Column("parameters", tuple(_texts(totals, whole)), key="parameters_mean"),
        Column("trainable", tuple(_texts(trainable, whole)), key="trainable_parameters_mean"),
        Column("trainable %", tuple(_texts(share, format.percent)), joined=True),
    ]
    for fact in FACTS:
        values = [row.mean(fact) for row in view.rows]
        texts = tuple(_texts(values, format.fixed(3)))
        columns.append(Column(fact.replace("_", " "), texts, joined=fact != FACTS[0], key=f"{fact}_mean"))
    return None if all(column.empty for column in columns) else _Draft("Speed and size", columns)


# ------------------------------------------------------------------------------------------- parts
def _prefix(names: Sequence[str]) -> str:
    """What several task names have in common up to an underscore, so that headings need not repeat it."""
    heads = [{name[: at + 1] for at, char in enumerate(name) if char == "_"} for name in names]
    return max(set.intersection(*heads), key=len, default="") if len(names) > 1 else ""


def _keys(view: View) -> list[str]:
    return list(dict.fromkeys(key for row in view.rows for key in row.stats))


def _ratio(own: float, base: float) -> float:
    return own / base


def _difference(own: float, base: float) -> float:
    return own - base


def _texts(values: Iterable[float | None], show: Show) -> list[str]:
    return [DASH if value is None else show(value) for value in values]


def _measured(view: View, key: str, show: Show, errors: Sequence[float | None] = ()) -> list[str]:
    """Mean ± spread [error], and the count where values are missing; no spread where the column has none."""
    stats = [row.stats.get(key) for row in view.rows]
    spread = any(stat.sd for stat in stats if stat)
    texts = []
    for place, (row, stat) in enumerate(zip(view.rows, stats, strict=True)):
        if stat is None:
            texts.append(DASH)
            continue
        error = errors[place] if errors else None
        expected = len(row.records) if key in ("peak_allocated_bytes", "tokens_per_s") else len(row.seeds)
        text = show(stat.mean)
        text += f" ± {show(stat.sd)}" if spread and stat.sd is not None else ""
        text += f" [{show(error)}]" if error is not None else ""
        texts.append(text if stat.n == expected else f"{text} (n={stat.n})")
    return texts


def _column(
    key: str,
    name: str,
    above: Sequence[str],
    last: float | None,
    show: Show,
    line: bool,
    joined: bool = False,
) -> Column:
    """A column with a cell for the line below the rows when the table has such a line."""
    return Column(name, (*above, *_texts([last], show)) if line else tuple(above), joined=joined, key=key)
