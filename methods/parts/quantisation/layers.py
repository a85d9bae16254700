"""Refuse layers that cannot be stored in few bits: stored so already, or not divided by groups."""

from __future__ import annotations

from collections.abc import Mapping
from math import gcd, prod

from torch import nn

from harness.errors import UserError
from methods.parts.quantisation.tensor import Quantised
from methods.parts.targets import Shapes


def check_unquantised(method: str, layers: Mapping[str, nn.Linear]) -> None:
    """Raise UserError for the first layer whose weight is stored in few bits already."""
    for name, layer in layers.items():
        if isinstance(layer.weight, Quantised):
            raise UserError(f"{method}: {name} is quantised already; use one such method in a stack")


def check_divides(method: str, option: str, size: int, shapes: Shapes, usual: int) -> None:
    """Raise UserError for the first matrix that groups of a size do not divide, with one that divides all."""
    for name, shape in shapes.items():
        if prod(shape) % size:
            common = gcd(*map(prod, shapes.values()))
            raise UserError(
                f"{method}: {option} {size} does not divide the {prod(shape)} elements of {name} {shape}; "
                f"use a divisor of {common}, such as {gcd(common, usual)}"
            )
