"""Verdicts on a published value compared with ours: pure functions of numbers and words.

A value that follows from other facts (a formula, an average, a stated setting) is `arithmetic checked`
where ours agrees. One that came from a run is `reproduced`, or `same order` where it is off by no more than
the factor that its table states while no two values of its column are ordered otherwise than ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.errors import UserError
from harness.tables.papers.schema import Answer, Tolerance

Verdict = Literal[
    "reproduced",
    "same order",
    "arithmetic checked",
    "differs",
    "needs weights",
    "needs data",
    "needs device",
    "does not run as published",
]
VERDICTS: tuple[Verdict, ...] = (
    "reproduced",
    "same order",
    "arithmetic checked",
    "differs",
    "needs weights",
    "needs data",
    "needs device",
    "does not run as published",
)
NEEDS: dict[str, Verdict] = {
    "weights": "needs weights",
    "data": "needs data",
    "device": "needs device",
}
#: Kinds of units that can be turned into each other. "G" is that of some tables, 1024 million bytes: millions
#: of numbers, times their bytes, over 1024 (benchmarks/papers/calculations/value.py).
KINDS: tuple[dict[str, float], ...] = (
    {
        "bytes": 1,
        "MB": 1e6,
        "MiB": 2**20,
        "GiB/1000": 2**30 / 1000,
        "GB": 1e9,
        "GiB": 2**30,
        "G": 1.024e9,
    },
    {"x": 1, "ratio": 1, "share": 1, "percent": 0.01},
    {"ppl": 1, "perplexity": 1},
)
#: Binary fractions of printed decimals may be off by this share.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Ours:
    """Our number, text or truth, and how it was obtained."""

    value: float | str | bool
    by: Literal["calculated", "predicted", "measured", "printed"]
    how: str = ""
    conditions: tuple[tuple[str, str], ...] = ()


def converted(value: float, given: str, wanted: str) -> float:
    """Convert a value to another unit; UserError where the two cannot be compared.

    A value without a unit has that of the published values that it was made of.
    """
    if given in (wanted, ""):
        return value
    for kind in KINDS:
        if given in kind and wanted in kind:
            return value * kind[given] / kind[wanted]
    raise UserError(
        f"a value in {given!r} cannot be compared with one in {wanted!r}; name the same kind of unit"
    )


def agrees(published: float, ours: float, tolerance: Tolerance) -> bool:
    """Return whether ours lies within the tolerance around the published value."""
    room = max(tolerance.absolute, tolerance.relative * abs(published))
    return abs(ours - published) <= room + ROUNDING * max(abs(published), abs(ours))


def same_order(pairs: Iterable[tuple[float, float]]) -> bool:
    """Return whether no two (published, ours) of a column are in opposite order.

    One alone has no order.
    """
    known = list(pairs)
    discordant = any((a - b) * (x - y) < 0 for a, x in known for b, y in known)
    return len(known) > 1 and not discordant


def within_factor(published: float, ours: float, factor: float) -> bool:
    """Return whether the larger of two values of one sign is at most `factor` times the smaller."""
    if published == 0 or ours == 0 or published * ours < 0:
        return published == ours
    return 1 / factor <= ours / published <= factor


def verdict(
    answer: Answer,
    published: float | str | None,
    ours: Ours | None,
    tolerance: Tolerance | None,
    arithmetic: bool,
    column: Sequence[tuple[float, float]] = (),
) -> Verdict:
    """Return the verdict on a cell; `column` holds every (published, ours) of its column, its own too."""
    if answer.does_not_run:
        return "does not run as published"
    if ours is None:
        if answer.needs is None:
            raise UserError("no value of ours, and nothing that names what is missing; add `needs`")
        return NEEDS[answer.needs]
    if isinstance(ours.value, bool):
        return "arithmetic checked" if ours.value else "differs"
    if isinstance(ours.value, str) or isinstance(published, str) or published is None:
        return "arithmetic checked" if ours.value == published else "differs"
    if not math.isfinite(ours.value):
        return "differs"
    if tolerance is None:
        raise UserError("two numbers and no tolerance; give the table one, with its reason")
    if agrees(published, ours.value, tolerance):
        return "arithmetic checked" if arithmetic else "reproduced"
    near = within_factor(published, ours.value, tolerance.factor) and same_order(column)
    return "same order" if near and not arithmetic else "differs"
