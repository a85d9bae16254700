"""What the real code keeps for one matrix (m, n) at rank r, beside formulas; what methods say they can do."""

from __future__ import annotations

from typing import Literal

from benchmarks.papers.calculations import formulas
from benchmarks.papers.calculations.prepared import MethodChoice, matrix, one_method, with_option
from benchmarks.papers.calculations.value import Value
from harness.errors import UserError, nearest

Quantity = Literal["weights", "states", "total"]
#: (m, n, r) with m <= n that a formula is tried at: square, wide, long, odd; r at one and in between.
TRIED = ((64, 64, 8), (64, 256, 16), (96, 704, 24), (33, 77, 5), (128, 129, 1))


def matrix_elements(method: MethodChoice, quantity: Quantity, m: int, n: int, rank: int) -> Value:
    """Count numbers kept for a matrix of `m` outputs and `n` inputs: weights, optimizer states, or both.

    Weights are what the real modules hold, adapters included; states are what the real stepper keeps after
    an update, bases of projections included (GaLore, arXiv 2403.03507, Table 1).
    """
    found = matrix(with_option(method, "rank", rank), m, n)
    parts = {"weights": found.counts["total"], "states": found.state_elements}
    parts["total"] = sum(parts.values())
    how = f"{quantity} of one {m} x {n} matrix at rank {rank}, in the real module and stepper"
    return Value(parts[quantity], "elements", how)


def formula_holds(formula: str, method: MethodChoice, quantity: Quantity) -> Value:
    """Check at five sizes whether a formula in m, n and r (m <= n) gives what the real code keeps."""
    sizes = [dict(zip("mnr", tried, strict=True)) for tried in TRIED]
    held = [matrix_elements(method, quantity, s["m"], s["n"], s["r"]).value for s in sizes]
    how = f"{formula} beside the {quantity} in the real module and stepper at {len(TRIED)} sizes with m <= n"
    return Value(held == [formulas.whole(formula, s) for s in sizes], "truth", how)


def abilities(method: MethodChoice) -> Value:
    """Return the text `yes / no / yes`: several subspaces in a run, pre-training, fine-tuning.

    As in Table 1 of GaLore, from the caps of our method; a subspace that changes has a period of refreshes.
    """
    from harness.plugins import build

    name, options = one_method(method)
    caps = build(name, options).caps
    answers = (caps.period is not None, "pretrain" in caps.stages, "finetune" in caps.stages)
    how = "caps of our method: a period of refreshes / stage pretrain / stage finetune"
    return Value(" / ".join("yes" if able else "no" for able in answers), "text", how)


def default(method: str, option: str) -> Value:
    """Return the default of an option of our method."""
    from harness.plugins import find

    fields = find(method).Config.model_fields
    if option not in fields:
        raise UserError(f"{method} has no option {option!r}; {nearest(option, fields)}")
    value = fields[option].default
    plain = value if isinstance(value, (bool, int, float, str)) else str(value)
    return Value(plain, "", f"default of the option {option} of our {method}")
