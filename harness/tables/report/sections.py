"""The tables of a report: an overview, perplexity, accuracy, memory, speed and size, time to a target."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from operator import sub, truediv

from harness.record import COMPONENTS
from harness.tables import format
from harness.tables.aggregate import FACTS
from harness.tables.format import DASH, Column, Show, Table
from harness.tables.report import notes
from harness.tables.report.at_scale import AtScale
from harness.tables.report.view import View

FLOOR = "floor"
CHANCE = "chance"
GLANCE = "At a glance"
ENDINGS = "Runs"


def sections(view: View, scale: AtScale | None = None) -> list[Table]:
    """Return an overview, how the runs ended and in what the rows differ, and what was measured by kind."""
    name = Column("method", tuple(view.names), numeric=False)
    differs = [Column(key, tuple(view.trait(key)), numeric=False) for key in view.varying]
    unique = len(set(view.names)) == len(view.names)
    stub = [name] if unique else [name, *differs]
    ended = Column("status", tuple(notes.status(row.records) for row in view.rows), numeric=False)
    seeds = Column("seeds", tuple(str(len(row.seeds)) for row in view.rows))
    ends = Table(ENDINGS, tuple(stub), (*(differs if unique else ()), ended, seeds))
    found = [draft.table(stub) for make in (_perplexity, _accuracy, _memory, _speed) if (draft := make(view))]
    found += [
        replace(_Draft(goal.title, goal.columns(view.versus)).table(stub), notes=goal.notes)
        for goal in view.goals
        if goal.known
    ]
    return [_glance(view, scale).table(stub), ends, *found] if found else [ends]


@dataclass
class _Draft:
    """The value columns of a table; `last` is the name of a line below the rows, then a cell a column."""

    title: str
    columns: list[Column]
    last: tuple[str, ...] = ()

    def table(self, stub: Sequence[Column]) -> Table:
        """Put the stub in front; columns in which nothing was measured are left out."""
        columns = [*stub, *self.columns]
        if self.last:
            name, *cells = self.last
            below = [name, *[""] * (len(stub) - 1), *cells]
            pairs = zip(columns, below, strict=True)
            columns = [replace(column, cells=(*column.cells, cell)) for column, cell in pairs]
        measured = tuple(column for column in columns[len(stub) :] if not column.empty)
        return Table(self.title, tuple(columns[: len(stub)]), measured)


# -------------------------------------------------------------------------------------- the tables
def _glance(view: View, scale: AtScale | None) -> _Draft:
    """Draft one column of each kind: what a reader looks at first.

    Memory and speed are those at scale, where they are known: activations fill the memory of a small model.
    """
    unit, bytes_shown = format.byte_unit(max(_known(view, "peak_allocated_bytes"), default=0))
    head = view.headline
    wanted = [(head, f"ppl {_name(head)}", _digits(view, head))] if head else []
    wanted += [("mean_accuracy", "accuracy %", format.percent)]
    if scale is None:
        wanted += [
            ("peak_allocated_bytes", f"peak {unit}", bytes_shown),
            ("tokens_per_s", "tokens/s", _digits(view, "tokens_per_s")),
        ]
    columns = []
    for key, title, show in wanted:
        columns += [_measured(view, key, title, show)]
        columns += [replace(_ratio(view, key), spare=key != head)] if key != "mean_accuracy" else []
        columns += [_verdicts(view)] if key == head else []
    columns += scale.columns(view.rows, view.bases) if scale else ()
    return _Draft(GLANCE, columns if scale else [*columns, _trainable(view, joined=False)])


def _perplexity(view: View) -> _Draft | None:
    columns, last, known = [], [FLOOR], False
    for key in _keys(view, "perplexity_"):
        floor, show = view.floors.get(key), _digits(view, key)
        bases = {base.mean(key) for base in view.bases if base}
        base = bases.pop() if len(bases) == 1 else None
        columns += [_measured(view, key, _name(key), show), _ratio(view, key)]
        last += _texts([floor], show) + _texts([floor / base if floor and base else None], format.ratio)
        known |= floor is not None
    return _Draft("Perplexity (lower is better)", columns, tuple(last) if known else ()) if columns else None


def _accuracy(view: View) -> _Draft | None:
    names = list(view.task_names.values())
    if not names:
        return None
    prefix = _prefix(names)
    columns = [
        _measured(
            view, f"accuracy_{name}", name.removeprefix(prefix), format.percent, f"accuracy_stderr_{name}"
        )
        for name in names
    ]
    columns.append(_measured(view, "mean_accuracy", "mean", format.percent, "mean_accuracy_stderr"))
    key = "mean_accuracy" if len(names) > 1 else f"accuracy_{names[0]}"
    columns.append(_relative(view, key, f"Δ {view.versus}", sub, format.points))
    chances = [view.chances.get(name) for name in names]
    known = [value for value in chances if value is not None]
    mean = math.fsum(known) / len(known) if known and len(known) == len(names) else None
    last = (CHANCE, *_texts([*chances, mean, None], format.percent)) if known else ()
    where = f" on {prefix}…" if prefix else ""
    return _Draft(
        f"Accuracy{where}, % (± over seeds) [binomial standard error over documents]", columns, last
    )


def _memory(view: View) -> _Draft | None:
    peaks = _known(view, "peak_allocated_bytes")
    if not peaks:
        return None
    unit, show = format.byte_unit(max(peaks))
    columns = [_measured(view, "peak_allocated_bytes", "peak", show), _ratio(view, "peak_allocated_bytes")]
    for key in COMPONENTS:  # the whole name of the last one would split the table
        head = format.component(key).removeprefix("weights ").removesuffix(" and temporaries")
        columns.append(_mean(view, key, head, show))
    meters = sorted({row.environment["meter"] for row in view.rows if "meter" in row.environment})
    counted = ", ".join(format.METERS[meter] for meter in meters)
    title = f"Peak memory of training by component, {unit} ({counted}; activations include temporaries)"
    return _Draft(title, columns)


def _speed(view: View) -> _Draft | None:
    columns = [
        _measured(view, "tokens_per_s", "tokens/s", _digits(view, "tokens_per_s")),
        _ratio(view, "tokens_per_s"),
        _mean(view, "mfu", "MFU %", format.percent),
        _mean(view, "parameters", "parameters", format.fixed(0)),
        _mean(view, "trainable_parameters", "trainable", format.fixed(0)),
        _trainable(view, joined=True),
    ]
    first, *others = (_mean(view, fact, name, format.fixed(3)) for fact, name in FACTS.items())
    columns += [first, *(replace(column, joined=True) for column in others)]
    return None if all(column.empty for column in columns) else _Draft("Speed and size", columns)


# ------------------------------------------------------------------------------------------- parts
def _prefix(names: Sequence[str]) -> str:
    """Return what several task names have in common up to an underscore, so headings need not repeat it."""
    heads = [{name[: at + 1] for at, char in enumerate(name) if char == "_"} for name in names]
    return max(set.intersection(*heads), key=len, default="") if len(names) > 1 else ""


def _keys(view: View, prefix: str) -> list[str]:
    return list(dict.fromkeys(key for row in view.rows for key in row.stats if key.startswith(prefix)))


def _name(key: str) -> str:
    return key.removeprefix("perplexity_")


def _known(view: View, key: str) -> list[float]:
    return [mean for row in view.rows if (mean := row.mean(key)) is not None]


def _verdicts(view: View) -> Column:
    return Column("verdict", tuple(found.cell for found in view.verdicts), numeric=False, joined=True)


def _digits(view: View, key: str) -> Show:
    return format.significant(_known(view, key), 4)


def _texts(values: Iterable[float | None], show: Show) -> list[str]:
    return [DASH if value is None else show(value) for value in values]


def _mean(view: View, key: str, name: str, show: Show) -> Column:
    return Column(name, tuple(_texts([row.mean(key) for row in view.rows], show)), key=f"{key}_mean")


def _trainable(view: View, joined: bool) -> Column:
    pairs = [(row.mean("trainable_parameters"), row.mean("parameters")) for row in view.rows]
    shares = [part / total if total and part is not None else None for part, total in pairs]
    return Column("trainable %", tuple(_texts(shares, format.percent)), joined=joined, spare=not joined)


def _ratio(view: View, key: str) -> Column:
    return replace(_relative(view, key, view.versus, truediv, format.ratio), key=f"{key}_ratio")


def _relative(
    view: View, key: str, name: str, combine: Callable[[float, float], float], show: Show
) -> Column:
    return Column(name, tuple(_texts(view.relative(key, combine), show)), joined=True)


def _measured(view: View, key: str, name: str, show: Show, error_key: str = "") -> Column:
    """Write mean ± spread [standard error], and the count where values are missing.

    No spread is written where it is zero. A perplexity that is worse than that of an untrained model has a
    mark.
    """
    stats = [row.stats.get(key) for row in view.rows]
    texts = []
    for row, stat, harmed in zip(view.rows, stats, view.harmed, strict=True):
        if stat is None:
            texts.append(DASH)
            continue
        error = row.mean(error_key)
        expected = len(row.records) if key in ("peak_allocated_bytes", "tokens_per_s") else len(row.seeds)
        text = show(stat.mean) + (notes.MARK if harmed and harmed.key == key else "")
        text += f" ± {show(stat.sd)}" if stat.sd else ""
        text += f" [{show(error)}]" if error is not None else ""
        texts.append(text if stat.n == expected else f"{text} (n={stat.n})")
    return Column(name, tuple(texts), key=f"{key}_mean")
