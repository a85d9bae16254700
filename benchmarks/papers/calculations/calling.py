"""Check and evaluate a calculation by its name and arguments, with one line for a mistake."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, get_type_hints

from pydantic import BaseModel, ConfigDict, create_model

from benchmarks.papers.calculations import (
    activations,
    arithmetic,
    bias,
    matrices,
    parameters,
    procedures,
    ranks,
    states,
)
from benchmarks.papers.calculations.value import Value
from harness.errors import UserError, nearest
from harness.validation import validate

#: Every calculation by its name: each function of these modules that returns a `Value`.
CALCULATIONS: dict[str, Callable[..., Value]] = {
    name: function
    for module in (parameters, ranks, matrices, states, activations, bias, procedures, arithmetic)
    for name, function in vars(module).items()
    if inspect.isfunction(function) and inspect.get_annotations(function).get("return") == "Value"
}
DIGITS = 12  # of a value: what lies behind differs between machines


def evaluate(name: str, arguments: Mapping[str, Any]) -> Value:
    """Evaluate a calculation; UserError names the nearest for an unknown name or argument."""
    if name not in CALCULATIONS:
        raise UserError(f"no calculation {name!r}; {nearest(name, CALCULATIONS)}")
    schema, where = _schema(name), f"calculation {name}"
    checked = validate(schema, dict(arguments), where=where)
    try:
        found = CALCULATIONS[name](**{key: getattr(checked, key) for key in checked.model_fields_set})
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    if isinstance(found.value, float):
        return Value(float(f"{found.value:.{DIGITS}g}"), found.unit, found.how)
    return found


@cache
def _schema(name: str) -> type[BaseModel]:
    """Return the arguments of a function as a model: its type hints, unknown keys refused."""
    function = CALCULATIONS[name]
    hints = get_type_hints(function, include_extras=True)
    fields: dict[str, Any] = {
        key: (hints[key], ... if given.default is inspect.Parameter.empty else given.default)
        for key, given in inspect.signature(function).parameters.items()
    }
    return create_model(name, __config__=ConfigDict(extra="forbid", allow_inf_nan=False), **fields)
