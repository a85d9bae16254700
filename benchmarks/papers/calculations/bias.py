"""Errors of evaluation in published values: a sum of N losses over N + 1, and lost denominators."""

from __future__ import annotations

from math import exp, log
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from benchmarks.papers.calculations.value import Value
from harness.errors import UserError

#: GaLore's script: at least this many tokens that are no padding, and how many a row of 256 has on average
#: (about 84 % of the positions; APOLLO, SLTrain and VeLoRA descend from it).
EVALUATION_TOKENS, TOKENS_PER_ROW = 10_000_000, 215
Percent = Annotated[float, Field(ge=0, le=100)]


def evaluation_batches(rows_per_batch: PositiveInt, devices: PositiveInt = 1) -> Value:
    """Count batches per device over which GaLore's evaluation takes its mean."""
    batches = EVALUATION_TOKENS / (TOKENS_PER_ROW * rows_per_batch * devices)
    how = (
        f"{EVALUATION_TOKENS} tokens over {TOKENS_PER_ROW} tokens per row (an average), {rows_per_batch} "
        f"rows per batch and {devices} devices"
    )
    return Value(batches, "batches", how)


def unbiased_perplexity(
    perplexity: Annotated[float, Field(gt=1)],
    batches: PositiveFloat | None = None,
    rows_per_batch: PositiveInt | None = None,
    devices: PositiveInt = 1,
) -> Value:
    """Undo the division by N + 1 of a loss summed over N batches: ppl^((N + 1) / N).

    N is `batches`, or that of `evaluation_batches` at `rows_per_batch` and `devices`.
    """
    if (batches is None) == (rows_per_batch is None):
        raise UserError("unbiased_perplexity takes batches or rows_per_batch; give one of them")
    number = batches or float(evaluation_batches(rows_per_batch or 1, devices).value)
    how = (
        f"exp(log(perplexity) (N + 1) / N) with N = {number:.4g} batches; the published mean divides by N + 1"
    )
    return Value(exp(log(perplexity) * (number + 1) / number), "perplexity", how)


def multiple_of(
    percent: Percent,
    count: PositiveInt,
    give: Literal["fits", "nearest", "distance", "numerator"] = "fits",
    decimals: NonNegativeInt = 3,
) -> Value:
    """Check whether a percentage is k / count for a whole k, up to a unit of its last decimal.

    `nearest` is 100 k / count, `distance` in percentage points, `numerator` k.
    """
    numerator = round(percent * count / 100)
    nearest = 100 * numerator / count
    distance = abs(percent - nearest)
    value, unit = {
        "fits": (distance < 10**-decimals, "truth"),
        "nearest": (nearest, "percent"),
        "distance": (distance, "percentage points"),
        "numerator": (numerator, "answers"),
    }[give]
    how = f"the nearest k / {count} is {numerator} / {count} = {nearest:.{decimals + 1}f} %"
    return Value(value, unit, how)


def multiples(
    percents: Annotated[list[Percent], Field(min_length=1)],
    count: PositiveInt,
    decimals: NonNegativeInt = 3,
) -> Value:
    """Count the percentages that are k / count for a whole k, by the rule of `multiple_of`."""
    fitting = sum(bool(multiple_of(percent, count, "fits", decimals).value) for percent in percents)
    return Value(fitting, "values", f"{fitting} of {len(percents)} values are k / {count} for a whole k")
