"""A tensor on grids: a code of 8 or 4 bits for each element, and for each group of them a grid (`grid.py`).

Its changes are rounded to new grids, to the nearest points or at random. Groups in which nothing has changed
keep their bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from methods.parts.quantisation.grid import codes_of, grid_of, values_of
from methods.parts.quantisation.packing import packed, unpacked
from methods.parts.quantisation.tensor import Form, Quantised, exact, parts_of
from methods.parts.targets import random_stream


@dataclass
class Rounding:
    """How the changes of a tensor are rounded; random numbers follow from seed, name and count of changes."""

    stochastic: bool = False
    official: bool = False
    seed: int = 0
    name: str = ""
    changes: int = 0

    def generator(self, device: torch.device) -> torch.Generator | None:
        """Return the generator of the next change; None where rounding is to the nearest point."""
        if not self.stochastic:
            return None
        self.changes += 1
        return random_stream(self.seed, f"{self.name}, rounding", self.changes, device)


@dataclass(frozen=True)
class GridForm(Form):
    """Bits of a tensor's elements, and how its changes are rounded."""

    bits: int
    rounding: Rounding


class Gridded(Quantised):
    """A tensor stored as codes (groups, bytes of a group), and step and lowest point (groups, 1)."""

    PARTS = ("codes", "step", "low")
    codes: Tensor
    step: Tensor
    low: Tensor
    form: GridForm

    @property
    def wide(self) -> torch.dtype:
        """The dtype in which changes are computed."""
        return self.dtype if self.form.rounding.official else exact(self.dtype)

    def floats(self, dtype: torch.dtype) -> Tensor:
        """Return a float copy."""
        codes = unpacked(self.codes, self.form.bits)
        return values_of(codes, self.step, self.low, dtype).view(self.form.shape)

    def write(self, values: Tensor) -> None:
        """Take the values of a float tensor of this shape, rounded; groups that are equal keep their bits."""
        self.round_to(values, self.form.rounding.generator(values.device))

    @torch.no_grad()
    def round_to(self, values: Tensor, generator: torch.Generator | None) -> None:
        """Take these values, rounded at random with a generator, else to the nearest points."""
        bits, official = self.form.bits, self.form.rounding.official
        rows = values.reshape(len(self.step), -1)
        for codes, step, low, new in parts_of(values.numel(), *self.parts(), rows):
            before = values_of(unpacked(codes, bits), step, low, values.dtype)
            changed = (before != new).any(dim=1, keepdim=True)
            del before
            new_step, new_low = grid_of(new, bits, official)
            found = codes_of(new, new_step, new_low, bits, official, generator)
            for old, other in ((codes, packed(found, bits)), (step, new_step), (low, new_low)):
                old.copy_(torch.where(changed, other, old))

    def own_form(self) -> GridForm:
        """Return the form with a rounding of its own."""
        return replace(self.form, rounding=replace(self.form.rounding))

    def is_stored_like(self, other: Quantised) -> bool:
        """Return whether groups are as large and grids as fine, however changes are rounded."""
        if not isinstance(other, Gridded) or self.codes.shape != other.codes.shape:
            return False
        return self.form == replace(other.form, rounding=self.form.rounding)

    def copy_stored(self, other: Quantised) -> None:
        """Copy the parts, and how many changes there were."""
        super().copy_stored(other)
        assert isinstance(other, Gridded)
        self.form.rounding.changes = other.form.rounding.changes

    @classmethod
    def form_of(cls, content: Mapping[str, Any]) -> GridForm:
        """Return the form that was saved."""
        return GridForm(**{**content, "rounding": Rounding(**content["rounding"])})


def gridded(values: Tensor, group: int, bits: int, rounding: Rounding | None = None) -> Gridded:
    """Return a tensor rounded to the nearest points, with `group` elements of its rows to a grid.

    `rounding` is for later changes. `group` divides the number of elements, and is even for 4 bits.
    """
    count = values.numel() // group
    codes = values.new_zeros((count, group * bits // 8), dtype=torch.uint8)
    step, low = (values.new_zeros((count, 1), dtype=exact(values.dtype)) for _ in range(2))
    form = GridForm(tuple(values.shape), values.dtype, bits, rounding or Rounding())
    made = Gridded(form, codes, step, low)
    made.round_to(values.detach(), None)
    return made
