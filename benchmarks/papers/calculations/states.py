"""Bytes of weights, optimizer states and gradients, by conventions that each have a name.

Papers reckon these in ways of their own, most of them unwritten. Each function below is one way; which
printed cells it fits stands with it, and `tests/unit/benchmarks/test_calculations_states.py` holds that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from benchmarks.papers.calculations.prepared import MethodChoice, one_method, prepared
from benchmarks.papers.calculations.value import Value, in_unit, shape_name
from harness.errors import UserError, nearest

Part = Literal["weights", "states", "gradients", "total", "training"]
Bits = Annotated[int, Field(gt=0, le=64)]
#: Sizes as they are called, in parameters. 1.3 times 1024 million fits what GaLore's tables print for 1B.
NOMINAL = {
    "60m": 60e6,
    "130m": 130e6,
    "350m": 350e6,
    "1b": 1.3 * 1024e6,
    "7b": 7e9,
    "llama-2-7b": 7e9,
    "8b": 8e9,
}


@dataclass(frozen=True)
class Parts:
    """Bytes of a model in training, activations left out."""

    weights: float
    states: float
    gradients: float

    def of(self, part: Part) -> float:
        """`total` is weights and states, `training` also the gradients."""
        total = self.weights + self.states
        parts = {"total": total, "training": total + self.gradients}
        return parts[part] if part in parts else float(getattr(self, part))


def kept(shape: str, method: MethodChoice, bits: int, state_bits: int) -> Parts:
    """What our modules (buffers included) and stepper hold in a bfloat16 model, in their own precisions.

    Bits are not read.
    """
    return _kept(shape, method, None)


def kept8(shape: str, method: MethodChoice, bits: int, state_bits: int) -> Parts:
    """`kept` where moments are in 8 bits (`train.state_bits: 8`), with their scales.

    Bits are not read.
    """
    return _kept(shape, method, 8)


def _kept(shape: str, method: MethodChoice, state_bits: int | None) -> Parts:
    found = prepared(shape, method, states=True, state_bits=state_bits)
    return Parts(found.weight_bytes + found.buffer_bytes, found.state_bytes, 2 * found.counts["trainable"])


def elements(shape: str, method: MethodChoice, bits: int, state_bits: int, index_bytes: int = 0) -> Parts:
    """Every number of weights and gradients at `bits`, each that the real stepper keeps at `state_bits`.

    In GB this is Figure 1 of SLTrain (arXiv 2406.02214) for full rank, GaLore and low-rank, and Low Rank at
    350M in Lotus' Table 1. GaLore's own Tables 2 and 6 are not reckoned so: see `nominal`.
    """
    found = prepared(shape, method, states=True)
    weights = found.counts["total"] * bits / 8 + index_bytes * found.counts["support"]
    return Parts(weights, found.state_elements * state_bits / 8, found.counts["trainable"] * bits / 8)


def indexed64(shape: str, method: MethodChoice, bits: int, state_bits: int) -> Parts:
    """`elements` and 8 bytes per index of a sparse entry, as SLTrain's code stores them: 6 P + 8 nnz."""
    return elements(shape, method, bits, state_bits, index_bytes=8)


def indexed32(shape: str, method: MethodChoice, bits: int, state_bits: int) -> Parts:
    """`elements` and 4 bytes per index of a sparse entry, as ours are stored."""
    return elements(shape, method, bits, state_bits, index_bytes=4)


def nominal(shape: str, method: MethodChoice, bits: int, state_bits: int) -> Parts:
    """Dense parts at the size that the model is called by, all else from the factored model: GaLore's way.

    It is unwritten and was found by calculation. 60M is 60 million, 1B is 1.3 x 1024 million; P is what a
    model has whose targets are factored at the same rank, embeddings and head included.
    full: weights nominal, states twice that. lowrank: weights P, states 2 P. lora (and ReLoRA): weights
    nominal + P, so embeddings count twice, states 2 P. galore: weights nominal, states 3/4 of 2 P, which is
    what m r + 2 n r is of 2 m r + 2 n r where m = n, taken for every matrix, and for the embeddings, which
    GaLore does not project.

    In units of G (1024 x 10^6 bytes) all 40 cells of Tables 6a and 6b (arXiv 2403.03507v2) follow to within
    0.006, and Table 2 as their sum to within 0.011; by the formula of Table 1 (`elements`) they do not.

    Q-GaLore's estimates (arXiv 2407.08296) are those of galore at `bits` 8 and `state_bits` 16, to within
    0.013.
    """
    model, (name, options) = shape_name(shape), one_method(method)
    if model not in NOMINAL:
        raise UserError(f"no nominal size of shape {shape!r}; {nearest(model, NOMINAL)}")
    size = NOMINAL[model]
    if name == "full":
        return Parts(size * bits / 8, 2 * size * state_bits / 8, size * bits / 8)
    if not isinstance(rank := options.get("rank"), int):
        raise UserError(f"convention nominal needs full, or one method with a rank, given {method!r}")
    factored = float(prepared(shape, {"lowrank": {"rank": rank}}).counts["total"])
    sizes = {
        "lowrank": Parts(factored, 2 * factored, factored),
        "lora": Parts(size + factored, 2 * factored, factored),
        "galore": Parts(size, 1.5 * factored, size),
    }
    if name not in sizes:
        raise UserError(f"convention nominal knows no method {name!r}; {nearest(name, ['full', *sizes])}")
    found = sizes[name]
    return Parts(found.weights * bits / 8, found.states * state_bits / 8, found.gradients * bits / 8)


CONVENTIONS: dict[str, Callable[[str, MethodChoice, int, int], Parts]] = {
    function.__name__: function for function in (kept, kept8, elements, indexed64, indexed32, nominal)
}


def state_bytes(
    shape: str,
    method: MethodChoice = "full",
    part: Part = "total",
    convention: str = "elements",
    unit: str = "GB",
    bits: Bits = 16,
    state_bits: Bits | None = None,
) -> Value:
    """Return bytes of weights, states or gradients by a convention; `state_bits` are `bits` unless given."""
    found = _parts(shape, method, convention, bits, state_bits)
    summary = (CONVENTIONS[convention].__doc__ or "").splitlines()[0].rstrip(".")
    how = f"{part} by the convention {convention}: {summary}"
    return Value(in_unit(found.of(part), unit), unit, how)


def state_reduction(
    shape: str,
    method: MethodChoice,
    than: MethodChoice = "full",
    part: Part = "states",
    convention: str = "elements",
    bits: Bits = 16,
    state_bits: Bits | None = None,
    than_state_bits: Bits | None = None,
    give: str = "percent",
) -> Value:
    """Return how much less one method keeps than another, in percent of the other or in a unit of bytes."""
    ours = _parts(shape, method, convention, bits, state_bits).of(part)
    other = _parts(shape, than, convention, bits, than_state_bits).of(part)
    how = f"{part} of the one less than those of the other, both by the convention {convention}"
    if give == "percent":
        return Value(100 * (1 - ours / other), "percent", how)
    return Value(in_unit(other - ours, give), give, how)


def weight_bytes(
    shape: str, bits: Bits, of: Literal["model", "targets", "others"] = "model", unit: str = "GiB"
) -> Value:
    """Return bytes of the dense weights at `bits` each.

    `targets` are the linear layers of the blocks, `others` all else.
    """
    found = prepared(shape, "full").counts["total" if of == "model" else of]
    return Value(in_unit(found * bits / 8, unit), unit, f"weights of the {of} at {bits} bits each")


def implied_rank(
    shape: str, memory: float, convention: str = "elements", unit: str = "GB", part: Part = "total"
) -> Value:
    """Return the one rank for all matrices at which a projected optimizer would have this memory.

    Every convention is linear in it. It is below 0 where even rank 0 takes more: dense weights, and plain
    Adam for all that is not projected.
    """
    at = {
        rank: in_unit(_parts(shape, {"galore": {"rank": rank}}, convention, 16, None).of(part), unit)
        for rank in (64, 128)
    }
    rank = 64 + 64 * (memory - at[64]) / (at[128] - at[64])
    how = f"the rank at which {part} by the convention {convention} is {memory:g} {unit}; below 0: at none"
    return Value(rank, "rank", how)


def _parts(shape: str, method: MethodChoice, convention: str, bits: int, state_bits: int | None) -> Parts:
    if convention not in CONVENTIONS:
        raise UserError(f"no convention {convention!r}; {nearest(convention, CONVENTIONS)}")
    return CONVENTIONS[convention](shape, method, bits, state_bits or bits)
