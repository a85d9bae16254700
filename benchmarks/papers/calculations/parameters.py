"""Counts of parameters, and what follows from the shapes of matrices."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from benchmarks.papers.calculations.prepared import MethodChoice, prepared
from benchmarks.papers.calculations.value import Value, in_unit, shape_name

Count = Literal[
    "total",
    "trainable",
    "frozen",
    "targets",
    "others",
    "factored",
    "dense_targets",
    "support",
    "adapters",
]
What = Literal["hidden", "intermediate", "layers", "heads", "vocab"]


def parameters(
    shape: str,
    method: MethodChoice = "full",
    count: Count = "total",
    unit: str = "million",
    beside: NonNegativeInt = 0,
) -> Value:
    """Count parameters of a model as the real method prepares it, tied ones once, buffers not counted.

    `targets` are the seven linear layers of each block and what takes their place, `others` the rest;
    `factored` and `dense_targets` split the targets of a low-rank method; `support` are indices (a buffer).
    `beside` are further numbers that a paper counts, such as those of a classifier.
    """
    found = prepared(shape, method)
    how = f"parameters ({count}) counted in the real modules without values{_assuming(found.assumption)}"
    how += f", and {beside} beside" if beside else ""
    return Value(in_unit(found.counts[count] + beside, unit), unit, how)


def parameter_ratio(
    shape: str, method: MethodChoice, of: Literal["model", "targets", "trainable"] = "model"
) -> Value:
    """Return parameters over those of the dense model: of all, of the targets, or trainable over all."""
    after, before = prepared(shape, method), prepared(shape, "full")
    ours = "total" if of == "model" else of
    dense = "targets" if of == "targets" else "total"
    how = f"parameters ({ours}) over those of the dense model ({dense}){_assuming(after.assumption)}"
    return Value(after.counts[ours] / before.counts[dense], "ratio", how)


def bits_with_adapters(
    shape: str, bits: PositiveFloat, rank: PositiveInt, adapter_bits: PositiveFloat
) -> Value:
    """Return the bits of a weight of the targets, with those of LoRA adapters of a rank beside them."""
    targets = prepared(shape, "full").counts["targets"]
    adapters = prepared(shape, {"lora": {"rank": rank}}).counts["adapters"]
    how = f"{bits:g} + {adapter_bits:g} x adapters / targets, both counted in the real modules without values"
    return Value(bits + adapter_bits * adapters / targets, "bits", how)


def rank_reduction_total(shape: str) -> Value:
    """Return the denominator of effective rank reduction: min(out, in) summed over all targets.

    WeLore, arXiv 2407.11239v1, footnote 5.
    """
    how = "min(out, in) summed over the attention and feed-forward matrices of the real model"
    return Value(prepared(shape, "full").ranks_total, "ranks", how)


def break_even_rank(m: int, n: int) -> Value:
    """Return the largest rank at which two factors hold fewer numbers than the matrix: k (m + n) < m n."""
    return Value((m * n - 1) // (m + n), "ranks", "the largest k with k (m + n) < m n")


def size(shape: str, what: What) -> Value:
    """Return a width or a count of a named shape."""
    from harness.config import ShapeModel
    from harness.engine.models.shapes import shape_of

    found = shape_of(ShapeModel(source="shape", name=shape_name(shape)))
    return Value(int(getattr(found, what)), "", f"{what} of our shape {shape_name(shape)}")


def rank_over_width(shape: str, rank: int) -> Value:
    """Return the text `rank / width`, as tables print the two."""
    width = size(shape, "hidden").value
    return Value(f"{rank} / {width}", "text", f"the rank beside the width of our shape {shape_name(shape)}")


def _assuming(assumption: str) -> str:
    return f"; no weights are read: {assumption}" if assumption else ""
