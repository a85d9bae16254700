"""Evaluate formulas of names, numbers, operations and brackets; nothing else that a text says is run."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping

from harness.errors import UserError

Operations = Mapping[type[ast.operator], Callable[[float, float], float]]
WHOLE: Operations = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}
ALL: Operations = {**WHOLE, ast.Div: operator.truediv}


def whole(formula: str, values: Mapping[str, int]) -> int:
    """Evaluate a formula of names, whole numbers, +, -, * and brackets; UserError for anything else."""
    try:
        return int(_value(ast.parse(formula, mode="eval").body, values, WHOLE, int))
    except (SyntaxError, KeyError, TypeError) as error:
        raise _refusal(formula, "+ - * and brackets over whole numbers", values) from error


def number(formula: str, values: Mapping[str, float]) -> float:
    """Evaluate a formula that may also have / and decimals; UserError for anything else."""
    try:
        return float(_value(ast.parse(formula, mode="eval").body, values, ALL, int, float))
    except (SyntaxError, KeyError, TypeError, ZeroDivisionError) as error:
        raise _refusal(
            formula, "+ - * / and brackets over numbers, without a division by 0,", values
        ) from error


def _refusal(formula: str, allowed: str, values: Mapping[str, float]) -> UserError:
    return UserError(f"formula {formula!r} is not one of {allowed} and {', '.join(values)}")


def _value(node: ast.expr, values: Mapping[str, float], operations: Operations, *numbers: type) -> float:
    if isinstance(node, ast.BinOp):
        left, right = (_value(side, values, operations, *numbers) for side in (node.left, node.right))
        return operations[type(node.op)](left, right)
    if isinstance(node, ast.Name):
        return values[node.id]
    if isinstance(node, ast.Constant) and type(node.value) in numbers:
        return node.value  # type: ignore[return-value]
    raise TypeError(ast.dump(node))
