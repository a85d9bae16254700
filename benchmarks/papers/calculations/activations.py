"""Inputs that linear layers keep for the backward pass, as VeLoRA (arXiv 2405.17991v2) reckons them."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from benchmarks.papers.calculations.parameters import size
from benchmarks.papers.calculations.value import Value, in_unit
from harness.errors import UserError

Kind = Literal["q", "k", "v", "o", "gate", "up", "down"]
#: What the paper's estimates count: gate and up are left out, and q, k and v have a copy of their input each,
#: which they share in fact.
COUNTED: tuple[Kind, ...] = ("q", "k", "v", "o", "down")


def saved_inputs(
    shape: str,
    compressed: list[Kind] | None = None,
    subtoken_size: PositiveInt | None = None,
    groups: PositiveInt | None = None,
    tokens: PositiveInt = 1024,
    counted: list[Kind] | None = None,
    unit: str = "GiB",
    less_than: float | None = None,
) -> Value:
    """Return inputs kept for backward in 16 bits, those of `compressed` layers as one number per sub-token.

    Sub-tokens have `subtoken_size` features (the paper's M) or are `groups` per token. `less_than` is a
    memory without compression, in `unit`; the value is then this memory less what compression spares.

    Found by calculation, all at 1024 tokens: Table 6 is in GiB with M = 128 for every layer, and 8 of its 9
    cells follow (0.24 does not: one input that is left whole is 0.25). Table 5b is in thousandths of a GiB,
    and its M = D/n is 512/n, 8 to 64, though no width of this model is 512: all 4 cells follow. Table 3 has
    QLoRA + VeLoRA as QLoRA less what is spared at M = 32 (7B) and 128 (13B): sizes of sub-tokens, not groups.
    """
    chosen, kinds = compressed or [], counted or list(COUNTED)
    if chosen and (subtoken_size is None) == (groups is None):
        raise UserError("saved_inputs takes subtoken_size or groups for compressed layers; give one of them")
    if odd := [kind for kind in chosen if kind not in kinds]:
        raise UserError(f"compressed {', '.join(odd)} is not counted; counted are {', '.join(kinds)}")
    widths = {kind: int(size(shape, "intermediate" if kind == "down" else "hidden").value) for kind in kinds}
    layers = int(size(shape, "layers").value)
    kept = {
        kind: _sub_tokens(widths[kind], subtoken_size, groups) if kind in chosen else widths[kind]
        for kind in kinds
    }
    whole, left = (in_unit(2.0 * tokens * layers * sum(each.values()), unit) for each in (widths, kept))
    how = f"16-bit inputs of {', '.join(kinds)} in {layers} blocks at {tokens} tokens, a copy for each"
    if chosen:
        by = f"sub-tokens of {subtoken_size}" if subtoken_size else f"{groups} sub-tokens per token"
        how += f"; {', '.join(chosen)} as {by}"
    if less_than is None:
        return Value(left, unit, how)
    return Value(
        less_than - (whole - left), unit, f"{less_than:g} {unit} (published) less what is spared: {how}"
    )


def _sub_tokens(width: int, subtoken_size: int | None, groups: int | None) -> float:
    """Return the number of sub-tokens per token; UserError where they do not fill it."""
    number = groups or width // (subtoken_size or 1)
    if width % number or (subtoken_size and width % subtoken_size):
        given = f"subtoken_size {subtoken_size}" if subtoken_size else f"groups {groups}"
        raise UserError(f"{given} does not divide the width {width}; give a divisor")
    return number
