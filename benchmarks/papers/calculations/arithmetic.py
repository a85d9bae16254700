"""Arithmetic over published values: means, differences and ratios that a text or table states."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from benchmarks.papers.calculations import formulas
from benchmarks.papers.calculations.value import Value, in_unit

Numbers = Annotated[list[float], Field(min_length=1)]


def mean(values: Numbers) -> Value:
    """Return the arithmetic mean."""
    return Value(sum(values) / len(values), "", f"mean of {len(values)} published values")


def total(values: Numbers) -> Value:
    """Return the sum."""
    return Value(sum(values), "", f"sum of {len(values)} published values")


def difference(minuend: float, subtrahend: float) -> Value:
    """Return the first minus the second."""
    return Value(minuend - subtrahend, "", f"{minuend:g} - {subtrahend:g}, both published")


def ratio(
    numerator: float,
    denominator: PositiveFloat,
    give: Literal["ratio", "percent", "reduction", "overhead"] = "ratio",
) -> Value:
    """Return the first over the second: as it is, in percent, or what is missing to or beyond 100 %.

    The overhead in time of a lower throughput is that of the higher one over it.
    """
    share = numerator / denominator
    value, formula = {
        "ratio": (share, "a / b"),
        "percent": (100 * share, "100 a / b"),
        "reduction": (100 * (1 - share), "100 (1 - a / b)"),
        "overhead": (100 * (share - 1), "100 (a / b - 1)"),
    }[give]
    how = f"{formula} with a = {numerator:g} and b = {denominator:g}, both published"
    return Value(value, "ratio" if give == "ratio" else "percent", how)


def tokens(
    steps: PositiveInt,
    rows: PositiveInt = 512,
    length: PositiveInt = 256,
    share: Annotated[float, Field(gt=0, le=1)] = 1.0,
    unit: Literal["elements", "million", "billion"] = "billion",
) -> Value:
    """Count positions, or the share of them that are no padding, in so many updates."""
    how = f"{steps} updates of {rows} rows of {length} positions, times {share:g}"
    return Value(in_unit(steps * rows * length * share, unit), unit, how)


def formula_value(formula: str, values: dict[str, float], unit: str = "") -> Value:
    """Return the value of a formula of + - * /, brackets, numbers and the names in `values`."""
    given = ", ".join(f"{name} = {number:g}" for name, number in values.items())
    how = f"{formula} with {given}" if given else formula
    return Value(formulas.number(formula, values), unit, how)
