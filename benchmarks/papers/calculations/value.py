"""The value of a calculation; names of units and shapes."""

from __future__ import annotations

from dataclasses import dataclass

from harness.errors import UserError, nearest
from harness.tables.papers.lookup import BYTE_UNITS

#: Counts and bytes in one unit.
UNITS: dict[str, float] = {"elements": 1, "million": 10**6, "billion": 10**9, **BYTE_UNITS}


@dataclass(frozen=True)
class Value:
    """A number, a truth or a text; the unit of a number; and one sentence on how it was obtained."""

    value: float | bool | str
    unit: str
    how: str


def in_unit(number: float, unit: str) -> float:
    """Convert a count or bytes to a unit; UserError names the nearest for an unknown unit."""
    if unit not in UNITS:
        raise UserError(f"no unit {unit!r}; {nearest(unit, UNITS)}")
    return number / UNITS[unit]


def shape_name(text: str) -> str:
    """Return the name in `harness.engine.models.shapes` of a shape, however papers write it.

    llama_60m, LLaMA 60M and 60M are 60m; LLaMA-2 7B is llama-2-7b; 13B is llama-2-13b, the one 13B there is.
    """
    name = text.lower().replace("_", "-").replace(" ", "-")
    if not name.startswith("llama-2-"):
        name = name.removeprefix("llama-")
    return "llama-2-13b" if name == "13b" else name
