"""The value of a calculation; names of units and shapes."""

from __future__ import annotations

from dataclasses import dataclass

from harness.errors import UserError, nearest

#: Counts and bytes in one unit. `G` is that of GaLore's tables: 1024 times 10^6 bytes, which is millions of
#: numbers, times their bytes, over 1024 (found by calculation: see `states.nominal`).
COUNT_UNITS = {"elements": 1, "million": 10**6, "billion": 10**9}
BYTE_UNITS = {
    "bytes": 1,
    "MB": 10**6,
    "MiB": 2**20,
    "GB": 10**9,
    "GiB": 2**30,
    "G": 1024 * 10**6,
    "GiB/1000": 2**30 / 1000,
}


@dataclass(frozen=True)
class Value:
    """A number, a truth or a text; the unit of a number; and one sentence on how it was obtained."""

    value: float | bool | str
    unit: str
    how: str


def in_unit(number: float, unit: str) -> float:
    """Convert a count or bytes to a unit; UserError names the nearest for an unknown unit."""
    units = {**COUNT_UNITS, **BYTE_UNITS}
    if unit not in units:
        raise UserError(f"no unit {unit!r}; {nearest(unit, units)}")
    return number / units[unit]


def shape_name(text: str) -> str:
    """Return the name in `harness.engine.models.shapes` of a shape, however papers write it.

    llama_60m, LLaMA 60M and 60M are 60m; LLaMA-2 7B is llama-2-7b; 13B is llama-2-13b, the one 13B there is.
    """
    name = text.lower().replace("_", "-").replace(" ", "-")
    if not name.startswith("llama-2-"):
        name = name.removeprefix("llama-")
    return "llama-2-13b" if name == "13b" else name
