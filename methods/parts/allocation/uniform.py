"""The same share of every matrix."""

from __future__ import annotations

from typing import Literal

from methods.parts.allocation.allocator import Allocator, Problem


class Uniform(Allocator):
    """Keep the same share of each target matrix."""

    type: Literal["uniform"] = "uniform"

    def allocate(self, problem: Problem) -> dict[str, int]:
        """Return equal shares, rounded so that the budget is met."""
        return problem.budget.ranks(dict.fromkeys(problem.shapes, 1.0))
