"""Rows of a page in charts: their names, groups that may share a chart, and their quantities."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.tables.aggregate import Row, Stat, agree
from harness.tables.format import DASH, UNITS, Show, byte_unit, fixed, percent, plain, significant
from harness.tables.report.at_scale import GIB, AtScale
from harness.tables.report.notes import status
from harness.tables.report.view import View, traits

Better = Literal["lower", "higher"]

_LABEL = 26  # characters of a row's name that a phone still has room for beside a chart
_DIFFERENCE = 90


@dataclass(frozen=True)
class Group:
    """Rows, by their places, that may share a chart; `title` is how they differ from other groups."""

    places: tuple[int, ...]
    title: str = ""


@dataclass(frozen=True)
class Quantity:
    """A quantity of the report: its key, its name with the unit, and how it is scaled, written and judged.

    `forecast` gives values that stand in place of measured ones.
    """

    key: str
    name: str
    better: Better
    show: Show
    scale: float = 1.0
    forecast: Callable[[Row], float | None] | None = None

    def stat(self, row: Row) -> Stat | None:
        """Return what is known of a row, unscaled."""
        if self.forecast is None:
            return row.stats.get(self.key)
        value = self.forecast(row)
        return None if value is None else Stat(value, None, 1)


def names(view: View) -> list[str]:
    """Return the label of every row, with its distinguishing traits where several share one."""
    counts = Counter(view.names)
    traits = [(key.split(".")[-1], view.trait(key)) for key in view.varying]
    return [
        name
        if counts[name] == 1
        else ", ".join((name, *(f"{key} {values[place]}" for key, values in traits if values[place] != DASH)))
        for place, name in enumerate(view.names)
    ]


def labels(view: View, group: Group) -> list[str]:
    """Return short names of a group's rows for a chart, whose title distinguishes the group already."""
    own = [view.names[place] for place in group.places]
    if len(set(own)) < len(own):
        own = [names(view)[place] for place in group.places]
    return [short(name) for name in own]


def short(name: str) -> str:
    """Shorten a name for the axis of a chart."""
    return plain(name, _LABEL)


def groups(view: View) -> list[Group]:
    """Group rows by what must be equal for a comparison: environment, model and data."""
    found: list[tuple[dict[str, str], dict[str, str], list[int]]] = []
    for place, row in enumerate(view.rows):
        work = row.section("model", "data")
        for environment, other, places in found:
            if work == other and agree(environment, row.environment):
                environment |= row.environment
                places.append(place)
                break
        else:
            found.append((dict(row.environment), work, [place]))
    if len(found) == 1:
        return [Group(tuple(found[0][2]))]
    return [Group(tuple(places), _difference(view, places)) for *_, places in found]


def _difference(view: View, places: Sequence[int]) -> str:
    """Write how a group differs from the others, by its own values."""
    rows = [view.rows[place] for place in places]
    apart = {key for row in view.rows for key in (*row.environment, *row.section("model", "data"))}
    known = {key: value for row in rows for key, value in traits(row).items() if key in apart}
    values = (f"{key.split('.')[-1]} {known[key]}" for key in view.varying if key in known)
    return plain(", ".join(values), _DIFFERENCE)


def quality(view: View) -> list[Quantity]:
    """Return every perplexity, and accuracy as one quantity: the mean, or that of the only task."""
    keys = list(dict.fromkeys(key for row in view.rows for key in row.stats))
    found = [
        Quantity(key, f"perplexity, {key.removeprefix('perplexity_')}", "lower", _digits(view, key))
        for key in keys
        if key.startswith("perplexity_")
    ]
    scores = [key for key in keys if key.startswith("accuracy_") and not key.startswith("accuracy_stderr_")]
    if "mean_accuracy" in keys:
        found.append(Quantity("mean_accuracy", "mean accuracy, %", "higher", percent, 100))
    elif len(scores) == 1:
        name = f"accuracy, {scores[0].removeprefix('accuracy_')}, %"
        found.append(Quantity(scores[0], name, "higher", percent, 100))
    return found


def memory(view: View, group: Group, scale: AtScale | None = None) -> Quantity:
    """Return peak memory of training: forecast at scale, else measured in a unit for the group.

    Where no row trains, the forecast is that of scoring text, and its name says so.
    """
    key = "peak_allocated_bytes"
    if scale and any(each.peak_bytes for each in scale.rows.values()):
        name = f"peak GiB of {_forecast_of(scale)}, forecast"
        return Quantity(
            *(key, name, "lower", lambda size: fixed(1)(size / GIB), 1 / GIB),
            forecast=lambda row: scale.of(row).peak_bytes,
        )
    unit, show = byte_unit(max((view.rows[place].mean(key) or 0 for place in group.places), default=0))
    return Quantity(key, f"peak memory, {unit}", "lower", show, 1 / dict(UNITS)[unit])


def speed(view: View, scale: AtScale | None = None) -> Quantity:
    """Return throughput of training: the forecast at scale, of scoring where no row trains, else measured."""
    key = "tokens_per_s"
    if scale and any(each.tokens_per_s for each in scale.rows.values()):
        name = f"tokens/s of {_forecast_of(scale)}, forecast"
        return Quantity(key, name, "higher", fixed(0), forecast=lambda row: scale.of(row).tokens_per_s)
    return Quantity(key, "throughput, tokens/s", "higher", _digits(view, key))


def _forecast_of(scale: AtScale) -> str:
    return f"scoring text by {short(scale.model)}" if scale.scoring else short(scale.model)


def point(view: View, place: int, quantity: Quantity) -> Stat | None:
    """Return a row's value in the unit of the quantity, None where the mean is missing or not finite."""
    stat = quantity.stat(view.rows[place])
    if stat is None or not math.isfinite(stat.mean):
        return None
    return Stat(stat.mean * quantity.scale, None if stat.sd is None else stat.sd * quantity.scale, stat.n)


def written(view: View, place: int, quantity: Quantity) -> str:
    """Write the same as text, for the label of a point, a dash where nothing is known."""
    stat = quantity.stat(view.rows[place])
    if stat is None:
        return f"{quantity.name}: {DASH}"
    spread = f" ± {quantity.show(stat.sd)}" if stat.sd else ""
    count = "" if quantity.forecast else f" (n={stat.n})"
    return f"{quantity.name}: {quantity.show(stat.mean)}{spread}{count}"


def missing(view: View, place: int, unknown: str = "no value") -> str:
    """Return why a row has no point; `unknown` where it was trained and ended well."""
    records = view.rows[place].records
    if any(record.outcome.status != "ok" for record in records):
        return status(records)
    return unknown if any(record.training for record in records) else "not trained"


def titled(title: str, group: Group) -> str:
    """Return the title of a chart of a group."""
    text = f"{title} ({group.title})" if group.title else title
    return text[0].upper() + text[1:]


def _digits(view: View, key: str) -> Show:
    means = [row.mean(key) or 0 for row in view.rows]
    return significant(means, 4) if any(means) else fixed(2)
