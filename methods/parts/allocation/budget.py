"""What a compression ratio means: a target, how it is counted, and ranks that meet it.

Papers call five different things a ratio. Here it is the share that goes, of the ranks of all target
matrices, of their parameters, or of all parameters of the model.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from harness.errors import UserError
from methods.parts.targets import Shapes

#: What is counted: ranks of the targets, parameters of the targets, all parameters of the model.
Counted = Literal["ranks", "linears", "all"]
#: How far rounding of float64 may take ranks and, relative to it, a target from whole numbers.
OF_RANKS, OF_TARGET = 1e-9, 1e-12


@dataclass(frozen=True)
class Budget:
    """A share `reduction` to be taken away from matrices of these shapes (out, in).

    `parameters` are those of the whole model before, `multiple` divides every rank. A matrix that keeps all
    of its share stays dense, and so it has no rank. Factors of the matrices `biased` come with a bias that
    the dense ones have not.
    """

    shapes: Shapes
    parameters: int
    reduction: float
    counted: Counted = "linears"
    multiple: int = 1
    biased: Collection[str] = frozenset()

    def __post_init__(self) -> None:
        if self.target <= 0:
            linears = self.whole_model
            raise UserError(
                f"reduction {self.reduction:g} of all parameters is more than the targets hold, which are "
                f"{linears / self.parameters:.1%} of them; ask for less"
            )

    def unit(self, name: str) -> int:
        """Return what one rank of a matrix costs."""
        return 1 if self.counted == "ranks" else sum(self.shapes[name])

    def fixed(self, name: str) -> int:
        """Return what factors of a matrix cost beside their ranks: a bias, where they come with one."""
        return self.shapes[name][0] if name in self.biased and self.counted != "ranks" else 0

    def price(self, name: str, rank: int) -> int:
        """Return what factors of a rank cost."""
        return rank * self.unit(name) + self.fixed(name)

    def most(self, name: str) -> int:
        """Return the largest rank whose factors cost less than the dense matrix."""
        return (self.whole(name) - self.fixed(name) - 1) // self.unit(name)

    def whole(self, name: str) -> int:
        """Return what a dense matrix costs."""
        return min(self.shapes[name]) if self.counted == "ranks" else prod(self.shapes[name])

    @property
    def whole_model(self) -> int:
        """What all matrices cost when dense."""
        return sum(map(self.whole, self.shapes))

    @property
    def target(self) -> float:
        """What all matrices may cost together."""
        counted = self.parameters if self.counted == "all" else self.whole_model
        return self.whole_model - self.reduction * counted

    def cost(self, ranks: Mapping[str, int]) -> int:
        """Return what ranks cost; a matrix without one is dense."""
        return sum(
            self.price(name, ranks[name]) if name in ranks else self.whole(name) for name in self.shapes
        )

    def ranks(self, shares: Mapping[str, float]) -> dict[str, int]:
        """Return ranks in proportion to the shares that matrices keep, which together meet the target.

        One factor scales all shares so that they do, no matrix above all of itself nor below its least rank,
        one `multiple`; a share of infinity stays dense. Ranks are rounded down to multiples, and what that
        leaves over goes to the matrices that lost most by it: so the cost is less than one step of a matrix
        below the target, and above it only where all that may shrink are at their least.
        """
        kept = self._scaled(shares)
        exact = {
            name: (share * self.whole(name) - self.fixed(name)) / self._step(name)
            for name, share in kept.items()
            if share < 1
        }
        steps = {name: max(1, math.floor(value + OF_RANKS)) for name, value in exact.items()}
        left = math.floor(self.target * (1 + OF_TARGET)) - self.cost(self.rounded(steps))
        for name in sorted(exact, key=lambda name: steps[name] - exact[name]):
            price = self._price(name, steps[name] + 1) - self._price(name, steps[name])
            if price <= left and exact[name] > steps[name] + OF_RANKS:
                steps[name] += 1
                left -= price
        return self.rounded(steps)

    def rounded(self, steps: Mapping[str, int]) -> dict[str, int]:
        """Return the ranks of so many multiples by matrix; those whose factors would not be smaller stay
        dense, and so they have none.
        """
        return {
            name: min(step * self.multiple, *self.shapes[name])
            for name, step in steps.items()
            if self._price(name, step) < self.whole(name)
        }

    @property
    def least(self) -> float:
        """Share that all matrices keep together at their least ranks."""
        return sum(self._price(name, 1) for name in self.shapes) / self.whole_model

    def _step(self, name: str) -> int:
        """Return what one multiple of ranks costs."""
        return self.unit(name) * self.multiple

    def _price(self, name: str, steps: int) -> int:
        """Return what so many multiples cost; a matrix that they do not make smaller is dense."""
        rank = min(steps * self.multiple, *self.shapes[name])
        return min(self.price(name, rank), self.whole(name))

    def _scaled(self, shares: Mapping[str, float]) -> dict[str, float]:
        """Return min(1, max(least, c share)) with the c for which the costs of all are the target.

        Their cost as a function of c is linear between the points where a matrix leaves its least or becomes
        whole, so these are searched and the c between two of them is exact.
        """
        least = {name: self._price(name, 1) / self.whole(name) for name in self.shapes}

        def kept(factor: float) -> dict[str, float]:
            return {name: min(1.0, max(least[name], factor * shares[name])) for name in self.shapes}

        def spent(factor: float) -> float:
            return sum(share * self.whole(name) for name, share in kept(factor).items())

        bends = {
            bound / shares[name]
            for name in self.shapes
            for bound in (least[name], 1.0)
            if 0 < shares[name] < math.inf
        }
        ascending = sorted(bends) or [1.0]
        above = bisect_left(ascending, self.target, key=spent)
        if above in (0, len(ascending)):
            return kept(ascending[max(0, above - 1)])
        low, high = ascending[above - 1], ascending[above]
        part = (self.target - spent(low)) / (spent(high) - spent(low))
        return kept(low + part * (high - low))

    def measured(self, ranks: Mapping[str, int]) -> dict[str, float]:
        """Return what is taken away by ranks, as a share of each of the three."""
        by_ranks, by_linears = (
            replace(self, reduction=0.0, counted=counted) for counted in ("ranks", "linears")
        )
        removed = by_linears.whole_model - by_linears.cost(ranks)
        return {
            "ranks": 1 - by_ranks.cost(ranks) / by_ranks.whole_model,
            "linears": removed / by_linears.whole_model,
            "all": removed / self.parameters,
        }
