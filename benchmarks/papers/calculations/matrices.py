"""What the real code keeps for one matrix (m, n) at rank r, beside formulas; what methods say they can do."""

from __future__ import annotations

import ast
import operator
from collections.abc import Mapping
from typing import Literal

from benchmarks.papers.calculations.prepared import MethodChoice, matrix, one_method, with_option
from benchmarks.papers.calculations.value import Value
from harness.errors import UserError, nearest

Quantity = Literal["weights", "states", "total"]
#: (m, n, r) with m <= n that a formula is tried at: square, wide, long, odd; r at one and in between.
TRIED = ((64, 64, 8), (64, 256, 16), (96, 704, 24), (33, 77, 5), (128, 129, 1))
OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


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
    return Value(held == [evaluated(formula, s) for s in sizes], "truth", how)


def evaluated(formula: str, values: Mapping[str, int]) -> int:
    """Evaluate a formula of names, whole numbers, +, -, * and brackets; UserError for anything else."""
    try:
        return _value(ast.parse(formula, mode="eval").body, values)
    except (SyntaxError, KeyError, TypeError) as error:
        names = ", ".join(values)
        raise UserError(
            f"formula {formula!r} is not one of + - * and brackets over whole numbers and {names}"
        ) from error


def _value(node: ast.expr, values: Mapping[str, int]) -> int:
    if isinstance(node, ast.BinOp):
        return int(OPERATIONS[type(node.op)](_value(node.left, values), _value(node.right, values)))
    if isinstance(node, ast.Name):
        return values[node.id]
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    raise TypeError(ast.dump(node))


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
